"""Tables that only the report's page has: time to a loss, environment, job, what each engine used."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from harness.analysis.comparison import Comparison
from harness.analysis.verdict import machine
from harness.common import formatting
from harness.common.formatting import DASH, duration, mebibytes
from harness.common.text_table import Table
from harness.job.declaration import Job
from harness.records import step_metrics
from harness.report.charts.data import largest_runs


def target_table(comparison: Comparison) -> Table | None:
    """Time to a training loss that every run reaches: the highest of the runs' final losses (MLPerf's rule: the first
    time that the quality is reached counts, here the mean loss of the last 10 steps)."""
    runs = largest_runs(comparison)
    curves = {
        label: [points for run in members if (points := step_metrics.smooth_loss(run.steps))]
        for label, members in runs.items()
    }
    finals = [points[-1][1] for members in curves.values() for points in members]
    if len(finals) < 2:
        return None
    target = max(finals)
    rows = []
    for label, members in curves.items():
        times = [step_metrics.time_to_target(points, target, higher_is_better=False) for points in members]
        reached = [time for time in times if time is not None]
        middle = float(np.median(reached)) if reached else None
        spread = f"{formatting.number(min(reached))} to {formatting.number(max(reached))}" if len(reached) > 1 else DASH
        rows.append([label, duration(middle), spread, f"{len(reached)} of {len(times)}"])
    return Table(
        id="target",
        title=f"Time to a training loss of {formatting.number(target, 4)}",
        columns=["engine", "median time", "range, s", "runs that reached it"],
        rows=rows,
        note="The target is the highest final loss of the runs shown: all reach it. Clock: from the first step.",
    )


def environment_table(places: Sequence[Mapping[str, Any]], launchers: Sequence[str] = ()) -> Table:
    """The machine and the software. places: the recorded environments; the first is shown, with the hosts of all."""
    place: Mapping[str, Any] = next(filter(None, places), {})
    cpu, gpus = place.get("cpu") or {}, place.get("gpus") or {}
    git = place.get("git") or {}
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    memory = place.get("memory_mib")
    hosts = sorted({str(rank.get("hostname")) for each in places for rank in each.get("ranks") or ()} - {"None"})
    rows = [
        ["machine", machine(dict(place))],
        ["processor instructions", ", ".join(cpu.get("instructions") or ()) or DASH],
        ["memory", mebibytes(memory)],
        ["GPU driver, CUDA", f"{gpus.get('driver')}, {gpus.get('cuda_driver')}" if gpus else "no GPU"],
        ["hosts", ", ".join(hosts) or DASH],
        ["system, Python", f"{place.get('os')}, {place.get('python')}"],
        ["MPI", place.get("mpi") or DASH],
        ["versions", ", ".join(f"{name} {version}" for name, version in (place.get("versions") or {}).items())],
        ["launchers", ", ".join(sorted(set(launchers))) or DASH],
        ["commit", f"{git['commit'][:12]}{dirty}" if git.get("commit") else DASH],
        [
            "variables",
            ", ".join(f"{name}={value}" for name, value in (place.get("variables") or {}).items()) or DASH,
        ],
    ]
    return Table(id="environment", title="Environment", columns=["what", "found"], rows=rows, numeric=False)


def job_table(job: Mapping[str, Any], name: str) -> Table:
    """Every field of a job; those that differ from the program's defaults are marked by a star."""
    defaults = Job().to_dict()
    rows = []
    for key, value in job.items():
        if key != "schema":
            star = " *" if defaults.get(key) != value else ""
            rows.append([f"{key}{star}", value if isinstance(value, str) else json.dumps(value)])
    return Table(
        id="job",
        title=f"Job of {name}",
        columns=["field", "value"],
        rows=rows,
        numeric=False,
        note="* not the default",
    )


def engines_of(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """`Backend.describe()` of the first ok run of each label, of one with several workers where there is any."""
    described: dict[str, dict[str, Any]] = {}
    for run in comparison.runs:
        if run.ok and run.result.get("engine") and run.workers > 1:
            described.setdefault(run.label, run.result["engine"])
    for run in comparison.runs:
        if run.ok and run.result.get("engine"):
            described.setdefault(run.label, run.result["engine"])
    return described


def engine_table(described: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """What each engine says of itself, side by side. described: label -> `Backend.describe()`."""
    if not described:
        return None
    keys = list(dict.fromkeys(key for value in described.values() for key in value))
    rows = [[key, *(_plain(value.get(key)) for value in described.values())] for key in keys]
    return Table(
        id="engine", title="What each engine really used", columns=["what", *described], rows=rows, numeric=False
    )


def reproduce(comparison: Comparison) -> str:
    """Commands that do the study again, and re-check this one."""
    lines = []
    for study in dict.fromkeys(run.folder.parent for run in comparison.runs):
        if (study / "study.json").exists():
            lines.append(f"harness compare results/{study.name}/study.json --results again")
            lines.append(f"harness results check results/{study.name}")
    return "\n".join(lines or [run_command(run.job) for run in list(comparison.runs)[:6]])


def run_command(job: dict[str, Any]) -> str:
    """`harness run` with what differs from the defaults."""
    parts = ["harness", "run"]
    defaults = Job().to_dict()
    kept = {field.name for field in fields(Job)} - {"run", "study", "repeat", "launcher"}
    for name, value in job.items():
        if name not in kept or value == defaults[name]:
            continue
        if isinstance(value, dict):
            parts += [f"--set {name}.{key}={shlex.quote(json.dumps(item))}" for key, item in value.items()]
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            parts.append(f"--set {name}={shlex.quote(text)}")
    return " ".join(parts)


def _plain(value: Any) -> str:
    if value is None:
        return DASH
    return value if isinstance(value, str) else json.dumps(value)
