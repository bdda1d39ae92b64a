"""Changes that are no defects: light, focus, faint marks. Drawn into good and defective pictures alike, they teach the
decoder what to ignore."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

from core_model.data import random_fields
from core_model.data.defects import shapes

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def exposure(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast 0.8-1.25, brightness -20..20, gamma 0.8-1.25, through one table."""
    levels = np.arange(256, dtype=np.float32) / 255.0
    gamma, contrast, brightness = np.exp(rng.uniform(-0.22, 0.22)), rng.uniform(0.8, 1.25), rng.uniform(-20, 20)
    table = 255.0 * ((levels**gamma - 0.5) * contrast + 0.5) + brightness
    return cv2.LUT(image, np.clip(table + 0.5, 0, 255).astype(np.uint8))


def light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uneven light: a broad smooth field, +-15 %."""
    side = image.shape[0]
    coarse = cv2.resize(random_fields.field(side, rng, scales=(2,)), (32, 32), interpolation=cv2.INTER_AREA)
    field = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    gain = 1.0 + np.clip(field * rng.uniform(0.02, 0.07), -0.15, 0.15)
    return np.clip(image * gain[..., None] + 0.5, 0, 255).astype(np.uint8)


def focus(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Slightly blurred or slightly sharpened."""
    soft = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.2))
    if rng.random() < 0.5:
        return soft
    return cv2.addWeighted(image, 1.5, soft, -0.5, 0.0)


def sensor(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fine grain of 1-4 grey levels."""
    grain = rng.uniform(1, 4) * random_fields.grain(image.shape[0], rng)
    return np.clip(image + grain[..., None] + 0.5, 0, 255).astype(np.uint8)


def pencil(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth stroke of 15-70 % of the side, 1-3 px wide at 224 px, 6-20 grey levels off."""
    side = image.shape[0]
    start = (int(rng.integers(side)), int(rng.integers(side)))
    points = shapes.curve(start, side * rng.uniform(0.15, 0.7), rng, bend=rng.uniform(0.0, 1.0))
    return _tinted(image, shapes.soften(shapes.stroke(side, points, side / 224 * rng.uniform(1, 3)), 1.0), rng)


def ring(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The outline of a circle of 5-25 % of the side in radius, as a cup or a suction pad leaves it."""
    side = image.shape[0]
    row, column = rng.uniform(0, side, 2)
    turn = np.linspace(0, 2 * np.pi, 48)
    reach = side * rng.uniform(0.05, 0.25)
    points = np.stack([column + reach * np.cos(turn), row + reach * np.sin(turn)], axis=1).astype(np.float32)
    return _tinted(image, shapes.soften(shapes.stroke(side, points, side / 224 * rng.uniform(1, 3)), 1.5), rng)


def smudge(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A blob of 4-15 % of the side in radius without an edge."""
    side = image.shape[0]
    centre = (int(rng.integers(side)), int(rng.integers(side)))
    radius = side * rng.uniform(0.04, 0.15)
    return _tinted(image, shapes.soften(shapes.blob(side, centre, radius, rng), 0.8 * radius), rng)


def _tinted(image: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    change = rng.uniform(6, 20) * rng.choice([-1.0, 1.0])
    return np.clip(image + (alpha * np.float32(change))[..., None] + 0.5, 0, 255).astype(np.uint8)


CHANGES: Mapping[str, Change] = MappingProxyType(
    {
        "exposure": exposure,
        "light": light,
        "focus": focus,
        "sensor": sensor,
        "pencil": pencil,
        "ring": ring,
        "smudge": smudge,
    }
)
