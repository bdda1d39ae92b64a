"""What the figures of a study show: series over workers, ideal lines, smoothed losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.analysis import judged_speed
from harness.analysis.cells import COMMON_BASELINE
from harness.analysis.comparison import Comparison
from harness.common.formatting import is_number, number, percent

SMOOTHING = 10  # steps of the mean that a curve of losses shows


def smooth(losses: Sequence[float], window: int = SMOOTHING) -> list[float]:
    """Trailing mean over `window` values, shorter at the beginning; as many values as came in."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - window)
    return [float(value) for value in (sums[ends] - sums[starts]) / (ends - starts)]


def thin(points: Sequence[Any], most: int = 150) -> list[Any]:
    """At most `most` of `points`, evenly chosen, the first and the last always among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


def largest_runs(comparison: Comparison) -> dict[str, list[Any]]:
    """Label -> its main-group runs at that label's largest number of workers, by repeat."""
    found: dict[str, list[Any]] = {}
    for cell in largest_cells(comparison):
        members = [
            run for run in comparison.members(0) if run.label == cell["label"] and run.workers == cell["workers"]
        ]
        found[cell["label"]] = sorted(members, key=lambda run: (run.repeat, run.name))
    return found


def largest_cells(comparison: Comparison) -> list[dict[str, Any]]:
    """Per label the main group's cell with ok runs at the largest number of workers."""
    best: dict[str, dict[str, Any]] = {}
    for cell in comparison.main.to_dict("records") if len(comparison.main) else ():
        if cell["ok"] and (cell["label"] not in best or cell["workers"] > best[cell["label"]]["workers"]):
            best[cell["label"]] = cell
    return list(best.values())


def slots(comparison: Comparison) -> dict[str, int]:
    """Label -> number of its style; what only the duels trained comes last."""
    cells = judged_speed.cells(comparison)
    labels = dict.fromkeys([*comparison.labels, *(cells["label"] if len(cells) else ())])
    return {label: slot for slot, label in enumerate(labels)}


def series_of(comparison: Comparison, figure: str, group: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Label -> a group's cells that have `figure`, by workers; labels without any are left out. Speed is the judged
    one (`harness.analysis.judged_speed`)."""
    cells = judged_speed.cells(comparison)
    cells = cells[cells["group"] == group] if len(cells) else cells
    rows = [cell for cell in cells.to_dict("records") if is_number(cell[figure])]
    found = {label: [cell for cell in rows if cell["label"] == label] for label in slots(comparison)}
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


def bar_words(comparison: Comparison) -> str:
    """What the bars of throughput are."""
    if comparison.duels is not None:
        return "95 % interval over the duels, none for a single duel"
    return "95 % interval over the repeats, none for a single run"


def efficiency_bar_words(comparison: Comparison) -> str:
    """What the bars of efficiency are."""
    return f"95 % interval over the {'repeats' if comparison.duels is None else 'duels'}."


def behind(comparison: Comparison, cell: Mapping[str, Any]) -> str:
    """How many measurements a cell's speed stands on: ``4 duels``, ``3 runs``."""
    if comparison.duels is not None:
        count, noun = int(cell.get(judged_speed.DUELS) or 0), "duel"
    else:
        count, noun = int(cell["ok"]), "run"
    return f"{count} {noun}" + ("" if count == 1 else "s")


def counted(comparison: Comparison, by_label: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How many measurements the points of a figure stand on: ``Each point: 4 duels.``, ``2 to 3 runs`` where they
    differ."""
    counts = {behind(comparison, cell) for cells in by_label.values() for cell in cells}
    ordered = sorted(counts, key=lambda text: int(text.split()[0]))
    few, many = ordered[0], ordered[-1]
    return f" Each point: {many}." if few == many else f" Each point: {few.split()[0]} to {many}."


def point_text(cell: Mapping[str, Any], name: str) -> str:
    """The value of a cell's figure with its ends: ``120 (118 to 122)``, efficiencies as per cent."""
    form = percent if "efficiency" in name else number
    low, high = cell[f"{name}_low"], cell[f"{name}_high"]
    text = form(cell[name])
    return f"{text} ({form(low).removesuffix(' %')} to {form(high)})" if is_number(low) and is_number(high) else text
