"""Drawn defects: scratches and blobs, darker or brighter than the surface around them."""

from __future__ import annotations

import numpy as np

from core_model.data import random_fields
from core_model.data.defects import shapes
from core_model.data.defects.base import Canvas, Edit, blend, bounding_box, visible_mask


def scratch(canvas: Canvas, rng: np.random.Generator) -> Edit | None:
    """A bent line of 10-60 % of the side and 1-3 px (at 224) with a tapering width and a wavering tone."""
    side = canvas.side
    points = shapes.curve(canvas.point(rng), side * rng.uniform(0.1, 0.6), rng, bend=rng.uniform(0.1, 1.5))
    taper = np.sin(np.linspace(0.15, np.pi - 0.15, len(points) - 1))
    widths = side / 224 * (0.6 + rng.uniform(0.5, 2.4) * taper)
    alpha = shapes.stroke(side, points, widths)
    alpha = np.maximum(alpha * rng.uniform(0.6, 1.0), 0.8 * shapes.soften(alpha, rng.uniform(0.0, 1.5)))
    return _shade(canvas, alpha, rng)


def spot(canvas: Canvas, rng: np.random.Generator) -> Edit | None:
    """A blob of 1.5-12 % of the side in radius with a soft or hard edge."""
    side = canvas.side
    radius = side * float(np.exp(rng.uniform(np.log(0.015), np.log(0.12))))
    inside = shapes.blob(side, canvas.point(rng), radius, rng)
    return _shade(canvas, shapes.soften(inside, rng.uniform(0.0, 0.4) * radius), rng)


def _shade(canvas: Canvas, alpha: np.ndarray, rng: np.random.Generator) -> Edit | None:
    """Darkens or brightens by 25-120 grey levels in the outline `alpha`, with a little grain."""
    if canvas.foreground is not None:
        alpha = alpha * canvas.foreground
    box = bounding_box(alpha > 0.02)
    if box is None:
        return None
    own, inside = canvas.image[box], alpha[box] > 0.3
    if not inside.any():
        return None
    darker = rng.random() < (0.65 if own[inside].mean() > 60 else 0.2)
    change = rng.uniform(25, 120) * (-1 if darker else 1)
    hue = rng.uniform(0.85, 1.15, 3).astype(np.float32)
    if canvas.is_grey:
        hue[:] = hue.mean()
    grain = random_fields.grain(canvas.side, rng, shape=inside.shape)[..., None] * (0.12 * abs(change))
    paint = own + change * hue + grain
    image = blend(canvas.image, paint, alpha, box)
    return Edit(image=image, mask=visible_mask(canvas.image, image, (alpha > 0.15).astype(np.uint8), threshold=8))
