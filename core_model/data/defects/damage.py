"""Missing or broken material: fissures, pits, chipped edges."""

from __future__ import annotations

import cv2
import numpy as np

from core_model.data import random_fields
from core_model.data.defects import shapes
from core_model.data.defects.base import Canvas, Edit, blend, bounding_box, darken, visible_mask


def fissure(canvas: Canvas, rng: np.random.Generator) -> Edit | None:
    """A jagged dark line of 10-100 % of the side, 1-4 px wide at 224, sometimes with branches.

    It keeps its direction on the whole and swerves at each step, as cracks in brittle material do; a scratch
    (`marks.scratch`) bends smoothly.
    """
    side = canvas.side
    unit = side / 224
    alpha = np.zeros((side, side), np.float32)
    start = np.array(canvas.point(rng)[::-1], np.float64)
    heading = rng.uniform(0.0, 2.0 * np.pi)
    length = side * float(np.exp(rng.uniform(np.log(0.1), np.log(1.0))))
    width = unit * float(np.exp(rng.uniform(np.log(1.0), np.log(4.0))))
    points = _walk(start, heading, length, unit, rng)
    alpha = np.maximum(alpha, shapes.stroke(side, points, _widths(width, len(points) - 1, rng)))
    for _ in range(int(rng.integers(3)) if rng.random() < 0.4 else 0):
        root = points[int(rng.integers(len(points)))].astype(np.float64)
        branch = _walk(root, heading + rng.choice([-1, 1]) * rng.uniform(0.4, 1.2), length * 0.3, unit, rng)
        alpha = np.maximum(alpha, shapes.stroke(side, branch, _widths(0.6 * width, len(branch) - 1, rng)))
    if canvas.foreground is not None:
        alpha = alpha * canvas.foreground
    opacity = shapes.soften(alpha, rng.uniform(0.0, 1.0)) * np.float32(rng.uniform(0.6, 1.0))
    # A crack swallows light: it is dark against whatever surface it runs through.
    image = darken(canvas.image, opacity, rng.uniform(0.1, 0.6))
    return Edit(image=image, mask=visible_mask(canvas.image, image, (alpha > 0.2).astype(np.uint8), threshold=6))


def pit(canvas: Canvas, rng: np.random.Generator) -> Edit | None:
    """One to four small holes close together, 0.8-5 % of the side in radius: dark inside, lit along one rim."""
    side = canvas.side
    row, column = canvas.point(rng)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    inside = np.zeros((side, side), np.uint8)
    for _ in range(1 if rng.random() < 0.6 else int(rng.integers(2, 5))):
        radius = side * float(np.exp(rng.uniform(np.log(0.008), np.log(0.05))))
        offset = rng.normal(0.0, 0.06 * side, 2)
        down, right = (int(value) for value in np.clip(np.array([row, column]) + offset, 0, side - 1))
        radii = (radius * rng.uniform(1.0, 2.2), radius)
        inside |= shapes.ellipse(side, (down, right), radii, np.degrees(angle) + rng.normal(0, 10))
    if canvas.foreground is not None:
        inside &= canvas.foreground
    depth = shapes.soften(inside, rng.uniform(0.0, 2.0) * side / 224)
    image = darken(canvas.image, depth, rng.uniform(0.1, 0.65))
    if rng.random() < 0.6:
        rim = cv2.dilate(inside, np.ones((3, 3), np.uint8)) - inside
        slope = np.roll(depth, (int(rng.integers(-2, 3)), int(rng.integers(-2, 3))), axis=(0, 1)) - depth
        lit = rim * np.clip(slope * 2, 0, 1)
        box = bounding_box(lit > 0)
        if box is not None:
            image = blend(image, np.minimum(image[box] + np.float32(50.0), 255), lit, box)
    reach = cv2.dilate(inside, np.ones((3, 3), np.uint8))
    return Edit(image=image, mask=visible_mask(canvas.image, image, reach, threshold=8))


def chip(canvas: Canvas, rng: np.random.Generator) -> Edit | None:
    """A piece broken off at the edge of the object or of the picture, 2-10 % of the side across: rough and off-tone."""
    side = canvas.side
    spot = _edge_point(canvas, rng)
    radius = side * float(np.exp(rng.uniform(np.log(0.02), np.log(0.10))))
    inside = shapes.blob(side, spot, radius, rng)
    if canvas.foreground is not None:
        inside &= canvas.foreground
    if not inside.any():
        return None
    alpha = shapes.soften(inside, rng.uniform(0.0, 1.5)) * np.float32(rng.uniform(0.7, 1.0))
    box = bounding_box(alpha > 0)
    assert box is not None
    shape = alpha[box].shape
    tone = canvas.image[box].mean(axis=(0, 1), dtype=np.float32)
    if rng.random() < 0.7:
        tone *= rng.uniform(0.2, 0.8)
    else:
        tone = np.minimum(tone * rng.uniform(1.2, 1.7) + 15, 255)
    rough = random_fields.field(side, rng, scales=(16, 32), shape=shape) * rng.uniform(4, 18)
    rough = rough + random_fields.grain(side, rng, shape=shape) * rng.uniform(2, 8)
    image = blend(canvas.image, np.clip(tone + rough[..., None], 0, 255), alpha, box)
    return Edit(image=image, mask=visible_mask(canvas.image, image, inside, threshold=8))


def _walk(start: np.ndarray, heading: float, length: float, unit: float, rng: np.random.Generator) -> np.ndarray:
    """float32 (N, 2) as (column, row): a random walk with steps of 3-9 px (at 224) about a heading that drifts."""
    count = max(3, int(length / (6.0 * unit)))
    drift = np.cumsum(rng.normal(0.0, 0.06, count))
    headings = heading + drift + rng.normal(0.0, 0.45, count)
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * rng.uniform(3.0, 9.0, (count, 1)) * unit
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)]).astype(np.float32)


def _widths(width: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Segment widths: thinning towards the tip, wavering by a third."""
    return width * np.linspace(1.0, 0.5, count) * rng.uniform(0.67, 1.33, count)


def _edge_point(canvas: Canvas, rng: np.random.Generator) -> tuple[int, int]:
    """(row, column) on the outline of the object, or near the picture's border where the object fills it."""
    side = canvas.side
    if canvas.foreground is not None:
        whole = canvas.foreground.astype(np.uint8)
        outline = np.flatnonzero(whole - cv2.erode(whole, np.ones((3, 3), np.uint8)))
        if outline.size:
            return divmod(int(outline[rng.integers(outline.size)]), side)
    along = int(rng.integers(side))
    across = int(rng.integers(0, max(1, side // 20)))
    row, column = ((along, across), (across, along))[int(rng.integers(2))]
    return (row, column) if rng.random() < 0.5 else (side - 1 - row, side - 1 - column)
