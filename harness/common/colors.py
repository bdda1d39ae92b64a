"""How a series looks, the same in every plot, chart and table: Okabe and Ito's colours, which people with any common
colour blindness tell apart, and besides them a marker and a dash pattern, for print in grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Style:
    """light, dark: line colours on white and on near-black paper (contrast at least 3:1, WCAG 1.4.11). marker: for
    matplotlib. dash: SVG stroke-dasharray, "" = solid."""

    light: str
    dark: str
    marker: str
    dash: str


# Okabe & Ito (2008), "Color Universal Design"; the light ones are darkened for white paper, the dark ones lightened.
_STYLES = (
    Style(light="#0072B2", dark="#56B4E9", marker="o", dash=""),
    Style(light="#C14E00", dark="#FF9A4D", marker="s", dash="7 3"),
    Style(light="#007A5A", dark="#2FD0A5", marker="^", dash="2 3"),
    Style(light="#A8518A", dark="#E39CC8", marker="D", dash="9 3 2 3"),
    Style(light="#8A6A00", dark="#F0D000", marker="v", dash="5 2 1 2 1 2"),
    Style(light="#4B4B4B", dark="#C9C9C9", marker="P", dash="1 2"),
    Style(light="#3B55C0", dark="#93A8FF", marker="X", dash="12 3"),
    Style(light="#8C2D2D", dark="#FF8F8F", marker="*", dash="4 4"),
)


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """A style for each label by its position; more than eight share colours but not names."""
    return {label: _STYLES[position % len(_STYLES)] for position, label in enumerate(labels)}


def all_styles() -> Sequence[Style]:
    """The eight styles by their numbers."""
    return _STYLES


def dashes(style: Style) -> tuple[float, ...] | None:
    """The dash pattern for matplotlib, None for a solid line."""
    return tuple(float(part) / 2 for part in style.dash.split()) if style.dash else None


def dash_of(slot: int) -> str:
    """The SVG dash pattern of style number `slot`."""
    return _STYLES[slot % len(_STYLES)].dash


def css(theme: str) -> str:
    """The eight colours as CSS variables --s0 .. --s7; theme: light or dark."""
    return "".join(f"--s{slot}:{getattr(style, theme)};" for slot, style in enumerate(_STYLES))
