"""The overlay: the outline is where the map is high, colours rise in brightness, the legend tells the scale."""

from __future__ import annotations

import numpy as np
import pytest

from harness.inference.overlay import LARGEST, MARGIN, NARROWEST, Scale, heat, outlined, overlay

UNIT = Scale(low=0.0, high=1.0, label="probability of a defect")


def test_colours_rise_in_brightness_and_are_no_red_against_green() -> None:
    """What makes a scale readable with any colour blindness and in grey print: luminance is strictly monotone."""
    colours = heat(np.linspace(0, 1, 32)[None]).astype(float)[0]
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert luminance[-1] - luminance[0] > 120


def test_shares_are_clipped_and_finite() -> None:
    scale = Scale(low=1.0, high=3.0, label="distance")
    np.testing.assert_allclose(scale.share(np.array([[0.0, 2.0, 9.0, np.nan]])), [[0.0, 0.5, 1.0, 0.0]])
    assert scale.middle == 2.0


def test_outline_surrounds_the_high_part_only() -> None:
    shares = np.zeros((60, 80), np.float32)
    shares[20:40, 10:30] = 0.9
    picture = np.full((60, 80, 3), 128, np.uint8)
    drawn = outlined(picture, shares)
    changed = (drawn != 128).any(axis=2)
    assert changed[19:22, 10:30].any()
    assert not changed[:, 40:].any()
    assert not changed[26:34, 16:24].any(), "the inside stays visible"
    assert (picture == 128).all(), "the picture itself is not drawn on"


@pytest.mark.parametrize("shape", [(30, 40), (1500, 700), (400, 60)])
def test_sheet_shows_picture_and_map_in_its_shape(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
    grid = np.zeros((56, 56), np.float32)
    grid[:18, 38:] = 1.0
    sheet = np.asarray(overlay(picture, grid, UNIT, caption="a caption that is longer than the sheet " * 9))
    factor = np.clip(max(shape), 320, LARGEST) / max(shape)
    height, width = round(shape[0] * factor), round(shape[1] * factor)
    slot = max(width, NARROWEST)
    assert sheet.shape[1] == 2 * slot + 3 * MARGIN
    left, top = 2 * MARGIN + slot, MARGIN + 22
    panel = sheet[top : top + height, left : left + width].astype(int)
    corner = panel[: height // 8, -width // 8 :].reshape(-1, 3).mean(axis=0)
    other = panel[-height // 8 :, : width // 8].reshape(-1, 3).mean(axis=0)
    assert corner[0] > corner[2] + 40, "yellow where the map is high (top right)"
    assert other[2] > other[0] + 20, "blue where it is low"
    legend = sheet[top + height + MARGIN // 2 + 2, left : left + slot]
    np.testing.assert_array_equal(legend[0], heat(np.zeros((1, 1)))[0, 0])
    np.testing.assert_array_equal(legend[-1], heat(np.ones((1, 1)))[0, 0])
