"""A surface that is not as it should be over an area: stains, wear, unevenness. Large, low in contrast, with
an outline but no foreign object."""

from __future__ import annotations

import cv2
import numpy as np

from core_model.data import random_fields
from core_model.data.defects import shapes
from core_model.data.defects.base import Canvas, Edit, blend, bounding_box


def stain(canvas: Canvas, rng: np.random.Generator) -> Edit | None:
    """A blob of 6-22 % of the side in radius in which the texture is muted and the tone shifted."""
    side = canvas.side
    inside = shapes.blob(side, canvas.point(rng), side * rng.uniform(0.06, 0.22), rng)
    if canvas.foreground is not None:
        inside &= canvas.foreground
    alpha = shapes.soften(inside, side * rng.uniform(0.003, 0.03)) * np.float32(rng.uniform(0.6, 1.0))
    box = bounding_box(alpha > 0)
    if box is None:
        return None
    own = canvas.image[box]
    soft = cv2.GaussianBlur(own, (0, 0), side * rng.uniform(0.005, 0.03)).astype(np.float32)
    paint = soft + rng.uniform(0.0, 0.4) * (own - soft)
    paint *= rng.uniform(0.6, 1.0) if rng.random() < 0.7 else rng.uniform(1.0, 1.35)
    image = blend(canvas.image, np.clip(paint, 0, 255), alpha, box)
    return Edit(image=image, mask=(alpha > 0.3).astype(np.uint8))


def wear(canvas: Canvas, rng: np.random.Generator) -> Edit | None:
    """A part of the picture behind a wavy front, 4-45 % of it, in which contrast and tone differ from the rest, as
    uneven grinding, polish or coating leave it."""
    side = canvas.side
    angle = rng.uniform(0.0, 2.0 * np.pi)
    if rng.random() < 0.7:  # machining runs along the axes more often than not
        angle = int(rng.integers(4)) * np.pi / 2 + rng.normal(0.0, 0.12)
    centred = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    down, right = float(np.sin(angle)), float(np.cos(angle))
    distance = centred[:, None] * down + centred[None, :] * right
    coarse = np.sort(distance[::8, ::8].ravel())
    distance += random_fields.field(side, rng, scales=(2, 4)) * rng.uniform(0.0, 0.03)
    share = rng.uniform(0.04, 0.45)
    inside = distance > coarse[int((1.0 - share) * (len(coarse) - 1))]
    if rng.random() < 0.25:  # a band instead of everything beyond the front
        share *= rng.uniform(0.2, 0.6)
        inside &= distance < coarse[int((1.0 - share) * (len(coarse) - 1))]
    mask = inside.astype(np.uint8)
    if canvas.foreground is not None:
        mask &= canvas.foreground
    alpha = shapes.soften(mask, side * rng.uniform(0.0, 0.015))
    box = bounding_box(alpha > 0)
    if box is None:
        return None
    own = canvas.image[box]
    blurred = cv2.blur(own, (max(3, side // 12) | 1,) * 2).astype(np.float32)
    contrast = rng.uniform(1.3, 2.4) if rng.random() < 0.6 else rng.uniform(0.2, 0.7)
    paint = own - blurred
    paint *= contrast
    paint += blurred
    paint += own.mean(axis=(0, 1), dtype=np.float32) * np.float32(rng.uniform(-0.2, 0.2))
    if rng.random() < 0.5:  # the marks of the tool
        lines = rng.uniform(4, 16) * random_fields.field(side, rng, scales=(32,), shape=own.shape[:2])[:, :1]
        if rng.random() < 0.5:
            lines = rng.uniform(4, 16) * random_fields.field(side, rng, scales=(32,), shape=own.shape[:2])[:1]
        paint += lines[..., None]
    return Edit(image=blend(canvas.image, np.clip(paint, 0, 255, out=paint), alpha, box), mask=mask)


def uneven(canvas: Canvas, rng: np.random.Generator) -> Edit | None:
    """Clouds over 5-50 % of the picture, 20-45 % darker or 20-60 % brighter, with edges 1-5 % of the side wide.

    Uneven light that is no defect (`harmless.light`) stays within 15 % and has no edge at all.
    """
    side = canvas.side
    clouds = np.ascontiguousarray(random_fields.field(side, rng, scales=(2, 4)))
    share = rng.uniform(0.05, 0.5)
    coarse = np.sort(clouds[::8, ::8].ravel())
    inside = (clouds > coarse[int((1.0 - share) * (len(coarse) - 1))]).astype(np.uint8)
    if canvas.foreground is not None:
        inside &= canvas.foreground
    alpha = shapes.soften(inside, side * rng.uniform(0.01, 0.05))
    if canvas.foreground is not None:
        alpha = alpha * canvas.foreground
    box = bounding_box(alpha > 0)
    if box is None:
        return None
    own = canvas.image[box].astype(np.float32)
    gain = rng.uniform(0.55, 0.8) if rng.random() < 0.6 else rng.uniform(1.2, 1.6)
    soft = cv2.blur(own, (max(3, side // 16) | 1,) * 2)
    paint = (soft + rng.uniform(0.5, 1.5) * (own - soft)) * np.float32(gain)
    image = blend(canvas.image, np.clip(paint, 0, 255, out=paint), alpha, box)
    return Edit(image=image, mask=(alpha > 0.3).astype(np.uint8))
