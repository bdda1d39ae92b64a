"""A figure inside the report's page: matplotlib's SVG in the page's colours, its values for the page's script.

The drawing needs neither script nor network, so it shows and prints as it is. Its colours become the page's variables
(--s0 .. --s7, --paper, --soft, --grid), so it follows the page's light and dark; its ids get the chart's own name,
since several drawings stand in one page.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.common import colors
from harness.report.charts.sheet import Draw, Sheet
from harness.report.plots import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 72  # an inch; the unit of the drawing's coordinates
SIZE = (6.0, 3.8)  # inches: smaller than a file's, so that the text can be read on a phone
_STYLE: dict[str, Any] = {**STYLE, "font.size": 13, "figure.dpi": POINTS, "axes.edgecolor": "#555555",
                          "text.parse_math": False}  # fmt: skip
_PAPER = {"#ffffff": "var(--paper)", "#b0b0b0": "var(--grid)"}
_INK = ("#000000", "#222222", "#444444", "#555555")


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


def chart(id: str, draw: Draw, *, size: tuple[float, float] = SIZE) -> Chart | None:
    """The chart that `draw` draws; None where it has nothing to show. size: inches."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        sheet = Sheet(figure=figure, page=True)
        if draw(sheet) is False:
            return None
        for axes in figure.axes:
            axes.patch.set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        return Chart(
            id=id,
            title=sheet.title,
            description=_describe(sheet),
            svg=_for_page(id, sheet.title, text.getvalue()),
            data=_json({"parts": bool(sheet.keys), "series": _series(sheet, figure)}),
            legend=_legend(sheet),
            note=sheet.note_text,
        )


def _series(sheet: Sheet, figure: Figure) -> list[dict[str, Any]]:
    """The readings with their places in the drawing, whose origin is its upper left corner."""
    height = figure.get_figheight() * POINTS
    found = []
    for number, reading in enumerate(sheet.readings):
        if reading.points:
            places = reading.axes.transData.transform([(float(x), float(y)) for x, y in reading.points])
            points = [
                [round(float(x), 1), round(float(height - y), 1), sheet.place(where), value]
                for (x, y), (where, value) in zip(places, reading.texts, strict=True)
            ]
            found.append({"series": number, "label": reading.label, "points": points})
    return found


def _for_page(id: str, title: str, text: str) -> str:
    """matplotlib's file as an element of the page."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"(?s)<metadata>.*?</metadata>\s*", "", text)
    text = re.sub(r'<g id="series-(\d+)-(\d+)">', r'<g id="series-\1-\2" class="series" data-series="\1">', text)
    text = re.sub(r'\bid="', f'id="{id}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{id}-", text)
    view = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg {view[0] if view else ""} role="img" aria-labelledby="{id}-title" focusable="false">'
    text = re.sub(r"<svg\b[^>]*>", f'{head}<title id="{id}-title">{escape(title)}</title>', text, count=1)
    text = text.replace("xlink:href=", "href=")
    for colour, variable in _variables().items():
        text = re.sub(rf"{colour}\b", variable, text, flags=re.IGNORECASE)
    return re.sub(r"\n\s*", "\n", text)


def _variables() -> dict[str, str]:
    """matplotlib's colours -> the page's."""
    series = {style.light: f"var(--s{slot})" for slot, style in enumerate(colors.all_styles())}
    grey = colors.all_styles()[5].light  # of a band or a hollow marker as well as of a series
    return {**dict.fromkeys(_INK, "var(--soft)"), **_PAPER, **series, grey: "var(--s5)"}


def _legend(sheet: Sheet) -> list[dict[str, Any]]:
    """One entry a label, which shows and hides all its series; or what the styles stand for."""
    if sheet.keys:
        return [{"label": key, "slot": slot % 8, "series": None, "swatch": ""} for slot, key in enumerate(sheet.keys)]
    entries: dict[str, dict[str, Any]] = {}
    for number, reading in enumerate(sheet.readings):
        if reading.slot >= 0:
            slot = reading.slot % 8
            entry = entries.setdefault(
                reading.label, {"label": reading.label, "slot": slot, "series": [], "swatch": _swatch(slot)}
            )
            entry["series"].append(number)
    return list(entries.values())


def _swatch(slot: int) -> str:
    """A piece of the series' line with its marker."""
    from matplotlib.markers import MarkerStyle

    marker = MarkerStyle(colors.all_styles()[slot].marker)
    path = marker.get_path().transformed(marker.get_transform())
    corners = np.asarray(path.to_polygons(closed_only=False)[0]).tolist()
    shape = "M" + "L".join(f"{17 + 9 * x:.1f} {7 - 9 * y:.1f}" for x, y in corners) + "z"
    dash = colors.dash_of(slot)
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    colour = f"var(--s{slot})"
    return (
        '<svg class="swatch" viewBox="0 0 34 14" width="34" height="14" aria-hidden="true">'
        f'<path d="M1 7H33" fill="none" stroke="{colour}" stroke-width="2"{pattern}/><path d="{shape}" '
        f'fill="{colour}"/></svg>'
    )


def _describe(sheet: Sheet) -> str:
    """First and last values of each series in words; of a few points, all."""
    sentences = []
    for label in dict.fromkeys(reading.label for reading in sheet.readings if reading.points):
        texts = next(reading.texts for reading in sheet.readings if reading.label == label and reading.points)
        shown = texts if len(texts) <= 8 else (texts[0], texts[-1])
        values = [_value_text(sheet, *text) for text in shown]
        sentences.append(f"{label}: {', '.join(values)}")
    return f"{sheet.unit}. {'; '.join(sentences)}."


def _value_text(sheet: Sheet, where: str, value: str) -> str:
    if sheet.keys:
        return f"{where} {value}"
    return f"{value} at {sheet.place(where)}" if where else value


def _json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
