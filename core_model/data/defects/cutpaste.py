"""CutPaste (Li et al., 2021): a piece of a good picture pasted elsewhere, edges and all; thin, it is a scar."""

from __future__ import annotations

import cv2
import numpy as np

from core_model.data.defects.base import Canvas, Edit, visible_mask


def cutpaste(canvas: Canvas, rng: np.random.Generator) -> Edit | None:
    """Patch of 0.5-8 % of the picture (the paper: 2-15 %; real defects are smaller), aspect 0.3-3.3, turned up to 45
    degrees, with the paper's colour jitter."""
    area = canvas.side**2 * np.exp(rng.uniform(np.log(0.005), np.log(0.08)))
    aspect = np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
    width, height = np.sqrt(area * aspect), np.sqrt(area / aspect)
    return _paste(canvas, rng, width, height, rng.uniform(-45, 45))


def scar(canvas: Canvas, rng: np.random.Generator) -> Edit | None:
    """Long thin patch: 1-7 % x 8-30 % of the side, turned at will (the paper: 2-16 x 10-25 px of 256)."""
    width = canvas.side * rng.uniform(0.01, 0.07)
    height = canvas.side * rng.uniform(0.08, 0.30)
    return _paste(canvas, rng, width, height, rng.uniform(-90, 90))


def _paste(canvas: Canvas, rng: np.random.Generator, width: float, height: float, angle: float) -> Edit | None:
    side = canvas.side
    columns, rows = (min(side, max(2, round(value))) for value in (width, height))
    source = canvas.image if rng.random() < 0.5 else canvas.donor()
    top, left = int(rng.integers(side - rows + 1)), int(rng.integers(side - columns + 1))
    patch = source[top : top + rows, left : left + columns].astype(np.float32)
    contrast, brightness = rng.uniform(0.7, 1.3), rng.uniform(-40, 40)
    mean = patch.mean()
    patch = np.clip((patch - mean) * contrast + mean + brightness, 0, 255).astype(np.uint8)
    row, column = canvas.point(rng)
    turn = cv2.getRotationMatrix2D((columns / 2, rows / 2), angle, 1.0)
    turn[:, 2] += np.array([column - columns / 2, row - rows / 2])
    pasted = cv2.warpAffine(patch, turn, (side, side), flags=cv2.INTER_LINEAR)
    inside = cv2.warpAffine(np.ones((rows, columns), np.uint8), turn, (side, side), flags=cv2.INTER_NEAREST)
    if canvas.foreground is not None:
        inside = inside * canvas.foreground
    image = np.where(inside[..., None] > 0, pasted, canvas.image)
    return Edit(image=image, mask=visible_mask(canvas.image, image, inside, threshold=10))
