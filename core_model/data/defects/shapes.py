"""Outlines of defects as uint8 (S, S) masks of 0 and 1, or float32 opacities in 0..1."""

from __future__ import annotations

import cv2
import numpy as np


def ellipse(side: int, centre: tuple[int, int], radii: tuple[float, float], angle: float) -> np.ndarray:
    """Filled ellipse; centre = (row, column), radii in pixels, angle in degrees."""
    mask = np.zeros((side, side), np.uint8)
    axes = (max(1, round(radii[0])), max(1, round(radii[1])))
    cv2.ellipse(mask, (centre[1], centre[0]), axes, angle, 0, 360, 1, -1)
    return mask


def rectangle(side: int, centre: tuple[int, int], sides: tuple[float, float], angle: float) -> np.ndarray:
    """Filled turned rectangle; sides = (width, height) in pixels."""
    corners = cv2.boxPoints(((float(centre[1]), float(centre[0])), (float(sides[0]), float(sides[1])), float(angle)))
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    return mask


def blob(side: int, centre: tuple[int, int], radius: float, rng: np.random.Generator) -> np.ndarray:
    """Irregular outline around `centre`: a circle whose radius wavers by low frequencies, stretched and turned."""
    angles = np.linspace(0.0, 2.0 * np.pi, 40, endpoint=False)
    reach = np.ones_like(angles)
    for frequency in (1, 2, 3, 5):
        reach += rng.uniform(0.0, 0.45 / frequency) * np.cos(frequency * angles + rng.uniform(0.0, 2.0 * np.pi))
    reach = radius * np.clip(reach, 0.25, 2.0)
    stretch, turn = rng.uniform(0.5, 1.0), rng.uniform(0.0, np.pi)
    across, along = reach * np.cos(angles), reach * np.sin(angles) * stretch
    columns = centre[1] + across * np.cos(turn) - along * np.sin(turn)
    rows = centre[0] + across * np.sin(turn) + along * np.cos(turn)
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, [np.round(np.stack([columns, rows], axis=1)).astype(np.int32)], 1)
    return mask


def curve(
    start: tuple[int, int], length: float, rng: np.random.Generator, *, bend: float, segments: int = 24
) -> np.ndarray:
    """Points of a smooth bent line: float32 (segments + 1, 2) as (column, row). bend: spread of the turn, radians."""
    wander = np.cumsum(rng.normal(0.0, bend / segments, segments))
    sweep = rng.normal(0.0, bend) * np.linspace(-0.5, 0.5, segments)
    headings = rng.uniform(0.0, 2.0 * np.pi) + wander + sweep
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / segments)
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    points -= points[segments // 2]
    return (points + np.array([start[1], start[0]])).astype(np.float32)


def stroke(side: int, points: np.ndarray, widths: np.ndarray | float) -> np.ndarray:
    """Anti-aliased line through `points` (column, row): float32 (side, side) in 0..1. widths: pixels, a segment."""
    shift = 4  # fixed-point bits below one pixel
    canvas = np.zeros((side, side), np.uint8)
    fixed = np.round(points * (1 << shift)).astype(np.int32)
    every = np.broadcast_to(np.asarray(widths, np.float32), len(points) - 1)
    for begin, end, width in zip(fixed[:-1], fixed[1:], every, strict=True):
        thickness = max(1, round(float(width)))
        cv2.line(canvas, tuple(map(int, begin)), tuple(map(int, end)), 255, thickness, cv2.LINE_AA, shift)
    return canvas.astype(np.float32) / 255.0


def soften(mask: np.ndarray, radius: float) -> np.ndarray:
    """float32 in 0..1: the mask with a soft edge of about `radius` pixels."""
    soft = mask.astype(np.float32)
    if radius < 0.5:
        return soft
    size = 2 * round(radius) + 1
    return cv2.GaussianBlur(soft, (size, size), radius / 2.0)
