"""The study's type-2 augmentation: turned, flipped, zoomed and brightened copies of pictures, driven by one table.

`TABLE` is the study's Table 2 (operations in order; a share below 1 is the chance that the operation is done). COUNTS
is its Table 3: how many training pictures each category of the table is brought to. The copies are fixed, as the
study's were (files on disk): they depend on the picture's id alone, not on seed or epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import cv2
import numpy as np


class Operation(Protocol):
    """One step. Both arrays are turned alike; the mask is never brightened."""

    @property
    def chance(self) -> float: ...

    def apply(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Turn:
    """Quarter turns against the clock: 90, 180 or 270 degrees."""

    degrees: int
    chance: float = 1.0

    def apply(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        quarters = self.degrees // 90
        return np.rot90(image, quarters), np.rot90(mask, quarters)


@dataclass(frozen=True)
class Tilt:
    """A free angle, uniform within -degrees..degrees; what comes in from outside is the mirrored border."""

    degrees: float
    chance: float = 1.0

    def apply(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return _warp(image, mask, angle=rng.uniform(-self.degrees, self.degrees), scale=1.0)


@dataclass(frozen=True)
class Zoom:
    """Enlarged about the centre by low..high (0.2 = 20 per cent) and cut to the old size."""

    low: float
    high: float
    chance: float = 1.0

    def apply(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return _warp(image, mask, angle=0.0, scale=1.0 + rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class MirrorHorizontal:
    """Left becomes right."""

    chance: float = 1.0

    def apply(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return image[:, ::-1], mask[:, ::-1]


@dataclass(frozen=True)
class MirrorVertical:
    """Top becomes bottom."""

    chance: float = 1.0

    def apply(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return image[::-1], mask[::-1]


@dataclass(frozen=True)
class Brightness:
    """Grey levels times a factor, uniform in low..high."""

    low: float
    high: float
    chance: float = 1.0

    def apply(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        factor = rng.uniform(self.low, self.high)
        return np.clip(image.astype(np.float32) * factor + 0.5, 0, 255).astype(np.uint8), mask


_BRIGHTNESS = Brightness(0.9, 1.1, 0.7)
_WOVEN = (Turn(180, 0.5), Turn(270, 0.5), MirrorVertical(0.5), _BRIGHTNESS)

TABLE: Mapping[str, tuple[Operation, ...]] = MappingProxyType(
    {
        "bottle": (Turn(180, 0.8), Turn(90, 0.6), MirrorHorizontal(0.5), MirrorVertical()),
        "cable": (Turn(180, 0.8), Turn(90, 0.6), MirrorHorizontal(), _BRIGHTNESS),
        "capsule": (Turn(270, 0.5), Turn(180, 0.5), _BRIGHTNESS),
        "carpet": _WOVEN,
        "grid": _WOVEN,
        "hazelnut": (Turn(90, 0.5), Turn(270, 0.5), MirrorHorizontal(0.5), _BRIGHTNESS),
        "leather": (Turn(90, 0.5), Turn(180, 0.5), MirrorVertical(), _BRIGHTNESS),
        "metal_nut": (Turn(90, 0.5), Turn(180, 0.5), MirrorVertical()),
        "pill": (Tilt(35), Zoom(0.0, 0.2), MirrorHorizontal(0.6), MirrorVertical(0.7)),
        "screw": (Tilt(35), Zoom(0.2, 0.5), MirrorHorizontal(0.6), MirrorVertical(0.6)),
        "tile": (Tilt(35), Zoom(0.2, 0.4)),
        "toothbrush": (MirrorVertical(), Tilt(20)),
        "transistor": (Tilt(15), MirrorVertical(0.6)),
        "wood": (Tilt(50), Zoom(0.5, 0.8), MirrorVertical(0.7)),
        "zipper": (Tilt(15), Zoom(0.4, 0.6), MirrorVertical(0.7)),
    }
)

# Training pictures a category after augmentation; 0 = the originals alone. V5 and V6 also double the defective test
# pictures with their masks.
COUNTS: Mapping[str, int] = MappingProxyType({"": 0, "v4": 0, "v5": 1000, "v6": 400})
DOUBLES_TEST = frozenset({"v5", "v6"})


def operations_for(category: str, like: str = "") -> tuple[Operation, ...]:
    """The category's row of the table; the row `like` for a category that has none; else nothing (the study left AeBAD
    as it was)."""
    return TABLE.get(category) or TABLE.get(like, ())


def augmented(
    operations: tuple[Operation, ...], image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (S, S, 3) and uint8 (S, S): the operations in order, each by its chance."""
    for operation in operations:
        if operation.chance >= 1.0 or rng.random() < operation.chance:
            image, mask = operation.apply(image, mask, rng)
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def _warp(image: np.ndarray, mask: np.ndarray, *, angle: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    size = image.shape[1], image.shape[0]
    matrix = cv2.getRotationMatrix2D(((size[0] - 1) / 2, (size[1] - 1) / 2), angle, scale)
    turned = cv2.warpAffine(
        np.ascontiguousarray(image), matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    # A mirrored defect would be one that nobody drew: outside the picture the mask is empty.
    return turned, cv2.warpAffine(np.ascontiguousarray(mask), matrix, size, flags=cv2.INTER_NEAREST)
