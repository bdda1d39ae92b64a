"""The built-in data set: brick, grass and gravel, cut from scikit-image's 512 x 512 grey photographs (CC0).

Training crops come from the left 320 columns, test crops from the right 192, so no pixel is in both. Test defects are
drawn by the generators of this file, which training never uses: `core_model.data.defects` must not import it, and a
test holds it to that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from core_model.data import random_fields
from core_model.data.decode.pictures import resize, resize_mask
from core_model.data.defects import shapes
from core_model.data.readers.layout import Layout

CATEGORIES = ("brick", "grass", "gravel")
CROP = 128  # pixels of the photograph
TRAIN_COLUMNS = (0, 320)
TEST_COLUMNS = (320, 512)
TRAIN_PICTURES = 80  # a category
TEST_GOOD = 12
TEST_DEFECTIVE = 6  # a defect kind
SEED = 7


@dataclass(frozen=True, kw_only=True)
class TexturePicture:
    """A crop of a photograph, with a defect where `kind` names one.

    Args:
        number: of the picture within its kind.
    """

    id: str
    category: str
    kind: str
    number: int
    columns: tuple[int, int]

    @property
    def origin(self) -> str:
        return self.id

    @property
    def has_mask(self) -> bool:
        return True

    def image(self, size: int) -> np.ndarray:
        return resize(self._drawn()[0], size)

    def mask(self, size: int) -> np.ndarray:
        return resize_mask(self._drawn()[1], size)

    def window(self) -> tuple[int, int]:
        """(top, left) of the crop in the photograph."""
        rng = self._rng()
        top = int(rng.integers(0, 512 - CROP + 1))
        return top, int(rng.integers(self.columns[0], self.columns[1] - CROP + 1))

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([SEED, int.from_bytes(hashlib.blake2b(self.id.encode(), digest_size=8).digest())])

    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (CROP, CROP, 3) and its mask."""
        top, left = self.window()
        crop = _photograph(self.category)[top : top + CROP, left : left + CROP]
        rng = self._rng()
        rng.integers(0, 512, 8)  # leave the window's draws behind
        gain, offset = rng.uniform(0.92, 1.08), rng.uniform(-8, 8)
        image = np.clip(crop * gain + offset, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
        if self.kind == "good":
            return image, np.zeros((CROP, CROP), np.uint8)
        return DEFECTS[self.kind](image, rng)


def read(_: str = "") -> Layout:
    """The data set; nothing is drawn yet."""
    train = [_picture(category, "train", "good", i) for category in CATEGORIES for i in range(TRAIN_PICTURES)]
    test = []
    for category in CATEGORIES:
        test += [_picture(category, "test", "good", i) for i in range(TEST_GOOD)]
        test += [_picture(category, "test", kind, i) for kind in DEFECTS for i in range(TEST_DEFECTIVE)]
    digest = hashlib.sha256(repr((CROP, TRAIN_COLUMNS, TEST_COLUMNS, SEED, len(train), len(test))).encode())
    for category in CATEGORIES:
        digest.update(_photograph(category).tobytes())
    return Layout(
        name="textures", source="scikit-image", train=tuple(train), test=tuple(test), content=digest.hexdigest()
    )


def _picture(category: str, split: str, kind: str, number: int) -> TexturePicture:
    columns = TRAIN_COLUMNS if split == "train" else TEST_COLUMNS
    return TexturePicture(
        id=f"{category}/{split}/{kind}/{number:03d}", category=category, kind=kind, number=number, columns=columns
    )


@lru_cache(maxsize=len(CATEGORIES))
def _photograph(category: str) -> np.ndarray:
    """uint8 (512, 512)."""
    from skimage import data  # imported late: it takes as long as all the rest of this package

    return np.ascontiguousarray(getattr(data, category)())


# -- test defects: each takes uint8 (S, S, 3) and returns the spoiled picture and its uint8 mask -----------------------


def _crack(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A jagged dark line with one branch, as in dried clay."""
    side = image.shape[0]
    alpha = np.zeros((side, side), np.float32)
    start = rng.uniform(0.2, 0.8, 2) * side
    heading = rng.uniform(0, 2 * np.pi)
    for branch in range(2):
        steps = int(rng.integers(8, 14)) // (branch + 1)
        headings = heading + branch * rng.choice([-0.9, 0.9]) + rng.normal(0, 0.55, steps)
        walk = np.stack([np.cos(headings), np.sin(headings)], axis=1) * rng.uniform(4, 8, (steps, 1))
        points = np.concatenate([start[None], start + np.cumsum(walk, axis=0)])
        alpha = np.maximum(alpha, shapes.stroke(side, points.astype(np.float32), 1.0 + rng.integers(2, size=steps)))
        start = points[len(points) // 2]
    return _darken(image, alpha, rng.uniform(0.1, 0.35)), (alpha > 0.3).astype(np.uint8)


def _hole(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A dark round pit with a bright rim on one side."""
    side = image.shape[0]
    row, column = rng.uniform(0.15, 0.85, 2) * side
    radius = rng.uniform(0.04, 0.1) * side
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    distance = np.hypot(rows - row, columns - column)
    alpha = np.clip(radius + 0.5 - distance, 0, 1)
    spoiled = _darken(image, alpha, rng.uniform(0.05, 0.3))
    light = rng.uniform(0, 2 * np.pi)
    side_on = ((rows - row) * np.sin(light) + (columns - column) * np.cos(light)) / (distance + 1e-3)
    rim = np.clip(1.5 - abs(distance - radius), 0, 1) * np.clip(side_on, 0, 1)
    spoiled = np.clip(spoiled + 110 * rim[..., None], 0, 255).astype(np.uint8)
    return spoiled, (distance <= radius + 1).astype(np.uint8)


def _stain(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A smooth veil that lowers contrast and shifts the tone."""
    side = image.shape[0]
    radius = rng.uniform(0.1, 0.22) * side
    rows, columns = np.mgrid[:side, :side]
    row, column = rng.uniform(0.2, 0.8, 2) * side
    distance = np.hypot(rows - row, columns - column) + 0.25 * radius * random_fields.field(side, rng, scales=(4, 8))
    alpha = (1.0 / (1.0 + np.exp((distance - radius) / 2.0)))[..., None]
    tone = image.mean() + rng.choice([-1, 1]) * rng.uniform(45, 80)
    veiled = image * 0.45 + tone * 0.55
    return np.clip(image + alpha * (veiled - image), 0, 255).astype(np.uint8), (alpha[..., 0] > 0.5).astype(np.uint8)


def _swirl(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The surface twisted about a point: the tone is right, the structure is not."""
    side = image.shape[0]
    row, column = rng.uniform(0.25, 0.75, 2) * side
    radius = rng.uniform(0.14, 0.24) * side
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    down, right = rows - np.float32(row), columns - np.float32(column)
    distance = np.hypot(down, right)
    turn = rng.choice([-1, 1]) * rng.uniform(2.0, 3.5) * np.clip(1 - distance / radius, 0, 1)
    cosine, sine = np.cos(turn), np.sin(turn)
    across, along = column + right * cosine - down * sine, row + right * sine + down * cosine
    twisted = cv2.remap(
        image, across.astype(np.float32), along.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    inside = distance < radius * 0.9
    return np.where((distance < radius)[..., None], twisted, image), inside.astype(np.uint8)


def _darken(image: np.ndarray, alpha: np.ndarray, factor: float) -> np.ndarray:
    """uint8: multiplied by `factor` where alpha is 1."""
    return np.clip(image * (1 - alpha[..., None] * (1 - factor)), 0, 255).astype(np.uint8)


DEFECTS: dict[str, Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "crack": _crack,
    "hole": _hole,
    "stain": _stain,
    "swirl": _swirl,
}
