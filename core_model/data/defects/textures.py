"""Foreign texture in the outline of Perlin noise, as DRAEM does (Zavrtanik et al., 2021)."""

from __future__ import annotations

import numpy as np

from core_model.data import random_fields
from core_model.data.defects import shapes
from core_model.data.defects.base import Box, Canvas, Edit, blend, bounding_box, visible_mask


def perlin(canvas: Canvas, rng: np.random.Generator) -> Edit | None:
    """Regions where a Perlin field is high, inside a window of 15-60 % of the side, covered with another texture.

    DRAEM takes its textures from the DTD set; here they are made: another good picture out of order, inverted or
    recoloured, grain, or a plain tone. Opacity 0.3-1.
    """
    side = canvas.side
    row, column = canvas.point(rng)
    reach = rng.uniform(0.15, 0.6) * side / 2
    window = shapes.ellipse(side, (row, column), (reach, reach * rng.uniform(0.4, 1.0)), rng.uniform(0, 180))
    box = bounding_box(window)
    if box is None:
        return None
    heights = random_fields.field(side, rng, scales=(4, 8, 16, 32))
    inside = ((heights > rng.uniform(0.5, 1.2)) & (window > 0)).astype(np.uint8)
    if canvas.foreground is not None:
        inside &= canvas.foreground
    if not inside.any():
        return None
    alpha = shapes.soften(inside, rng.uniform(0.0, 2.0)) * rng.uniform(0.3, 1.0)
    box = bounding_box(alpha > 0)
    if box is None:
        return None
    image = blend(canvas.image, texture(canvas, rng, box), alpha, box)
    return Edit(image=image, mask=visible_mask(canvas.image, image, (alpha > 0.1).astype(np.uint8), threshold=10))


def texture(canvas: Canvas, rng: np.random.Generator, box: Box) -> np.ndarray:
    """uint8 (h, w, 3), the part in `box` of a texture that is unlike the picture at each place."""
    kind = int(rng.integers(4))
    side = canvas.side
    if kind == 0:  # another picture, shifted and turned
        donor = np.rot90(canvas.donor(), int(rng.integers(4)))
        shift = tuple(int(value) for value in rng.integers(side // 8, side, size=2))
        rows, columns = (np.arange(side)[piece] - by for piece, by in zip(box, shift, strict=True))
        return donor[rows[:, None], columns[None, :]]  # a negative index wraps around, as np.roll does
    if kind == 1:  # inverted about its own mean, which keeps the tone
        donor = canvas.donor().astype(np.float32)
        twice = 2 * donor.mean(axis=(0, 1))
        return np.clip(twice - donor[box] + rng.uniform(-30, 30), 0, 255).astype(np.uint8)
    tone = canvas.image[tuple(rng.integers(side, size=2))].astype(np.float32) + rng.uniform(-90, 90)
    if kind == 2:  # grain about a tone
        return np.clip(tone + rng.uniform(10, 40) * random_fields.grain(side, rng)[box][..., None], 0, 255).astype(
            np.uint8
        )
    return np.clip(tone + 12.0 * random_fields.field(side, rng)[box][..., None], 0, 255).astype(np.uint8)
