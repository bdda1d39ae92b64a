"""Charts of the report as inline SVG: drawn here, so that they show without JavaScript and print; the page's script
adds reading of values by pointer and keys and hiding of series.

Coordinates are in a 520 x 330 box that the page scales to its column. Colours are the page's variables --s0 .. --s7
(light and dark), so a chart follows the page's theme. Each series also has its own dash pattern and marker.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from harness.common import colors, formatting
from harness.common.formatting import is_number

WIDTH, HEIGHT = 520, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 32, 48
MARKERS = ("circle", "square", "triangle", "diamond", "down", "plus", "cross", "star")


@dataclass(frozen=True, kw_only=True)
class Series:
    """points: (x, y) or (x, y, low, high). slot: which of the eight styles. faint: a repeat beside its first run."""

    label: str
    points: Sequence[Sequence[float]]
    slot: int = 0
    faint: bool = False
    markers: bool = True
    ideal: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """scale: linear or log2. ticks: fixed tick values. from_zero: a linear axis that begins at 0."""

    label: str
    scale: str = "linear"
    ticks: Sequence[float] = ()
    from_zero: bool = False
    form: Callable[[float], str] = formatting.number

    def tick_form(self, ticks: Sequence[float]) -> Callable[[float], str]:
        """How ticks are written: with as many decimals as their distance needs, the same at every tick."""
        if self.form is not formatting.number or self.scale != "linear" or len(ticks) < 2:
            return self.form
        places = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
        return lambda value: f"{value:.{places}f}"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What the template shows: the drawing, the data for the script, and the words for those who do not see it."""

    id: str
    title: str
    description: str
    svg: str
    data: str
    legend: Sequence[dict[str, Any]]
    note: str = ""


def line_chart(
    id: str, title: str, series: Sequence[Series], x: Axis, y: Axis, *, description: str = "", note: str = ""
) -> Chart | None:
    """A line chart, None where no series has a point."""
    series = [item for item in series if item.points]
    if not series:
        return None
    xs = [point[0] for item in series for point in item.points]
    ys = [value for item in series for point in item.points for value in point[1:] if value is not None]
    to_x, x_ticks = scale(xs, x, LEFT, WIDTH - RIGHT)
    to_y, y_ticks = scale(ys, y, HEIGHT - BOTTOM, TOP)
    parts = _grid(to_x, x_ticks, x, to_y, y_ticks, y)
    data: list[dict[str, Any]] = []
    for number, item in enumerate(series):
        places = [(to_x(point[0]), to_y(point[1])) for point in item.points]
        path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
        kind = "ideal" if item.ideal else "faint" if item.faint else "line"
        slot = item.slot % len(MARKERS)
        parts.append(f'<g class="series {kind} c{slot}" data-series="{number}">')
        dash = "2 4" if item.ideal else colors.dash_of(slot)
        parts.append(f'<path d="{path}"{f" stroke-dasharray={chr(34)}{dash}{chr(34)}" if dash else ""}/>')
        if not item.ideal:
            parts += [
                _whisker(to_x(point[0]), to_y(point[2]), to_y(point[3])) for point in item.points if len(point) > 3
            ]
            if item.markers:
                parts += [marker(slot, px, py) for px, py in places]
            values = [
                [round(px, 1), round(py, 1), x.form(point[0]), value_text(y, point)]
                for (px, py), point in zip(places, item.points, strict=True)
            ]
            data.append({"series": number, "label": item.label, "slot": slot, "points": values})
        parts.append("</g>")
    legend = _legend(series)
    return Chart(
        id=id,
        title=title,
        description=description or _describe(series, x, y),
        svg=svg(id, title, parts),
        data=data_json({"x": x.label, "y": y.label, "series": data}),
        legend=legend,
        note=note,
    )


