"""A row a cell of a comparison: an engine with its settings at a number of workers, over its repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import intervals
from harness.analysis.run_figures import QUALITY, TAILS
from harness.common.formatting import is_number
from harness.records import step_metrics

COMMON_BASELINE = "single"  # plain torch on one worker: the same for every engine
Turn = tuple[str, int, int]  # study, repeat, seed: runs of one turn ran right after one another


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Samples/s by turn that efficiencies are shares of. common: of plain torch on one worker (engine 'single'), empty
    where the group has none. own: label -> of the engine itself on one worker."""

    common: Mapping[Turn, float]
    own: Mapping[str, Mapping[Turn, float]]


def cells_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per (group, label, workers), main group first, labels in the order of their first run. A failed run is
    counted in the cell of the same label and workers in the main group. frame: a row a run, with its group."""
    main = frame[frame["group"] == 0]["label"]
    order = {label: position for position, label in enumerate(dict.fromkeys([*main, *frame["label"]]))}
    groups = sorted({int(group) for group in frame["group"] if group >= 0}) or [0]
    cells = []
    for group in groups:
        here = frame[(frame["group"] == group) | ((frame["group"] == -1) & (group == 0))]
        baselines = _baselines(here[here["group"] == group])
        keys = sorted({(order[row.label], row.label, int(row.workers)) for row in here.itertuples()})
        for _, label, workers in keys:
            members = here[(here["label"] == label) & (here["workers"] == workers)]
            cells.append(_cell(group, label, workers, members, baselines))
    return cells


def turn_of(row: Any) -> Turn:
    """`RecordedRun.turn` of a row of the frame."""
    return row.study, row.repeat, row.seed


def rates_of(rows: pd.DataFrame) -> dict[Turn, float]:
    """Samples/s by turn of those runs that were timed."""
    return {turn_of(row): row.samples_per_s for row in rows.itertuples() if is_number(row.samples_per_s)}


def _baselines(good: pd.DataFrame) -> Baselines:
    one = good[good["workers"] == 1]
    plain = one[one["backend"] == COMMON_BASELINE]
    first = plain["label"].iloc[0] if len(plain) else None  # with settings of its own it has another label
    return Baselines(
        common=rates_of(plain[plain["label"] == first]),
        own={label: rates_of(one[one["label"] == label]) for label in dict.fromkeys(one["label"])},
    )


def _cell(group: int, label: str, workers: int, members: pd.DataFrame, baselines: Baselines) -> dict[str, Any]:
    """Figures of a cell. Throughput: geometric mean of the repeats' totals, with its 95 % interval over them; typical
    step, its tails and memory: medians over the repeats; losses and quality: means."""
    good = members[members["group"] == group]
    rates = rates_of(good)
    rate, low, high = intervals.mean_ratio(list(rates.values()))
    quality: dict[str, Any] = {}
    for name in ("final_loss", *QUALITY):
        values = _column(good, name)
        mean, half = intervals.mean_interval(values) if len(values) else (None, None)
        quality |= {name: mean, f"{name}_half": half}
    return {
        "group": group,
        "label": label,
        "backend": members["backend"].iloc[0],
        "workers": workers,
        "scaling": members["scaling"].iloc[0],
        "precision": members["precision"].iloc[0],
        "ok": len(good),
        "failed": int((members["group"] == -1).sum()),
        "samples_per_s": rate,
        "samples_per_s_low": low,
        "samples_per_s_high": high,
        **_efficiency("efficiency", rates, baselines.common, workers, itself=_is_baseline(members, workers)),
        **_efficiency("own_efficiency", rates, baselines.own.get(label, {}), workers, itself=workers == 1),
        "typical_step_ms": _ms(_median(_column(good, "typical_step_s"))),
        **{f"step_ms_p{percent}": _ms(_median(_every(good, f"step_s_p{percent}"))) for percent in TAILS},
        "mfu": _median(_column(good, "mfu")),
        "hardware_utilization": _median(_column(good, "hardware_utilization")),
        "data_share": _median(_column(good, "data_share")),
        # the median: a repeat now and then still holds what Python's collector frees a moment later
        "peak_memory_mib": _median(_column(good, "peak_memory_mib")),
        "peak_rss_mib": _median(_column(good, "peak_rss_mib")),
        "peak_device_mib": _median(_column(good, "peak_device_mib")),
        **quality,
        "unusable_answers": max(_column(good, "unusable_answers"), default=None),
        "train_s": _median(_column(good, "train_s")),
        "wall_s": _median(_column(good, "wall_s")),
    }


def _is_baseline(members: pd.DataFrame, workers: int) -> bool:
    return workers == 1 and members["backend"].iloc[0] == COMMON_BASELINE


def _efficiency(
    name: str, rates: Mapping[Turn, float], baseline: Mapping[Turn, float], workers: int, *, itself: bool
) -> dict[str, Any]:
    """``name``, its ends ``_low`` and ``_high``, and ``_pairs``: the repeats in which both were timed.

    Each repeat counts against the baseline of the same repeat, never of another. Without two such repeats there is no
    interval, so no efficiency either. itself: these are the baseline's own runs."""
    shared = [] if itself else sorted(rates.keys() & baseline.keys())
    found = [step_metrics.efficiency(baseline[turn], rates[turn], workers) for turn in shared]
    value, low, high = intervals.mean_ratio(found)
    if low is None or high is None:
        value = low = high = None
    return {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_pairs": len(found)}


def _column(frame: pd.DataFrame, name: str) -> list[float]:
    return [float(value) for value in frame[name] if is_number(value)]


def _every(frame: pd.DataFrame, name: str) -> list[float]:
    """The column where every run has the figure: a tail of some of the repeats is not the cell's."""
    values = _column(frame, name)
    return values if len(values) == len(frame) else []


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if len(values) else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
