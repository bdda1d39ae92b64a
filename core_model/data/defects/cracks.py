"""Thin cracks as they are in photographs: narrower than a pixel in places, faint in others, forked."""

from __future__ import annotations

import itertools

import cv2
import numpy as np

from core_model.data import random_fields
from core_model.data.defects import shapes
from core_model.data.defects.base import Canvas, Edit, darken, visible_mask

FINER = 3  # lines are drawn at this many times the side and averaged: widths below one pixel become faint ones
BRANCHES = 4


def crack(canvas: Canvas, rng: np.random.Generator) -> Edit | None:
    """A path of 8-90 % of the side, 0.5-2.5 px wide at 224 px, with up to four branches, fading along its way.

    `damage.fissure` is a bold jagged line. This one is what inspectors miss: 15-65 % darker than the surface, with
    steps of 2-5 px that turn often and little and now and then sharply (it goes around grains), each branch thinner
    than what it leaves, opacity wavering along the path and dying out at the tips.
    """
    side = canvas.side
    unit = side / 224
    length = side * float(np.exp(rng.uniform(np.log(0.08), np.log(0.9))))
    width = unit * float(np.exp(rng.uniform(np.log(0.5), np.log(2.5))))
    start = np.array(canvas.point(rng)[::-1], np.float64)
    alpha = _drawn(side, _tree(start, rng.uniform(0.0, 2.0 * np.pi), length, width, unit, rng))
    if canvas.foreground is not None:
        alpha = alpha * canvas.foreground
    fading = 0.75 + 0.25 * np.clip(random_fields.field(side, rng, scales=(8, 16)), -1.5, 1.0)
    opacity = shapes.soften(np.clip(alpha * fading, 0, 1).astype(np.float32), rng.uniform(0.0, 1.2))
    image = darken(canvas.image, opacity, rng.uniform(0.35, 0.85))
    return Edit(image=image, mask=visible_mask(canvas.image, image, (alpha > 0.15).astype(np.uint8), threshold=5))


def _tree(
    start: np.ndarray, heading: float, length: float, width: float, unit: float, rng: np.random.Generator
) -> list[tuple[np.ndarray, float]]:
    """(points (N, 2) as (column, row), width in pixels) of the path and its branches."""
    trunk = _path(start, heading, length, unit, rng)
    found = [(trunk, width)]
    for _ in range(int(rng.integers(BRANCHES + 1)) if rng.random() < 0.6 else 0):
        parent, own = found[int(rng.integers(len(found)))]
        place = int(rng.integers(len(parent) - 1))
        ahead = parent[place + 1] - parent[place]
        turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.35, 1.1)
        reach = length * rng.uniform(0.1, 0.45)
        found.append((_path(parent[place], float(np.arctan2(ahead[1], ahead[0])) + turn, reach, unit, rng), 0.7 * own))
    return found


def _path(start: np.ndarray, heading: float, length: float, unit: float, rng: np.random.Generator) -> np.ndarray:
    """float64 (N, 2): small turns at each step, a sharp one at one of twelve, about a direction that drifts."""
    count = max(4, int(length / (3.5 * unit)))
    sharp = (rng.random(count) < 1 / 12) * rng.normal(0.0, 0.9, count)
    headings = heading + np.cumsum(rng.normal(0.0, 0.08, count)) + rng.normal(0.0, 0.3, count) + sharp
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * rng.uniform(2.0, 5.0, (count, 1)) * unit
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


def _drawn(side: int, tree: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """float32 (side, side): the share of each pixel that the lines cover; each thins towards its end."""
    canvas = np.zeros((side * FINER, side * FINER), np.uint8)
    for points, width in tree:
        places = [(int(column), int(row)) for column, row in np.round(points * FINER)]
        for step, (begin, end) in enumerate(itertools.pairwise(places)):
            taper = 1.0 - 0.6 * step / len(places)
            cv2.line(canvas, begin, end, 255, max(1, round(taper * FINER * width)))
    return cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0
