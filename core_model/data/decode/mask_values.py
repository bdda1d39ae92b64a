"""From the file of a mask to which pixels are defect, whatever the file's kind; and masks that cannot be meant so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core_model.data.decode import opener
from core_model.data.errors import DataError

SAMPLE = 64  # masks decoded before a job starts, spread over the data set
HALF = 0.5  # of the picture: a mask of more is questioned
_LEAST_LOSSY = 64  # brightest value of a mask whose values a lossy compression has left distinct
_LABELS = 32  # more different values than this are shades, unless they are spread evenly


def read_mask(path: Path) -> np.ndarray:
    """uint8 (H, W), 1 where the file is not black (MVTec AD writes 255, VisA the number of the defect kind, MVTec LOCO
    one value a kind). Colours decide, not indices of a palette; transparency only where there is one colour alone.

    Shades (JPEG's ringing, blurred edges, probabilities) are defect above half of the brightest. Raises DataError.
    """
    raster = opener.read(path, "mask", colour=False)
    values = raster.values
    if raster.shape_in_alpha and raster.alpha is not None:
        values = raster.alpha
    if values.ndim == 3:
        values = values.max(axis=2)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{path}: mask with values that are not finite (NaN or infinite): save it as 0 and 255")
    if values.min(initial=0) < 0:
        raise DataError(f"{path}: mask with negative values: save it with 0 for good surface and 255 for the defect")
    highest = float(values.max(initial=0))
    if raster.lossy and 0 < highest < _LEAST_LOSSY:
        raise DataError(
            f"{path}: mask in a lossy file whose brightest value is {highest:g} of 255: compression has changed such "
            "values, save it as PNG with 0 and 255"
        )
    threshold = highest / 2 if raster.lossy or _is_shaded(values, highest) else 0
    return (values > threshold).astype(np.uint8)


def questioned(paths: Sequence[Path], root_of: int = 3) -> str:
    """One line about masks that cover more than half of their picture, as an inverted one does; "" where none does. Up
    to SAMPLE of them are decoded.

    Args:
        root_of: how many parts of the path name the mask.
    """
    shares: dict[Path, float] = {}
    looked_at = 0  # pixels
    for path in list(paths)[:: max(1, -(-len(paths) // SAMPLE))]:
        if looked_at > opener.LOOK_PIXELS:
            break
        mask = read_mask(path)
        looked_at += mask.size
        shares[path] = float(mask.mean())
    large = [path for path, share in shares.items() if share > HALF]
    if not large:
        return ""
    path, share = large[0], shares[large[0]]
    more = f" (so do {len(large) - 1} more of {len(shares)} looked at)" if len(large) > 1 else ""
    name = "/".join(path.parts[-root_of:])
    return f"{name}: the mask covers {share:.0%} of its picture{more}: is the defect white in it and the rest black?"


def _is_shaded(values: np.ndarray, highest: float) -> bool:
    """Whether the values are shades of one defect, not numbers of defects: many, most of the bright ones at the top."""
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        levels = np.flatnonzero(counts)
        counts = counts[levels]
    else:
        levels, counts = np.unique(values, return_counts=True)
    if len(levels) <= _LABELS:
        return False
    bright = counts[levels > highest / 2].sum()
    return bool(counts[levels >= highest * 15 / 16].sum() >= bright / 2)
