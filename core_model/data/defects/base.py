"""What a generator of simulated defects takes and returns, and the drawing helpers that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A good picture to be spoiled.

    image: uint8 (S, S, 3), never written to. donor: reads another good picture of the same category, same form.
    foreground: bool (S, S), where the object is, or None where the whole picture is the object.
    """

    image: np.ndarray
    donor: Callable[[], np.ndarray]
    foreground: np.ndarray | None = None

    @property
    def side(self) -> int:
        return self.image.shape[0]

    @property
    def is_grey(self) -> bool:
        """Whether the picture has no colour; what is drawn into it then has none either."""
        small = self.image[::8, ::8]
        return bool((small[..., 0] == small[..., 1]).all() and (small[..., 0] == small[..., 2]).all())

    def point(self, rng: np.random.Generator) -> tuple[int, int]:
        """(row, column) of a random pixel of the object."""
        if self.foreground is not None:
            for _ in range(20):
                row, column = (int(value) for value in rng.integers(self.side, size=2))
                if self.foreground[row, column]:
                    return row, column
            places = np.flatnonzero(self.foreground)
            if places.size:
                return divmod(int(places[rng.integers(places.size)]), self.side)
        row, column = (int(value) for value in rng.integers(self.side, size=2))
        return row, column


@dataclass(frozen=True, kw_only=True)
class Edit:
    """image: uint8 (S, S, 3) with the defect. mask: uint8 (S, S), 1 = defect."""

    image: np.ndarray
    mask: np.ndarray


class Generator(Protocol):
    """Draws one defect; None where this try came to nothing (too small, invisible, off the object)."""

    def __call__(self, canvas: Canvas, rng: np.random.Generator) -> Edit | None: ...


Box = tuple[slice, slice]  # rows, columns


def blend(image: np.ndarray, paint: np.ndarray, alpha: np.ndarray, box: Box | None = None) -> np.ndarray:
    """A copy of `image` (uint8 (S, S, 3)) with `paint` over it, opacity `alpha` (float32 (S, S), 0..1).

    box: where alpha is above 0, if it is known already. paint: of the whole picture, or of the box alone.
    """
    box = box or bounding_box(alpha > 0)
    result = image.copy()
    if box is None:
        return result
    weight = alpha[box][..., None]
    below = image[box].astype(np.float32)
    above = paint[box] if paint.shape == image.shape else paint
    mixed = below + weight * (above - below)
    result[box] = np.clip(mixed + 0.5, 0, 255, out=mixed)
    return result


def bounding_box(mask: np.ndarray) -> Box | None:
    """Rows and columns that hold the mask, or None where it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def darken(image: np.ndarray, alpha: np.ndarray, factor: float) -> np.ndarray:
    """A copy of `image` multiplied by `factor` where alpha is 1, by less where it is less."""
    box = bounding_box(alpha > 0)
    if box is None:
        return image.copy()
    return blend(image, image[box] * np.float32(factor), alpha, box)


def difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Largest absolute change over the channels: uint8 (S, S)."""
    change = cv2.absdiff(before, after)
    return np.maximum(np.maximum(change[..., 0], change[..., 1]), change[..., 2])


def visible_mask(before: np.ndarray, after: np.ndarray, within: np.ndarray, *, threshold: int) -> np.ndarray:
    """The changed pixels, closed and cut to `within`: uint8 (S, S).

    A pasted patch may look like what it covers; such pixels are not defects, and labels that call them so teach
    the map to fire on good surface. So the mask is what can be seen to differ (NSA, Schlueter et al., 2022), smoothed
    so that a texture's chance coincidences leave no holes.
    """
    box = bounding_box(within)
    mask = np.zeros(within.shape, np.uint8)
    if box is None:
        return mask
    rows, columns = box
    change = cv2.blur(difference(before[rows, columns], after[rows, columns]), (3, 3))
    seen = cv2.morphologyEx((change >= threshold).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    mask[rows, columns] = np.where(within[rows, columns] > 0, seen, 0)
    return mask