def thin(points: Sequence[tuple[float, float]], most: int = 150) -> list[tuple[float, float]]:
    """At most `most` of `points`, evenly chosen, the first and the last always among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


def scale(
    values: Sequence[float], axis: Axis, begin: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """value -> coordinate, and the ticks."""
    finite = [value for value in values if is_number(value)]
    low, high = min(finite), max(finite)
    if axis.scale == "log2":
        a, b = math.log2(low), math.log2(high)
        margin = max(0.12, 0.06 * (b - a))
        a, b = a - margin, max(b + margin, a + 0.5)
        ticks = list(axis.ticks) or _log2_ticks(a, b)
        return (lambda value: begin + (math.log2(max(value, 1e-12)) - a) / (b - a) * (end - begin)), ticks
    if axis.from_zero:
        low = min(0.0, low)
    if high - low < 1e-12:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    margin = 0.04 * (high - low)
    a = low if axis.from_zero and low >= 0 else low - margin
    b = high + margin
    ticks = list(axis.ticks) or _nice_ticks(a, b)
    return (lambda value: begin + (value - a) / (b - a) * (end - begin)), ticks


def _nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log2_ticks(low: float, high: float) -> list[float]:
    """Powers of two, or fractions of octaves where fewer than three would show."""
    ticks: list[float] = []
    for steps in (1, 2, 4, 8):
        ticks = [2 ** (index / steps) for index in range(math.ceil(low * steps), math.floor(high * steps) + 1)]
        if len(ticks) >= 3:
            break
    return ticks


def _grid(to_x: Any, x_ticks: Sequence[float], x: Axis, to_y: Any, y_ticks: Sequence[float], y: Axis) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    x_form, y_form = x.tick_form(x_ticks), y.tick_form(y_ticks)
    parts = []
    for tick in y_ticks:
        at = to_y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(y_form(tick))}</text>'
        )
    for tick in x_ticks:
        at = to_x(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{escape(x_form(tick))}</text>'
        )
    parts.append(f'<path class="frame" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>')
    # Above the axis and not turned: it can be read on a phone and never meets the ticks.
    parts.append(f'<text class="axis" x="2" y="14">{escape(y.label)}</text>')
    return parts


def marker(slot: int, x: float, y: float) -> str:
    """Eight shapes, told apart in grey."""
    kind, r = MARKERS[slot], 4.5
    if kind == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    shapes = {
        "square": f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        "triangle": f"M{x:.1f} {y - r - 1:.1f}l{r + 1} {2 * r}h{-2 * r - 2}z",
        "diamond": f"M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z",
        "down": f"M{x:.1f} {y + r + 1:.1f}l{r + 1} {-2 * r}h{-2 * r - 2}z",
        "plus": f"M{x - 1.5:.1f} {y - r:.1f}h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
        "cross": f"M{x - r:.1f} {y - 2.5:.1f}l2 -2l2.5 2.5l2.5 -2.5l2 2l-2.5 2.5l2.5 2.5l-2 2l-2.5 -2.5l-2.5 2.5l-2 -2"
        "l2.5 -2.5z",
        "star": f"M{x:.1f} {y - r - 1:.1f}l1.7 3.6l3.8 .5l-2.8 2.7l.7 3.9l-3.4 -1.9l-3.4 1.9l.7 -3.9l-2.8 -2.7"
        "l3.8 -.5z",
    }
    return f'<path class="mark" d="{shapes[kind]}"/>'


def _whisker(x: float, low: float, high: float) -> str:
    return f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"/>'


def value_text(axis: Axis, point: Sequence[float]) -> str:
    """The value of a point in words, with its ends where it has them."""
    text = axis.form(point[1])
    return f"{text} ({axis.form(point[2])} to {axis.form(point[3])})" if len(point) > 3 else text


def _legend(series: Sequence[Series]) -> list[dict[str, Any]]:
    """One entry per label; it shows and hides all the series of that label."""
    entries: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(series):
        entry = entries.setdefault(
            item.label,
            {"label": item.label, "slot": item.slot % len(MARKERS), "series": [], "bar": False, "swatch": ""},
        )
        entry["series"].append(number)
        if item.ideal and not entry["swatch"]:
            entry["swatch"] = _swatch(item.slot % len(MARKERS), "2 4")
        if not item.ideal and (not entry["swatch"] or "mark" not in entry["swatch"]):
            dash = colors.dash_of(item.slot % len(MARKERS))
            entry["swatch"] = _swatch(item.slot % len(MARKERS), dash)
    return list(entries.values())


def _swatch(slot: int, dash: str) -> str:
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<svg class="swatch series c{slot}" viewBox="0 0 34 14" width="34" height="14" aria-hidden="true">'
        f'<path d="M1 7H33"{pattern}/>{marker(slot, 17, 7)}</svg>'
    )


def _describe(series: Sequence[Series], x: Axis, y: Axis) -> str:
    """First and last values of each line in words."""
    sentences = []
    for item in series:
        if item.ideal or item.faint:
            continue
        first, last = item.points[0], item.points[-1]
        sentences.append(
            f"{item.label}: {y.form(first[1])} at {x.form(first[0])}"
            + (f", {y.form(last[1])} at {x.form(last[0])}" if len(item.points) > 1 else "")
        )
    return f"{y.label} over {x.label}. " + "; ".join(sentences) + "."


def svg(id: str, title: str, parts: Sequence[str], height: int = HEIGHT) -> str:
    """The drawing with its title."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{id}-title" focusable="false">'
        f'<title id="{id}-title">{escape(title)}</title>{"".join(parts)}</svg>'
    )


def data_json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
