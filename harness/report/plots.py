"""The study's figures as PNG and SVG: scaling, efficiency, convergence, accuracy.

Drawn only from the records, by the Agg and SVG writers, without dates or random ids: the same records and the same
matplotlib give the same bytes, which `harness results check` relies on.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.analysis.cells import COMMON_BASELINE
from harness.analysis.comparison import Comparison
from harness.analysis.run_figures import QUALITY_NAMES
from harness.common import colors
from harness.common.formatting import is_number, number, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = ("scaling", "efficiency", "convergence", "accuracy")
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "harness",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 150,
    "path.simplify": True,
}


def write_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes FIGURE.png and FIGURE.svg of the main group for each figure that has something to show."""
    draws = {"scaling": _scaling, "efficiency": _efficiency, "convergence": _convergence, "accuracy": _accuracy}
    written: list[Path] = []
    for name in FIGURES:
        written += figure_files(folder, name, partial(draws[name], comparison))
    return written


def figure_files(
    folder: Path, name: str, draw: Callable[[Figure], object], *, size: tuple[float, float] = (7.2, 4.4)
) -> list[Path]:
    """Writes NAME.png and NAME.svg of what `draw` puts into a figure, in the style of all figures; returns their paths.
    Nothing is written where `draw` returns False. size: inches."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        if draw(figure) is False:
            return []
        written = []
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": "harness"})):
            path = folder / f"{name}.{suffix}"
            figure.savefig(path, metadata=metadata)
            written.append(path)
    return written


def _scaling(comparison: Comparison, figure: Figure) -> bool:
    """Throughput over workers, both axes log2, with its ideal line; the engines in a row where there is a single number
    of workers."""
    axes = figure.add_subplot()
    by_label = series_of(comparison, "samples_per_s")
    if not by_label:
        return False
    if comparison.main["workers"].nunique() == 1:
        return _ranked(comparison, figure, axes)
    styles = colors.styles(comparison.labels)
    for label, cells in by_label.items():
        workers, rates = ([cell[name] for cell in cells] for name in ("workers", "samples_per_s"))
        _line(axes, workers, rates, _bars(cells, "samples_per_s"), label, styles[label])
    ideals = ideal_lines(comparison)
    for line in ideals:
        xs, ys = zip(*line.points, strict=True)
        axes.plot(xs, ys, color=styles[line.label].light, linewidth=0.9, linestyle=":", alpha=0.8)
    _log2_workers(axes, comparison)
    _log2_rates(axes)
    axes.set(xlabel="workers", ylabel="samples per second", title=_title(comparison, "Throughput"))
    dotted = f" Dotted: {ideal_words(ideals)}." if ideals else ""
    _note(figure, f"Total samples / total seconds. Bars: {BAR_WORDS}.{dotted}")
    axes.legend()
    return True


def _ranked(comparison: Comparison, figure: Figure, axes: Axes) -> bool:
    """Throughput at the only number of workers: a row an engine, fastest on top, from zero."""
    styles = colors.styles(comparison.labels)
    rows = [(label, styles[label], cells[0]) for label, cells in series_of(comparison, "samples_per_s").items()]
    rows.sort(key=lambda row: row[2]["samples_per_s"])
    for place, (_, style, cell) in enumerate(rows):
        rate = cell["samples_per_s"]
        axes.plot([0, rate], [place, place], color=style.light, linewidth=1.2, alpha=0.5)
        axes.errorbar(
            [rate], [place], xerr=_bars([cell], "samples_per_s"), color=style.light, marker=style.marker, capsize=4
        )
    for place, (label, _, _) in enumerate(rows):  # above its line: a long label would push the figure aside
        axes.annotate(label, (0, place), xytext=(4, 6), textcoords="offset points", fontsize="small")
    axes.set_yticks([])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(left=0)
    at = plural(int(rows[0][2]["workers"]), "worker")
    axes.set(xlabel="samples per second", title=_title(comparison, f"Throughput at {at}"))
    _note(figure, f"Total samples / total seconds. Bars: {BAR_WORDS}.")
    return True


def _efficiency(comparison: Comparison, figure: Figure) -> bool:
    """Scaling efficiency over workers with the 100 % line."""
    name = efficiency_name(comparison)
    by_label = series_of(comparison, name)
    if not any(cell["workers"] > 1 for cells in by_label.values() for cell in cells):
        return False
    axes = figure.add_subplot()
    styles = colors.styles(comparison.labels)
    for label, cells in by_label.items():
        shares = [100 * cell[name] for cell in cells]
        _line(axes, [cell["workers"] for cell in cells], shares, _bars(cells, name, 100), label, styles[label])
    highest = max(1.0, *(cell[f"{name}_high"] for cells in by_label.values() for cell in cells))
    axes.axhline(100, color="#444444", linewidth=1, linestyle=":")
    axes.set_ylim(0, 100 * min(highest, 2.0) * 1.08)  # two repeats far apart bound next to nothing
    _log2_workers(axes, comparison)
    axes.set(xlabel="workers", ylabel="efficiency, %", title=_title(comparison, EFFICIENCY_TITLES[name]))
    _note(figure, f"{EFFICIENCY_WORDS[name]} Bars: 95 % interval over the repeats.")
    axes.legend(loc="lower left")
    return True


def _convergence(comparison: Comparison, figure: Figure) -> bool:
    """Smoothed training loss over steps and over time, at the largest number of workers of each engine."""
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    drawn = False
    styles = colors.styles(comparison.labels)
    for label, runs in largest_runs(comparison).items():
        style = styles[label]
        for position, run in enumerate(runs):
            rows = [row for row in run.steps if is_number(row.get("loss"))]
            if len(rows) < 2:
                continue
            losses = smooth([row["loss"] for row in rows])
            name = f"{label}, {plural(run.workers, 'worker')}" if position == 0 else None
            look = {"color": style.light, "linewidth": 1.3, "alpha": 0.9 if position == 0 else 0.45, "label": name}
            for axes, xs in ((by_step, [row["step"] + 1 for row in rows]), (by_time, [row["t"] for row in rows])):
                (line,) = axes.plot(xs, losses, **look)
                if (pattern := colors.dashes(style)) is not None:
                    line.set_dashes(pattern)
            drawn = True
    if not drawn:
        return False
    by_step.set(xlabel="optimizer steps", ylabel="training loss")
    by_time.set(xlabel="seconds since training began")
    figure.suptitle(_title(comparison, "Convergence"))
    _note(figure, f"Mean of the last {SMOOTHING} steps; one line a run, the first repeat strong.")
    by_step.legend()
    return True


def _accuracy(comparison: Comparison, figure: Figure) -> bool:
    """Quality figures of each engine with their 95 % intervals over the seeds, at the largest number of workers."""
    names = ("image_auroc", "pixel_auroc", "answer_accuracy")
    cells = [cell for cell in _largest_cells(comparison) if any(is_number(cell[name]) for name in names)]
    if not cells:
        return False
    axes = figure.add_subplot()
    styles = colors.styles(comparison.labels)
    width = 0.8 / len(cells)
    hatches = ("", "//", "..", "xx", "\\\\", "oo", "++", "**")
    for position, cell in enumerate(cells):
        places = np.arange(len(names)) + (position - (len(cells) - 1) / 2) * width
        values = [cell[name] if is_number(cell[name]) else math.nan for name in names]
        halves = [cell[f"{name}_half"] if is_number(cell[f"{name}_half"]) else 0.0 for name in names]
        label = f"{cell['label']}, {plural(int(cell['workers']), 'worker')}"
        color = styles[cell["label"]].light
        axes.bar(places, values, width * 0.92, label=label, color=color, alpha=0.85, hatch=hatches[position % 8],
                 edgecolor="white", linewidth=0)  # fmt: skip
        # The interval may reach beyond what the figure can be: cut there, an AUROC above 1 says nothing.
        low = [min(half, value) for half, value in zip(halves, values, strict=True)]
        high = [min(half, 1 - value) for half, value in zip(halves, values, strict=True)]
        if any(halves):
            axes.errorbar(places, values, yerr=[low, high], fmt="none", ecolor="#222222", capsize=3, linewidth=1)
        for place, value, top in zip(places, values, high, strict=True):
            if is_number(value):
                axes.annotate(f"{value:.3f}", (place, value + top), ha="center", va="bottom", fontsize=8,
                              xytext=(0, 2), textcoords="offset points")  # fmt: skip
    axes.set_xticks(range(len(names)), [QUALITY_NAMES[name] for name in names])
    axes.set_ylim(0, 1.16)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.set_title(_title(comparison, "Quality on the test set"))
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    _note(figure, "Mean over the seeds; bars: 95 % interval over the seeds (Student's t), none for a single seed.")
    return True


SMOOTHING = 10


def smooth(losses: Sequence[float], window: int = SMOOTHING) -> list[float]:
    """Trailing mean over `window` values, shorter at the beginning; as many values as came in."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - window)
    return [float(value) for value in (sums[ends] - sums[starts]) / (ends - starts)]


