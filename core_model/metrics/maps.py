"""Figures of anomaly maps against masks: pixel AUROC, AUPRO, F1-max, and the controls that a high figure needs.

Maps in float16 have at most 63,488 distinct finite values. Each value gets an integer code that keeps the order, and
counts by code replace sorting the pixels: exact, and 2,000 pictures of 224 x 224 need a few MB beside the maps. Other
types, and small maps, are ranked by sorting all pixels of a category at once (16 bytes a pixel).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from core_model.metrics.ranking import NO_MASKS, NOT_FINITE, Figure, Tally, area_under_pro, auroc, f1_max

PRO_LIMIT = 0.3  # false-positive rate up to which AUPRO integrates
FLOAT16_CODES = 2**16
SMALL = 2**12  # pixels a picture: for fewer, sorting them takes less time than counts of all codes

NAMES = ("pixel_auroc", "aupro", "pixel_f1_max", "pixel_auroc_defective", "pixel_auroc_per_image")


class PixelCounts:
    """How many pixels have each code: good ones of good pictures, good ones around defects, defective ones.

    overlap: what each code adds to the sum over connected regions of the share of the region found. within: AUROC
    inside each defective picture. Counts of disjoint sets of pictures add up.
    """

    def __init__(self, levels: int) -> None:
        self.good, self.around, self.inside, self.overlap = (np.zeros(levels) for _ in range(4))
        self.within: list[float] = []

    def add(self, code: np.ndarray, mask: np.ndarray) -> None:
        """One picture: codes (H, W) of its map and its mask (H, W) bool."""
        levels = len(self.good)
        if not mask.any():
            self.good += np.bincount(code.ravel(), minlength=levels)
            return
        defect, surface = code[mask], code[~mask]
        hits, alarms = np.bincount(defect, minlength=levels), np.bincount(surface, minlength=levels)
        self.inside += hits
        self.around += alarms
        self.overlap += np.bincount(defect, weights=_region_weights(mask), minlength=levels)
        own = auroc(Tally(positives=hits, negatives=alarms)).value
        if own is not None:
            self.within.append(own)

    def plus(self, other: PixelCounts) -> PixelCounts:
        """Both sets of pictures together."""
        total = PixelCounts(len(self.good))
        for name in ("good", "around", "inside", "overlap"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        total.within = self.within + other.within
        return total

    def figures(self) -> dict[str, Figure]:
        everything = Tally(positives=self.inside, negatives=self.good + self.around)
        return {
            "pixel_auroc": auroc(everything, "pixels"),
            "aupro": area_under_pro(self.overlap, self.good + self.around, PRO_LIMIT),
            "pixel_f1_max": f1_max(everything, "pixels"),
            "pixel_auroc_defective": auroc(
                Tally(positives=self.inside, negatives=self.around), "pixels in defective pictures"
            ),
            "pixel_auroc_per_image": Figure(float(np.mean(self.within)))
            if self.within
            else Figure(None, "needs a picture with good and defective pixels"),
        }


def pixel_figures(entries: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Figure], dict[str, dict[str, Figure]]]:
    """Figures over all pixels of `entries`, and the same for the pictures of each kind alone.

    entries: each with ``map`` (H, W) float, ``mask`` (H, W) bool (None where nobody has drawn the defect: no figure is
    defined then) and ``kind``. pixel_auroc, pixel_f1_max: over all
    pixels. aupro: mean overlap of the connected defect regions, up to a false-positive rate of 30 %.
    pixel_auroc_defective: over the pixels of defective pictures only, pooled; pixel_auroc_per_image: mean over
    defective pictures of the AUROC within each. The last two cannot be raised by telling defective pictures from good
    ones by something outside the defect.
    """
    kinds = {str(entry["kind"]) for entry in entries}
    reason = ""
    if any(entry.get("map") is None for entry in entries):
        reason = "no maps were kept"
    elif any(entry["mask"] is None for entry in entries):
        reason = NO_MASKS
    elif not all(np.isfinite(entry["map"]).all() for entry in entries):
        reason = NOT_FINITE
    if reason:
        undefined = dict.fromkeys(NAMES, Figure(None, reason))
        return undefined, dict.fromkeys(kinds, undefined)
    codes, levels = _codes([np.asarray(entry["map"]) for entry in entries])
    counts = {kind: PixelCounts(levels) for kind in sorted(kinds)}
    for entry, code in zip(entries, codes, strict=True):
        counts[str(entry["kind"])].add(code, np.asarray(entry["mask"], bool))
    total = PixelCounts(levels)
    for each in counts.values():
        total = total.plus(each)
    return total.figures(), {kind: each.figures() for kind, each in counts.items()}


def medians(entries: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """float64 (N,): the median of each map; a small defect cannot move it. None where maps are missing."""
    if any(entry.get("map") is None for entry in entries):
        return None
    return np.array([np.median(np.asarray(entry["map"], np.float32)) for entry in entries], np.float64)


def _region_weights(mask: np.ndarray) -> np.ndarray:
    """float64 (P,), a defective pixel each in row order: 1 / the size of its connected region (8 neighbours)."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    region = labels[mask]
    return 1.0 / np.bincount(region)[region]


def _codes(maps: Sequence[np.ndarray]) -> tuple[Iterable[np.ndarray], int]:
    """Integer codes of the maps' values, in the order of the values, and the number of codes."""
    small = sum(each.size for each in maps) < len(maps) * SMALL
    if not small and all(each.dtype == np.float16 for each in maps):
        return (_float16_codes(each) for each in maps), FLOAT16_CODES
    sizes = np.cumsum([each.size for each in maps])[:-1]
    values, places = np.unique(np.concatenate([each.ravel() for each in maps]), return_inverse=True)
    parts = np.split(places, sizes)
    return [part.reshape(each.shape) for part, each in zip(parts, maps, strict=True)], len(values)


def _float16_codes(values: np.ndarray) -> np.ndarray:
    """uint16 codes in the order of the float16 values: sign bit flipped for positive, all bits for negative ones."""
    bits = (values + np.float16(0)).view(np.uint16)  # adding 0 makes one zero of the two
    return np.where(bits >> 15, ~bits, bits | 0x8000)
