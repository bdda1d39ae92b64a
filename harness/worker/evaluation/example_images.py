"""Example pictures of a run: input, map and mask as PNG, chosen the same way for every engine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core_model.batch import unit_range

PER_CATEGORY = 2
MOST = 12


def choose(
    entries: Sequence[Mapping[str, Any]], per_category: int = PER_CATEGORY, most: int = MOST
) -> list[Mapping[str, Any]]:
    """One good and (per_category - 1) defective entries a category, by id: independent of what the model said, so
    that two engines show the same pictures and neither shows its best."""
    chosen: list[Mapping[str, Any]] = []
    for category in sorted({entry["category"] for entry in entries}):
        own = sorted((entry for entry in entries if entry["category"] == category), key=lambda entry: entry["id"])
        defective = [entry for entry in own if entry["is_defective"]]
        kinds = {entry["kind"]: entry for entry in reversed(defective)}  # the first of each kind
        chosen += [kinds[kind] for kind in sorted(kinds)][: max(1, per_category - 1) if len(kinds) < 4 else 4]
        chosen += [entry for entry in own if not entry["is_defective"]][:1]
    return chosen[:most]


def save_examples(folder: Path, entries: Sequence[Mapping[str, Any]], dataset: Any) -> None:
    """Writes RUN/examples/ID_{input,map,mask}.png for the chosen entries. The map is drawn on the fixed scale 0..1."""
    place = folder / "examples"
    place.mkdir(exist_ok=True)
    index_of = {name: index for index, name in enumerate(dataset.ids)}
    for entry in choose(entries):
        stem = file_stem(entry["id"])
        image = unit_range(dataset.get(index_of[entry["id"]], 0).image).permute(1, 2, 0).numpy()
        pictures = {
            "input": np.rint(image * 255),
            "map": np.rint(np.clip(entry["map"].astype(np.float32), 0, 1) * 255),
        }
        if entry["mask"] is not None:
            pictures["mask"] = entry["mask"].astype(np.uint8) * 255
        for kind, picture in pictures.items():
            Image.fromarray(picture.astype(np.uint8)).save(place / f"{stem}_{kind}.png", optimize=True)


def file_stem(sample_id: str) -> str:
    """The sample id as a file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", sample_id)
