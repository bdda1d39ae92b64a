"""An anomaly map beside and over its picture, as one PNG with a legend.

Colours are cividis (Nuñez, Anderton, Renslow 2018): brightness and hue rise together, so it reads alike with any common
colour blindness and in grey print. Besides the colour, an outline marks the upper half of the scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST = 320, 768  # pixels of the longer side of each panel
NARROWEST = 260  # pixels kept for each panel, so that the legend of a tall picture can be read
MARGIN = 12
OPACITY = 0.7  # of the map over the grey picture
_INK, _PAPER, _EDGE = (20, 20, 20), (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What the colours mean: values `low` to `high` of `label`."""

    low: float
    high: float
    label: str

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    def share(self, grid: np.ndarray) -> np.ndarray:
        """Values as 0..1 of the scale, clipped; what is not finite counts as 0."""
        shares = (grid.astype(np.float32) - self.low) / max(self.high - self.low, 1e-12)
        return np.clip(np.nan_to_num(shares, nan=0.0), 0.0, 1.0)


def heat(shares: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) cividis colours of values (H, W) in 0..1."""
    return _cividis()[np.rint(shares * 255).astype(np.uint8)]


def overlay(picture: np.ndarray, grid: np.ndarray, scale: Scale, *, caption: str = "") -> Image.Image:
    """The picture with the suspicious region outlined, beside it the map over the grey picture, below them the legend.

    picture: uint8 (H, W, 3). grid: float (S, S), its map; it is stretched to the picture's shape.
    """
    picture = _fitted(picture)
    height, width = picture.shape[:2]
    shares = scale.share(cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR))
    grey = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
    over = np.rint(OPACITY * heat(shares) + (1 - OPACITY) * grey).astype(np.uint8)
    panels = [outlined(picture, shares), outlined(over, shares)]

    font = ImageFont.load_default(size=15)
    line = 22
    top = MARGIN + (line if caption else 0)
    slot = max(width, NARROWEST)
    sheet = Image.new("RGB", (2 * slot + 3 * MARGIN, top + height + 2 * MARGIN + 3 * line), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if caption:
        draw.text((MARGIN, MARGIN - 4), _cut(draw, caption, font, 2 * slot + MARGIN), fill=_INK, font=font)
    for index, panel in enumerate(panels):
        sheet.paste(Image.fromarray(panel), (MARGIN + index * (slot + MARGIN), top))
    _legend(sheet, draw, font, scale, x=2 * MARGIN + slot, y=top + height + MARGIN // 2, width=slot, line=line)
    return sheet


def outlined(picture: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """A copy with a white line on a black one around what lies above the middle of the scale."""
    drawn = np.ascontiguousarray(picture)
    drawn = drawn.copy() if drawn is picture else drawn
    regions, _ = cv2.findContours((shares > 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, regions, -1, _EDGE, 4)
    cv2.drawContours(drawn, regions, -1, _PAPER, 2)
    return drawn


def _legend(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, font: Any, scale: Scale, *, x: int, y: int, width: int, line: int
) -> None:
    """The colour bar under the map with its numbers and what they are, and what the outline means."""
    bar = heat(np.tile(np.linspace(0, 1, width, dtype=np.float32), (line // 2, 1)))
    sheet.paste(Image.fromarray(bar), (x, y))
    below = y + line // 2 + 2
    for share, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
        value = scale.low + share * (scale.high - scale.low)
        draw.text((x + share * width, below), f"{value:.3g}", fill=_INK, font=font, anchor=anchor)
    draw.text((x, below + line - 4), _cut(draw, scale.label, font, width), fill=_INK, font=font)
    left = f"outline: above {scale.middle:.3g}"
    draw.text((MARGIN, below), _cut(draw, left, font, width), fill=_INK, font=font)


def _fitted(picture: np.ndarray) -> np.ndarray:
    """The picture with its longer side between SMALLEST and LARGEST."""
    height, width = picture.shape[:2]
    factor = np.clip(max(height, width), SMALLEST, LARGEST) / max(height, width)
    if factor == 1:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def _cut(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """`text`, shortened until it is at most `width` pixels wide."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."


@cache
def _cividis() -> np.ndarray:
    import matplotlib

    return np.rint(matplotlib.colormaps["cividis"](np.arange(256))[:, :3] * 255).astype(np.uint8)
