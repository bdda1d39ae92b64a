"""Figures of whole trainings: losses, quality, parts of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.analysis.comparison import Comparison
from harness.analysis.run_figures import QUALITY_NAMES
from harness.common import colors
from harness.common.formatting import is_number, number, plural
from harness.report.charts import data
from harness.report.charts.scaling import titled
from harness.report.charts.sheet import Sheet
from harness.report.step_tables import SPLIT_PARTS, cell_runs, split_means

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 16
_LINES = 24  # of a chart in the page; a file shows all
_HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++", "**")
_NOTE = f"Mean of the last {data.SMOOTHING} steps"


def convergence(comparison: Comparison, sheet: Sheet) -> bool:
    """Smoothed training loss over steps and over time, at the largest number of workers of each engine."""
    by_step, by_time = sheet.figure.subplots(1, 2, sharey=True)
    drawn = [_losses(comparison, sheet, axes, over) for axes, over in ((by_step, "step"), (by_time, "time"))]
    if not any(drawn):
        return False
    by_step.set(xlabel="optimizer steps", ylabel="training loss")
    by_time.set(xlabel="seconds since training began")
    sheet.titled(None, "Convergence", titled(comparison, "Convergence"))
    sheet.note(f"{_NOTE}; one line a run, the first repeat strong.")
    sheet.legend(by_step)
    return True


def loss_over(comparison: Comparison, sheet: Sheet, over: str) -> bool:
    """One half of `convergence`, for the page. over: step or time."""
    axes = sheet.figure.add_subplot()
    if not _losses(comparison, sheet, axes, over):
        return False
    sheet.titled(axes, f"Loss over {over}s" if over == "step" else "Loss over time", "")
    sheet.where = "optimizer steps" if over == "step" else "seconds"
    sheet.unit = f"training loss over {sheet.where}"
    sheet.labelled(axes, x=sheet.where, y="training loss")
    sheet.note(f"{_NOTE}, largest number of workers of each engine; one line a run, faint: further repeats.")
    return True


def _losses(comparison: Comparison, sheet: Sheet, axes: Axes, over: str) -> bool:
    slots = data.slots(comparison)
    styles = colors.styles(list(slots))
    drawn = False
    for label, runs in data.largest_runs(comparison).items():
        shown = runs[: max(1, _LINES // max(1, len(slots)))] if sheet.page else runs
        for position, run in enumerate(shown):
            rows = [row for row in run.steps if is_number(row.get("loss"))]
            if len(rows) < 2:
                continue
            points = [
                (row["step"] + 1 if over == "step" else row["t"], loss)
                for row, loss in zip(rows, data.smooth([row["loss"] for row in rows]), strict=True)
            ]
            if sheet.page:
                points = data.thin(points)
            name = f"{label}, {plural(run.workers, 'worker')}" if position == 0 else None
            (line,) = axes.plot(
                *zip(*points, strict=True), color=styles[label].light, linewidth=1.3,
                alpha=0.9 if position == 0 else 0.45, label=name,
            )  # fmt: skip
            if (pattern := colors.dashes(styles[label])) is not None:
                line.set_dashes(pattern)
            form = "{:.0f}".format if over == "step" else number
            sheet.read(label, slots[label], axes, [line], points, [(form(x), number(y)) for x, y in points])
            drawn = True
    return drawn


def loss_scale(comparison: Comparison, sheet: Sheet) -> bool:
    """The fp16 loss scale over steps, where it moves or is not 1."""
    slots = data.slots(comparison)
    styles = colors.styles(list(slots))
    axes = sheet.figure.add_subplot()
    for label, runs in data.largest_runs(comparison).items():
        for position, run in enumerate(runs[: max(1, _LINES // max(1, len(slots)))]):
            points = [(row["step"] + 1, row["loss_scale"]) for row in run.steps if is_number(row.get("loss_scale"))]
            if not any(value != 1 for _, value in points):
                continue
            points = data.thin(points)
            drawn = axes.plot(
                *zip(*points, strict=True), color=styles[label].light, linewidth=1.3, alpha=0.45 if position else 0.9
            )
            if (pattern := colors.dashes(styles[label])) is not None:
                drawn[0].set_dashes(pattern)
            texts = [(f"{x:.0f}", number(y)) for x, y in points]
            sheet.read(label, slots[label], axes, drawn, points, texts)
    if not sheet.readings:
        return False
    axes.set_yscale("log", base=2)
    axes.minorticks_off()
    sheet.titled(axes, "fp16 loss scale", "")
    sheet.where, sheet.unit = "optimizer steps", "loss scale over optimizer steps"
    sheet.labelled(axes, x=sheet.where, y="loss scale")
    sheet.note("Halved where a step overflows, doubled after many that do not.")
    return True


def accuracy(comparison: Comparison, sheet: Sheet) -> bool:
    """Quality figures of each engine with their 95 % intervals over the seeds, at the largest number of workers."""
    names = ("image_auroc", "pixel_auroc", "answer_accuracy")
    cells = [cell for cell in data.largest_cells(comparison) if any(is_number(cell[name]) for name in names)]
    if not cells:
        return False
    axes = sheet.figure.add_subplot()
    styles = colors.styles(comparison.labels)
    width = 0.8 / len(cells)
    for position, cell in enumerate(cells):
        places = np.arange(len(names)) + (position - (len(cells) - 1) / 2) * width
        _quality_bars(axes, cell, names, places, width, styles[cell["label"]].light, _HATCHES[position % 8])
    axes.set_xticks(range(len(names)), [QUALITY_NAMES[name] for name in names])
    axes.set_ylim(0, 1.16)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    sheet.titled(axes, "Quality on the test set", titled(comparison, "Quality on the test set"))
    sheet.legend(axes, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    sheet.note("Mean over the seeds; bars: 95 % interval over the seeds (Student's t), none for a single seed.")
    return True


def _quality_bars(
    axes: Axes, cell: dict[str, Any], names: Sequence[str], places: np.ndarray, width: float, color: str, hatch: str
) -> None:
    values = [cell[name] if is_number(cell[name]) else math.nan for name in names]
    halves = [cell[f"{name}_half"] if is_number(cell[f"{name}_half"]) else 0.0 for name in names]
    label = f"{cell['label']}, {plural(int(cell['workers']), 'worker')}"
    axes.bar(places, values, width * 0.92, label=label, color=color, alpha=0.85, hatch=hatch, edgecolor="white",
             linewidth=0)  # fmt: skip
    # The interval may reach beyond what the figure can be: cut there, an AUROC above 1 says nothing.
    low = [min(half, value) for half, value in zip(halves, values, strict=True)]
    high = [min(half, 1 - value) for half, value in zip(halves, values, strict=True)]
    if any(halves):
        axes.errorbar(places, values, yerr=[low, high], fmt="none", ecolor="#222222", capsize=3, linewidth=1)
    for place, value, top in zip(places, values, high, strict=True):
        if is_number(value):
            axes.annotate(f"{value:.3f}", (place, value + top), ha="center", va="bottom", fontsize=8, xytext=(0, 2),
                          textcoords="offset points")  # fmt: skip


def step_parts(comparison: Comparison, sheet: Sheet) -> bool:
    """Parts of a step, one bar an engine and number of workers, the first row on top."""
    rows = [(f"{label}, {workers}", split_means(runs)) for label, workers, runs in cell_runs(comparison)]
    shown = [(name, parts) for name, parts in rows if parts is not None][:MOST_BARS]
    if not shown:
        return False
    axes = sheet.figure.add_subplot()
    styles = colors.styles(SPLIT_PARTS)
    for place, (name, parts) in enumerate(reversed(shown)):
        done, points, texts, drawn = 0.0, [], [], []
        for part in SPLIT_PARTS:
            color = styles[part].light
            drawn += list(
                axes.barh(place, parts[part], left=done, height=0.62, color=color, edgecolor="white", linewidth=1)
            )
            points.append((done + parts[part] / 2, place))
            texts.append((part, f"{number(parts[part])} ms"))
            done += parts[part]
        sheet.read(name, -1, axes, drawn, points, texts)
    axes.set_yticks(range(len(shown)), [name for name, _ in reversed(shown)], fontsize="small")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms")
    sheet.titled(axes, "Parts of a step (engine, workers)", "")
    sheet.unit, sheet.keys = "ms of a step", SPLIT_PARTS
    sheet.note("Medians over the sampled steps of all ranks.")
    return True
