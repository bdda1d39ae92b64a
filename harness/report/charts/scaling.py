"""Throughput and efficiency over workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.analysis import judged_speed
from harness.analysis.comparison import Comparison
from harness.common import colors
from harness.common.formatting import is_number, number, plural
from harness.report.charts import data
from harness.report.charts.sheet import Sheet

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer


def throughput(comparison: Comparison, sheet: Sheet, group: int = 0) -> bool:
    """Throughput over workers, both axes log2, with its ideal line; the engines in a row where there is a single number
    of workers."""
    axes = sheet.figure.add_subplot()
    by_label = data.series_of(comparison, "samples_per_s", group)
    if not by_label:
        return False
    counts = {int(cell["workers"]) for cells in by_label.values() for cell in cells}
    if len(counts) == 1:
        return _ranked(comparison, sheet, axes, by_label)
    slots = data.slots(comparison)
    styles = colors.styles(list(slots))
    for label, cells in by_label.items():
        _line(sheet, axes, cells, "samples_per_s", label, slots[label], styles[label], comparison)
    ideals = data.ideal_lines(comparison, group)
    for line in ideals:
        xs, ys = zip(*line.points, strict=True)
        drawn = axes.plot(xs, ys, color=styles[line.label].light, linewidth=0.9, linestyle=":", alpha=0.8)
        sheet.read(line.label, slots[line.label], axes, drawn)
    _log2_workers(axes, comparison, group)
    _log2_rates(axes)
    sheet.labelled(axes, x="workers", y="samples per second")
    sheet.titled(axes, "Throughput over workers", titled(comparison, "Throughput"))
    dotted = f" Dotted: {data.ideal_words(ideals)}." if ideals else ""
    both = "Both axes log2. " if sheet.page else "Total samples / total seconds. "
    sheet.note(f"{both}Bars: {data.bar_words(comparison)}.{dotted}{_counted(sheet, comparison, by_label)}")
    sheet.unit = "samples per second over workers"
    sheet.legend(axes)
    return True


def _ranked(comparison: Comparison, sheet: Sheet, axes: Axes, by_label: dict[str, list[dict[str, Any]]]) -> bool:
    """Throughput at the only number of workers: a row an engine, fastest on top, from zero."""
    slots = data.slots(comparison)
    styles = colors.styles(list(slots))
    rows = [(label, styles[label], cells[0]) for label, cells in by_label.items()]
    rows.sort(key=lambda row: row[2]["samples_per_s"])
    for place, (label, style, cell) in enumerate(rows):
        rate = cell["samples_per_s"]
        axes.plot([0, rate], [place, place], color=style.light, linewidth=1.2, alpha=0.5)
        drawn = axes.errorbar(
            [rate], [place], xerr=_bars([cell], "samples_per_s"), color=style.light, marker=style.marker, capsize=4
        )
        text = f"{data.point_text(cell, 'samples_per_s')}, {data.behind(comparison, cell)}"
        sheet.read(label, slots[label], axes, _artists(drawn), [(rate, place)], [("", text)])
    for place, (label, _, _) in enumerate(rows):  # above its line: a long label would push the figure aside
        axes.annotate(label, (0, place), xytext=(4, 6), textcoords="offset points", fontsize="small")
    axes.set_yticks([])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(left=0)
    at = plural(int(rows[0][2]["workers"]), "worker")
    axes.set_xlabel("samples per second")
    sheet.titled(axes, f"Throughput at {at}", titled(comparison, f"Throughput at {at}"))
    counts = _counted(sheet, comparison, by_label)
    sheet.note(f"Total samples / total seconds. Bars: {data.bar_words(comparison)}.{counts}")
    sheet.unit = "samples per second, lowest first"
    return True


def efficiency(comparison: Comparison, sheet: Sheet, group: int = 0) -> bool:
    """Scaling efficiency over workers with the 100 % line."""
    name = data.efficiency_name(comparison, group)
    by_label = data.series_of(comparison, name, group)
    if not any(cell["workers"] > 1 for cells in by_label.values() for cell in cells):
        return False
    axes = sheet.figure.add_subplot()
    slots = data.slots(comparison)
    styles = colors.styles(list(slots))
    for label, cells in by_label.items():
        _line(sheet, axes, cells, name, label, slots[label], styles[label], comparison, factor=100)
    highest = max(1.0, *(cell[f"{name}_high"] for cells in by_label.values() for cell in cells))
    axes.axhline(100, color="#444444", linewidth=1, linestyle=":")
    axes.set_ylim(0, 100 * min(highest, 2.0) * 1.08)  # two repeats far apart bound next to nothing
    _log2_workers(axes, comparison, group)
    sheet.labelled(axes, x="workers", y="efficiency, %")
    title = data.EFFICIENCY_TITLES[name]
    sheet.titled(axes, title, titled(comparison, title))
    counts = _counted(sheet, comparison, by_label)
    sheet.note(f"{data.EFFICIENCY_WORDS[name]} Bars: {data.efficiency_bar_words(comparison)}{counts}")
    sheet.unit = "efficiency over workers"
    sheet.legend(axes, loc="lower left")
    return True


def _counted(sheet: Sheet, comparison: Comparison, by_label: dict[str, list[dict[str, Any]]]) -> str:
    return data.counted(comparison, by_label) if sheet.page else ""


def titled(comparison: Comparison, text: str) -> str:
    """The title of a file: what is drawn, of which study."""
    main = comparison.main
    if not len(main):
        return text
    return f"{text}: {comparison.title} ({main['scaling'].iloc[0]} scaling, {main['precision'].iloc[0]})"


def _line(
    sheet: Sheet,
    axes: Axes,
    cells: list[dict[str, Any]],
    name: str,
    label: str,
    slot: int,
    style: colors.Style,
    comparison: Comparison,
    factor: float = 1.0,
) -> None:
    """An engine's figure over workers with its intervals."""
    xs, ys = [cell["workers"] for cell in cells], [factor * cell[name] for cell in cells]
    container = axes.errorbar(
        xs, ys, yerr=_bars(cells, name, factor), label=label, color=style.light, marker=style.marker, markersize=6,
        capsize=4, linewidth=1.6,
    )  # fmt: skip
    if (pattern := colors.dashes(style)) is not None:
        container.lines[0].set_dashes(pattern)
    texts = [
        (f"{plural(int(cell['workers']), 'worker')}, {data.behind(comparison, cell)}", data.point_text(cell, name))
        for cell in cells
    ]
    sheet.read(label, slot, axes, _artists(container), list(zip(xs, ys, strict=True)), texts)


