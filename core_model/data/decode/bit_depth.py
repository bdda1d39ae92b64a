"""Pictures of more than 8 bits: which value is white.

One rule for all files of a type, never for a single picture: a picture's brightness says something. White is the
type's highest value (1.0 of floats), or what the data option ``white`` says. Where the pictures cannot be meant so
(12 bits in 16: nearly black) they are refused with the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core_model.data.decode import opener
from core_model.data.errors import DataError

SAMPLE = 32  # pictures decoded to see how bright they are, spread over the data set
_DIM = 4  # brightest value below a 4th of white: 14, 12 and 10 bits in 16 are
_BLACK = 256  # ... and below a 256th everything becomes 0
_OVER = 1.01  # resampling overshoots a little
_USUAL = (255, 1023, 4095, 16383, 65535, 2**20 - 1, 2**24 - 1, 2**31 - 1, 2**32 - 1)
_REMEDY = "say which value is white with --set data_options.white={}"


def white_of(kind: np.dtype) -> float:
    """White of a type: the highest value of integers, 1.0 of floats."""
    return float(np.iinfo(kind).max) if kind.kind in "iu" else 1.0


def to_bytes(values: np.ndarray, white: float, path: Path) -> np.ndarray:
    """uint8 of values of any type; `white` (0 = by the type) and above become 255. Raises DataError for values that
    have no brightness: negative, not finite, or above the white of floats."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{path}: values that are not finite (NaN or infinite): replace them")
    lowest = values.min(initial=0)
    if lowest < 0:
        raise DataError(f"{path}: negative values (down to {lowest:g}): save it with 0 for black")
    if values.dtype == np.uint16 and white in (0, 65535):
        return (values >> 8).astype(np.uint8)
    if values.dtype.kind == "f" and not white:
        highest = float(values.max(initial=0))
        if highest > _OVER:
            raise DataError(f"{path}: float values up to {highest:g}, not 1: {_REMEDY.format(f'{_next(highest):.0f}')}")
    top = white or white_of(values.dtype)
    if values.dtype.kind == "f":
        return np.rint(np.clip(values, 0, top) * (255 / top)).astype(np.uint8)
    return np.clip(np.floor(values * (256 / (top + 1.0))), 0, 255).astype(np.uint8)


def question(paths: Sequence[Path], white: float = 0.0) -> None:
    """Decodes up to SAMPLE of these deep files and raises DataError where the brightest value is far below white: they
    would be black or nearly. Of a `white` that was given, only what leaves everything black is refused."""
    if not paths:
        return
    brightest: dict[np.dtype, tuple[float, Path, int]] = {}
    looked_at = 0  # pixels
    for path in paths[:: -(-len(paths) // SAMPLE)]:
        if looked_at > opener.LOOK_PIXELS:
            break
        values = opener.read(path).values
        looked_at += values.size
        if values.dtype == np.uint8:
            continue
        to_bytes(values, white, path)
        highest = float(values.max(initial=0))
        most, where, count = brightest.get(values.dtype, (-1.0, path, 0))
        brightest[values.dtype] = (highest, path, count + 1) if highest > most else (most, where, count + 1)
    for kind, (highest, path, count) in brightest.items():
        top = white or white_of(kind)
        dim = _BLACK if white else _DIM
        if not 0 < highest * dim <= top + (kind.kind != "f"):
            continue
        limit = f"{top:g}" if white or kind.kind == "f" else str(np.iinfo(kind).max)
        wish = f"{highest:.3g}" if highest < 1 else f"{_next(highest):.0f}"
        accept = f", or {limit} if they are to be that dark" if highest * _BLACK > top + 1 and not white else ""
        raise DataError(
            f"{path}: brightest value {highest:g} of {limit} (of {count} such pictures looked at), so they would be "
            f"{'black' if white else 'nearly black'}: {_REMEDY.format(wish)}{accept}"
        )


def _next(highest: float) -> float:
    """The usual white that holds `highest`."""
    return next((white for white in _USUAL if white >= highest), highest)
