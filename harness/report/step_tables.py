"""Tables of the report on what happens in a step: its parts, each rank's share, a profile, the load meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.analysis.comparison import Comparison
from harness.common.formatting import (
    DASH,
    is_number,
    milliseconds,
    number,
    plural,
)
from harness.common.text_table import Table
from harness.records import step_metrics
from harness.records.run_record import RecordedRun

SPLIT_PARTS = ("data", "forward", "backward", "exchange", "optimizer", "other")


def split_means(runs: Sequence[RecordedRun]) -> dict[str, float] | None:
    """Median milliseconds of each part of a step, over the sampled steps of rank 0..N of `runs`."""
    rows = [row for run in runs for row in run.split if not run.job.get("profile")]
    if not rows:
        return None
    return {part: 1000 * float(np.median([row.get(f"{part}_s") or 0.0 for row in rows])) for part in SPLIT_PARTS}


def split_table(comparison: Comparison) -> Table | None:
    """Where a step goes, engine by engine."""
    rows = []
    for label, workers, runs in cell_runs(comparison):
        parts = split_means(runs)
        if parts is not None:
            rows.append([label, str(workers), *(number(parts[part]) for part in SPLIT_PARTS)])
    if not rows:
        return None
    return Table(
        id="split",
        title="Where a step goes, ms",
        columns=["engine", "workers", "data", "forward", "backward", "exchange not hidden", "optimizer", "after it"],
        rows=rows,
        note="Medians over sampled steps of all ranks. Exchange: from the rank's last own gradient to the update, so "
        "waiting for slower ranks and gradient clipping are in it; what is hidden behind backward is not. After the "
        "update ZeRO 1 and 2 gather the new weights.",
    )


def rank_table(comparison: Comparison, most: int = 32) -> Table | None:
    """Each rank's own work and waiting, of the first run of each cell with several workers."""
    rows = []
    for label, workers, runs in cell_runs(comparison):
        if workers < 2 or not runs[0].split or runs[0].job.get("profile"):
            continue
        hosts = {rank.get("rank"): rank.get("hostname") for rank in runs[0].environment.get("ranks") or ()}
        for rank in range(workers):
            own = [row for row in runs[0].split if row["rank"] == rank]
            if not own:
                continue
            work = np.array([step_metrics.own_work_s(row) for row in own])
            wait = np.array([row["exchange_s"] + row["other_s"] for row in own])
            busy = float(np.median([step_metrics.launching_s(row) for row in own]))
            rows.append(
                [
                    f"{label}, rank {rank}",
                    hosts.get(rank) or DASH,
                    milliseconds(float(np.median(work))),
                    milliseconds(float(np.percentile(work, 90))),
                    milliseconds(busy) if busy else DASH,
                    milliseconds(float(np.median(wait))),
                ]
            )
    if not rows:
        return None
    return Table(
        id="ranks",
        title="Own work and waiting by rank, ms a step",
        columns=[
            "rank",
            "host",
            "own work (median)",
            "own work (p90)",
            "of it processor",
            "exchange and waiting (median)",
        ],
        rows=rows[:most],
        note="First run of each cell. A rank whose own work is longer than the others' makes them all wait. Processor: "
        "what it worked for forward and backward; near the whole on a GPU, the GPU waits for its host or the host for "
        "a full queue.",
    )


def resource_table(comparison: Comparison) -> Table | None:
    """Load of rank 0's host while training: processor, network, GPUs."""
    rows = []
    for label, workers, runs in cell_runs(comparison):
        seen = [row for run in runs for row in run.resources]
        if not seen:
            continue
        gpus = [gpu for row in seen for gpu in row.get("gpus") or ()]
        rates = [_rate(run.resources, "net_sent_bytes") for run in runs]
        sent = [rate for rate in rates if rate is not None]
        rows.append(
            [
                label,
                str(workers),
                f"{np.mean([row['cpu_percent'] for row in seen]):.0f} %",
                number(float(np.median(sent))) if sent else DASH,
                _gpu_mean(gpus, "util_percent", "{:.0f} %"),
                _gpu_mean(gpus, "power_w", "{:.0f} W"),
                _gpu_mean(gpus, "temperature_c", "{:.0f} °C", highest=True),
            ]
        )
    if not rows:
        return None
    return Table(
        id="resources",
        title="Load while training",
        columns=["engine", "workers", "processor (rank 0)", "sent, MB/s", "GPU use", "GPU power", "GPU temperature"],
        rows=rows,
        note="Means over the sampler's rows; temperature: highest. Processor: of rank 0's process, 100 % = one core. "
        "Sent: all interfaces of rank 0's host, also within it.",
    )


def profile_table(comparison: Comparison) -> Table | None:
    """Where a step's own device time goes by kind of operation, from the profiled runs: mean over their ranks."""
    columns: list[str] = []
    figures: list[dict[str, float]] = []
    for run in comparison.runs:
        ranks = run.profile.get("ranks") or []
        if ranks:
            columns.append(f"{run.label}, {plural(run.workers, 'worker')}")
            kinds = ranks[0]["kinds_ms"]
            figures.append({kind: float(np.mean([rank["kinds_ms"][kind] for rank in ranks])) for kind in kinds})
    if not columns:
        return None
    kinds = list(figures[0])
    rows = [[kind, *(number(own.get(kind)) for own in figures)] for kind in kinds]
    rows.append(["sum", *(number(sum(own.values())) for own in figures)])
    for name, told in (("span_ms", "first to last"), ("busy_ms", "at work"), ("computing_ms", "computing")):
        means = [_rank_mean(run, name) for run in comparison.runs if run.profile.get("ranks")]
        if any(mean is not None for mean in means):
            rows.append([f"device: {told}", *map(number, means)])
    return Table(
        id="profile",
        title="A profiled step by kind of operation, ms",
        columns=["kind", *columns],
        rows=rows,
        note="Own time of the operations on the device that computes, per step and rank, from runs with a profiler. "
        "What a GPU lacks from first to last to being at work, it waited for its host. "
        "Kinds may overlap in time (exchange beside backward), and the profiler slows a step: compare shares. "
        "Horovod exchanges on a CPU in a thread of its own, which the profiler does not see.",
    )


def _rank_mean(run: RecordedRun, name: str) -> float | None:
    found = [rank[name] for rank in run.profile["ranks"] if rank.get(name) is not None]
    return float(np.mean(found)) if found else None


def cell_runs(comparison: Comparison) -> list[tuple[str, int, list[RecordedRun]]]:
    """(label, workers, ok runs by repeat) of the main group's cells."""
    found = []
    members = comparison.members(0)
    for cell in comparison.main.to_dict("records") if len(comparison.main) else ():
        runs = [run for run in members if run.label == cell["label"] and run.workers == cell["workers"]]
        if runs:
            found.append((cell["label"], int(cell["workers"]), sorted(runs, key=lambda run: (run.repeat, run.name))))
    return found


def _rate(rows: Sequence[dict[str, Any]], counter: str) -> float | None:
    """MB/s between the first and the last row, None where the counter or the time stands still."""
    known = [row for row in rows if is_number(row.get(counter))]
    if len(known) < 2 or known[-1]["t"] <= known[0]["t"]:
        return None
    return (known[-1][counter] - known[0][counter]) / (known[-1]["t"] - known[0]["t"]) / 1e6


def _gpu_mean(gpus: Sequence[dict[str, Any]], name: str, form: str, *, highest: bool = False) -> str:
    values = [gpu[name] for gpu in gpus if is_number(gpu.get(name))]
    if not values:
        return DASH
    return form.format(max(values) if highest else float(np.mean(values)))
