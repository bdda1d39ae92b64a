"""Tables of the report on what a training needs: memory, time, energy, money."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.analysis.comparison import Comparison
from harness.analysis.cost import Cost, Prices, cost_of, energy_of
from harness.common.formatting import (
    DASH,
    duration,
    is_number,
    mebibytes,
    number,
)
from harness.common.text_table import Table
from harness.records.run_record import RecordedRun
from harness.report.step_tables import cell_runs


def memory_table(comparison: Comparison) -> Table | None:
    """Peak memory, and by kind beside theory where the run measured it."""
    rows = []
    for label, workers, runs in cell_runs(comparison):
        memory = runs[0].memory
        kinds = memory.get("kinds") or {}
        theory = memory.get("theory") or {}
        row = [
            label,
            str(workers),
            mebibytes(_highest(runs, "peak_rss_mib")),
            mebibytes(_highest(runs, "peak_device_mib")),
        ]
        for kind in ("weights", "gradients", "optimizer", "activations"):
            text = mebibytes(kinds.get(kind))
            if is_number(theory.get(kind)):
                text += f" ({mebibytes(theory[kind])})"
            row.append(text)
        rows.append(row)
    if not rows:
        return None
    return Table(
        id="memory",
        title="Peak memory of a worker",
        columns=["engine", "workers", "process", "GPU", "weights", "gradients", "optimizer", "activations and rest"],
        rows=rows,
        note="Highest worker. By kind: measured in the first timed step (theory for the ZeRO stage in brackets, "
        "Rajbhandari et al., arXiv:1910.02054).",
    )


def cost_table(comparison: Comparison, prices: Prices) -> Table | None:
    """Time and cost beside each other, in the form of DeepSpeed-Chat's tables."""
    rows = []
    for label, workers, runs in cell_runs(comparison):
        costs = [cost_of(run, prices) for run in runs]
        train, money = _middle(costs, "train_s"), _middle(costs, "money")
        epoch = _middle(costs, "per_epoch_s")
        per_epoch = _middle(costs, "money_per_epoch")
        samples = [
            1000 * money / (int(run.job.get("steps", 0)) * int(run.job.get("global_batch", 0)) or 1)
            for run in runs[:1]
            if money is not None
        ]
        rows.append(
            [
                label,
                str(workers),
                _time_and_money(train, money, prices.currency),
                _time_and_money(epoch, per_epoch, prices.currency),
                _energy_text(costs),
                f"{prices.currency}{number(samples[0])}" if samples else DASH,
            ]
        )
    if not rows:
        return None
    return Table(
        id="cost",
        title="Time and cost",
        columns=["engine", "workers", "training", "per epoch", "energy of training", "cost of 1000 samples"],
        rows=rows,
        note="Training only, without set-up and evaluation. Money: by your own prices (--prices FILE). Energy: of the "
        "GPUs that the run used, and of its machines' processors where their counters may be read, which hold what "
        f"every program there used. {_unmeasured(comparison)}".strip(),
    )


def _energy_text(costs: Sequence[Cost]) -> str:
    """The median of runs whose energy was measured of the same parts; why it was not, else."""
    measured = [cost.energy for cost in costs if cost.energy.kwh is not None]
    if len(measured) < len(costs) or len({energy.of for energy in measured}) > 1:
        return "not measured"
    middle = float(np.median([energy.kwh for energy in measured if energy.kwh is not None]))
    beside = ", beside other work" if any(energy.shared for energy in measured) else ""
    return f"{number(middle * 1000)} Wh ({measured[0].of}{beside})"


def _unmeasured(comparison: Comparison) -> str:
    reasons = [energy_of(run).why for _, _, runs in cell_runs(comparison) for run in runs]
    told = list(dict.fromkeys(reason for reason in reasons if reason))
    return f"Not measured: {'; '.join(told[:3])}." if told else ""


def _highest(runs: Sequence[RecordedRun], name: str) -> float | None:
    values = [value for run in runs for value in run.memory.get(name) or () if is_number(value)]
    return max(values, default=None)


def _middle(costs: Sequence[Cost], name: str) -> float | None:
    values: list[Any] = [getattr(cost, name) for cost in costs]
    values = [value for value in values if is_number(value)]
    return float(np.median(values)) if values else None


def _time_and_money(seconds: float | None, money: float | None, currency: str) -> str:
    """``5.7 h ($132)``, as DeepSpeed-Chat writes it."""
    text = duration(seconds)
    return f"{text} ({currency}{number(money)})" if money is not None else text
