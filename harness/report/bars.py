"""Charts of rows: stacked parts of a whole, and engines ranked by one figure. Drawn like those of charts.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from harness.common.formatting import number
from harness.report.charts import RIGHT, WIDTH, Axis, Chart, Series, data_json, marker, scale, svg, value_text

_ROW, _FOOT = 34, 62


def stacked_bars(
    id: str,
    title: str,
    rows: Sequence[tuple[str, dict[str, float]]],
    parts: Sequence[str],
    *,
    unit: str,
    note: str = "",
) -> Chart | None:
    """Horizontal bars of named parts, one a row; None without rows. The parts' order is that of `parts`."""
    if not rows:
        return None
    most = max(sum(values.values()) for _, values in rows)
    left = min(190, 20 + 7 * max(len(label) for label, _ in rows))
    to_x, drawn = _frame([0, most], Axis(label=unit, from_zero=True), left, len(rows))
    data = []
    for position, (label, values) in enumerate(rows):
        top = 12 + _ROW * position
        drawn.append(f'<text class="tick" x="{left - 6}" y="{top + 16}" text-anchor="end">{escape(label)}</text>')
        done = 0.0
        points = []
        for slot, name in enumerate(parts):
            value = values.get(name, 0.0)
            begin, end = to_x(done), to_x(done + value)
            size = f'width="{max(0.0, end - begin):.1f}" height="24"'
            drawn.append(f'<rect class="bar c{slot % 8} h{slot % 8}" x="{begin:.1f}" y="{top}" {size}/>')
            points.append([round((begin + end) / 2, 1), top + 12, name, f"{number(value)} {unit}"])
            done += value
        data.append({"series": position, "label": label, "slot": -1, "points": points})
    legend = [{"label": name, "slot": slot % 8, "series": None, "bar": True} for slot, name in enumerate(parts)]
    words_of = "; ".join(
        f"{label}: " + ", ".join(f"{name} {number(values.get(name, 0.0))} {unit}" for name in parts)
        for label, values in rows
    )
    return Chart(
        id=id,
        title=title,
        description=words_of,
        svg=svg(id, title, drawn, _ROW * len(rows) + _FOOT),
        data=data_json({"x": "part", "y": unit, "series": data}),
        legend=legend,
        note=note,
    )


def ranked(id: str, title: str, series: Sequence[Series], *, unit: str, note: str = "") -> Chart | None:
    """One row an engine, highest first, from zero: the point (x ignored, value[, low, high]) of each series."""
    rows = sorted((item for item in series if item.points), key=lambda item: -item.points[0][1])
    if not rows:
        return None
    axis = Axis(label=unit, from_zero=True)
    to_x, drawn = _frame([0, *(value for item in rows for value in item.points[0][1:])], axis, 16, len(rows))
    data = []
    for position, item in enumerate(rows):
        point, top, slot = item.points[0], 12 + _ROW * position, item.slot % 8
        x, y = to_x(point[1]), top + 22
        drawn.append(f'<text class="tick" x="20" y="{top + 10}">{escape(item.label)}</text>')
        drawn.append(f'<g class="series line c{slot}" data-series="{position}"><path d="M{to_x(0):.1f} {y}H{x:.1f}"/>')
        if len(point) > 3:
            low, high = to_x(point[2]), to_x(point[3])
            ends = f"M{low:.1f} {y - 4}v8M{high:.1f} {y - 4}v8"
            drawn.append(f'<path class="whisker" d="M{low:.1f} {y}H{high:.1f}{ends}"/>')
        drawn.append(f"{marker(slot, x, y)}</g>")
        shown = [[round(x, 1), y, "", value_text(axis, point)]]
        data.append({"series": position, "label": item.label, "slot": slot, "points": shown})
    texts = "; ".join(f"{item.label}: {value_text(axis, item.points[0])}" for item in rows)
    return Chart(
        id=id,
        title=title,
        description=f"{unit}, highest first. {texts}.",
        svg=svg(id, title, drawn, _ROW * len(rows) + _FOOT),
        data=data_json({"x": "", "y": unit, "series": data}),
        legend=[],
        note=note,
    )


def _frame(values: Sequence[float], axis: Axis, left: float, rows: int) -> tuple[Callable[[float], float], list[str]]:
    """The horizontal axis below `rows` rows: value -> x, and what is drawn of it."""
    foot = _ROW * rows + _FOOT
    to_x, ticks = scale(values, axis, left, WIDTH - RIGHT)
    form = axis.tick_form(ticks)
    drawn = [
        f'<line class="grid" x1="{to_x(tick):.1f}" x2="{to_x(tick):.1f}" y1="8" y2="{foot - 44}"/>'
        f'<text class="tick" x="{to_x(tick):.1f}" y="{foot - 26}" text-anchor="middle">{form(tick)}</text>'
        for tick in ticks
    ]
    middle = f'x="{(left + WIDTH) / 2:.0f}" y="{foot - 6}" text-anchor="middle"'
    drawn.append(f'<text class="axis" {middle}>{escape(axis.label)}</text>')
    return to_x, drawn
