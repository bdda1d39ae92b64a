"""The speed that a report shows: the duels' where the study fought them, else that of the repeated trainings.

A training of one repeat and the duels may give different samples/s for the same engine, because a whole training also
holds what the machine did meanwhile. Tables, plots and verdict take both from here, so that they never contradict one
another; the trainings' own throughput stands only in the table of all runs, and is named there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.analysis.comparison import Comparison, PairedFigure
from harness.analysis.duels.estimate import difference
from harness.analysis.duels.record import blocks_of, first_stage_of, label, same_as
from harness.analysis.duels.throughput import Rate, rates
from harness.analysis.intervals import Difference
from harness.analysis.setting_effects import Variant
from harness.common.formatting import is_number

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPEED = ("samples_per_s", "efficiency", "own_efficiency")
_OF_STEPS = ("typical_step_ms", "step_ms_p90", "step_ms_p95", "step_ms_p99")  # of one training's steps
DUELS = "duels"  # column: duels behind a cell's speed


def cells(comparison: Comparison) -> pd.DataFrame:
    """`Comparison.cells` with the speed that is judged.

    With duels: samples_per_s, its ends, efficiency and its ends are the duels', with their number in column `DUELS`;
    what no duel measured (an engine that did not fit beside the others, a typical step) is missing. Contenders without
    a training, such as plain torch on one worker, have a row of their own.
    """
    record = comparison.duels
    if record is None or not len(comparison.cells):
        return comparison.cells
    speed = _by_cell(record)
    rows = []
    for cell in comparison.cells.to_dict("records"):
        own = speed.pop((cell["label"], int(cell["workers"])), None) if cell["group"] == 0 else None
        rows.append({**cell, **dict.fromkeys(_OF_STEPS), **(own or _nothing()), **_utilization(cell, own)})
    first = rows[0]
    for (name, workers), own in speed.items():
        empty = {**dict.fromkeys(first), "ok": 0, "failed": 0, "group": 0, "label": name, "workers": workers}
        shared = {key: first[key] for key in ("scaling", "precision")}
        rows.append({**empty, **shared, **own})
    return pd.DataFrame(rows)


def differences(comparison: Comparison) -> Sequence[PairedFigure]:
    """The differences in speed of the main group that are judged: of the duels at equal numbers of workers, without
    the calibration; else those of the trainings, paired by repeat."""
    record = comparison.duels
    if record is None:
        return [pair for pair in comparison.speed if pair.group == 0]
    sides = {side["name"]: side for side in record["contenders"]}
    found = []
    for row in record["differences"]:
        a, b = sides[row["a"]], sides[row["b"]]
        if a["workers"] == b["workers"] and same_as(row["b"]) is None:
            difference = Difference(
                a=label(a), b=label(b), value=row["value"], low=row["low"], high=row["high"], pairs=row["duels"],
                duels=True,
            )  # fmt: skip
            found.append(PairedFigure(group=0, workers=a["workers"], figure="samples_per_s", difference=difference))
    return found


def variants(comparison: Comparison) -> list[Variant]:
    """`Comparison.variants` with the speed that is judged: of the blocks of the duels that both fought. A setting that
    no duel holds is left out of a study with duels."""
    record = comparison.duels
    if record is None:
        return list(comparison.variants)
    names = {
        (label(side), int(side["workers"])): side["name"]
        for side in record["contenders"]
        if same_as(side["name"]) is None
    }
    blocks = blocks_of(record)
    found = []
    for one in comparison.variants:
        a, b = (names.get((name, one.workers)) for name in one.labels)
        if a is None or b is None:
            continue
        try:
            item = difference(blocks, a, b, first_stage=first_stage_of(record))
        except ValueError:  # never in one duel
            continue
        speed = Difference(
            a=one.labels[0], b=one.labels[1], value=item.value, low=item.low, high=item.high, pairs=item.duels,
            duels=True,
        )  # fmt: skip
        found.append(replace(one, speed=speed))
    return found


def _by_cell(record: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """(label, workers) -> the duels' speed of a contender, calibrations left out."""
    first = record["contenders"][0]
    found = rates(record)
    against = {row["b"]: row for row in record["differences"] if row["a"] == first["name"]}
    cells: dict[tuple[str, int], dict[str, Any]] = {}
    for side in record["contenders"]:
        if same_as(side["name"]) is None and side["name"] in found:
            shares = _efficiency(against.get(side["name"]), side["workers"] / first["workers"])
            own = {**_nothing(), **_rate(found[side["name"]]), **shares, "backend": side["backend"]}
            cells[label(side), int(side["workers"])] = own
    return cells


def _utilization(cell: Mapping[str, Any], own: Mapping[str, Any] | None) -> dict[str, Any]:
    """Useful MFU and hardware use at the duels' throughput: both are proportional to it."""
    names = ("mfu", "hardware_utilization")
    if own is None or not is_number(cell["samples_per_s"]):
        return dict.fromkeys(names)
    factor = own["samples_per_s"] / cell["samples_per_s"]
    return {name: cell[name] * factor if is_number(cell[name]) else None for name in names}


def _rate(rate: Rate) -> dict[str, Any]:
    return {
        "samples_per_s": rate.value,
        "samples_per_s_low": rate.low,
        "samples_per_s_high": rate.high,
        DUELS: rate.duels,
    }


def _efficiency(row: Mapping[str, Any] | None, growth: float) -> dict[str, Any]:
    """Of a contender against the first: throughput over `growth` times the first's. None without an interval."""
    if row is None or row["low"] is None or row["high"] is None:
        return {}
    value, low, high = ((1 + row[end]) / growth for end in ("value", "low", "high"))
    return {"efficiency": value, "efficiency_low": low, "efficiency_high": high, "efficiency_pairs": row["duels"]}


def _nothing() -> dict[str, Any]:
    missing = {f"{name}{end}": math.nan for name in _SPEED for end in ("", "_low", "_high")}
    return {**missing, "efficiency_pairs": 0, "own_efficiency_pairs": 0, DUELS: 0}