def largest_runs(comparison: Comparison) -> dict[str, list[Any]]:
    """Label -> its main-group runs at that label's largest number of workers, by repeat."""
    found: dict[str, list[Any]] = {}
    for cell in _largest_cells(comparison):
        members = [
            run for run in comparison.members(0) if run.label == cell["label"] and run.workers == cell["workers"]
        ]
        found[cell["label"]] = sorted(members, key=lambda run: (run.repeat, run.name))
    return found


def _largest_cells(comparison: Comparison) -> list[dict[str, Any]]:
    """Per label the main group's cell with ok runs at the largest number of workers."""
    best: dict[str, dict[str, Any]] = {}
    for cell in comparison.main.to_dict("records") if len(comparison.main) else ():
        if cell["ok"] and (cell["label"] not in best or cell["workers"] > best[cell["label"]]["workers"]):
            best[cell["label"]] = cell
    return list(best.values())


def series_of(comparison: Comparison, figure: str, group: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Label -> a group's cells that have `figure`, by workers; labels without any are left out."""
    cells = comparison.cells[comparison.cells["group"] == group] if len(comparison.cells) else comparison.cells
    rows = [cell for cell in cells.to_dict("records") if is_number(cell[figure])]
    found = {label: [cell for cell in rows if cell["label"] == label] for label in comparison.labels}
    return {label: sorted(own, key=lambda cell: cell["workers"]) for label, own in found.items() if own}


@dataclass(frozen=True, kw_only=True)
class IdealLine:
    """Linear scaling from the first point of `label`: (workers, samples/s)."""

    label: str
    points: Sequence[tuple[int, float]]
    common: bool


def ideal_lines(comparison: Comparison, group: int = 0) -> list[IdealLine]:
    """One line from plain torch on one worker where the group has it: every engine's efficiency is its distance from
    that line. Else one from each engine's own first point."""
    by_label = series_of(comparison, "samples_per_s", group)
    counts = sorted({int(cell["workers"]) for cells in by_label.values() for cell in cells})
    plain = {
        label: cells
        for label, cells in by_label.items()
        if cells[0]["backend"] == COMMON_BASELINE and cells[0]["workers"] == 1
    }
    found = []
    for label, cells in list(plain.items())[:1] or by_label.items():
        first = cells[0]
        own = counts if plain else [int(cell["workers"]) for cell in cells]
        if len(own) > 1:
            points = [(count, first["samples_per_s"] * count / first["workers"]) for count in own]
            found.append(IdealLine(label=label, points=points, common=bool(plain)))
    return found


def ideal_words(lines: Sequence[IdealLine]) -> str:
    """What the dotted lines are."""
    if any(line.common for line in lines):
        return "linear scaling of plain torch on one worker"
    return "linear scaling from each engine's own first point"


def efficiency_name(comparison: Comparison, group: int = 0) -> str:
    """The efficiency that a figure draws: against plain torch on one worker where the group has that, else each
    engine's against itself."""
    return "efficiency" if series_of(comparison, "efficiency", group) else "own_efficiency"


EFFICIENCY_TITLES = {"efficiency": "Scaling efficiency", "own_efficiency": "Efficiency, own baselines"}
EFFICIENCY_WORDS = {
    "efficiency": "Throughput of N workers over N times that of plain torch on one worker.",
    "own_efficiency": "Throughput of N workers over N times that of one worker, each engine its own: not comparable "
    "between engines.",
}
BAR_WORDS = "95 % interval over the repeats, none for a single run"


def _line(axes: Axes, xs: list[int], ys: list[float], bars: np.ndarray, label: str, style: colors.Style) -> None:
    container = axes.errorbar(
        xs, ys, yerr=bars, label=label, color=style.light, marker=style.marker, markersize=6, capsize=4, linewidth=1.6
    )
    if (pattern := colors.dashes(style)) is not None:
        container.lines[0].set_dashes(pattern)


def _bars(cells: list[dict[str, Any]], name: str, factor: float = 1.0) -> np.ndarray:
    """Distances of the low and high ends from the value, shape (2, cells)."""
    low = [max(0.0, cell[name] - cell[f"{name}_low"]) if is_number(cell[f"{name}_low"]) else 0 for cell in cells]
    high = [max(0.0, cell[f"{name}_high"] - cell[name]) if is_number(cell[f"{name}_high"]) else 0 for cell in cells]
    return factor * np.array([low, high])


def _log2_workers(axes: Axes, comparison: Comparison) -> None:
    """log2 axis with the measured numbers of workers as its only ticks."""
    workers = sorted({int(count) for count in comparison.main["workers"]})
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


def _title(comparison: Comparison, text: str) -> str:
    main = comparison.main
    if not len(main):
        return text
    return f"{text}: {comparison.title} ({main['scaling'].iloc[0]} scaling, {main['precision'].iloc[0]})"


def _note(figure: Figure, text: str) -> None:
    figure.supxlabel(textwrap.fill(text, 120), fontsize=7.5, color="#555555")