def _artists(container: ErrorbarContainer) -> list[Artist]:
    line, caps, bars = container.lines
    return [line, *caps, *bars]


def _bars(cells: Sequence[dict[str, Any]], name: str, factor: float = 1.0) -> np.ndarray:
    """Distances of the low and high ends from the value, shape (2, cells)."""
    low = [max(0.0, cell[name] - cell[f"{name}_low"]) if is_number(cell[f"{name}_low"]) else 0 for cell in cells]
    high = [max(0.0, cell[f"{name}_high"] - cell[name]) if is_number(cell[f"{name}_high"]) else 0 for cell in cells]
    return factor * np.array([low, high])


def _log2_workers(axes: Axes, comparison: Comparison, group: int) -> None:
    """log2 axis with the group's numbers of workers as its only ticks."""
    cells = judged_speed.cells(comparison)
    workers = sorted({int(count) for count in cells[cells["group"] == group]["workers"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(workers, [str(count) for count in workers])
    axes.minorticks_off()
    axes.set_xlim(workers[0] / 1.2, workers[-1] * 1.2)


def _log2_rates(axes: Axes) -> None:
    axes.set_yscale("log", base=2)
    low, high = axes.get_ylim()
    # At least one octave, and round numbers: powers of two between its ends are hard to read.
    low, high = min(low, high / 2.2), high
    axes.set_ylim(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
        if len(ticks) > 2:
            break
    axes.set_yticks(ticks, [number(tick) for tick in ticks])
    axes.minorticks_off()
