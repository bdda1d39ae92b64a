"""report.html: one file, no network, the verdict first. This module gathers; the template lays out."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from harness.analysis.caveats import findings
from harness.analysis.comparison import Comparison
from harness.analysis.cost import Prices
from harness.analysis.verdict import machine, setting, verdict
from harness.common import colors, formatting
from harness.common.formatting import DASH, duration, is_number, mebibytes, percent, plural
from harness.common.text_table import Table, without_empty_columns
from harness.job.declaration import Job
from harness.records import step_metrics
from harness.records.run_record import RecordedRun
from harness.report import bars, charts, plots, step_tables
from harness.report.comparison_table import group_names
from harness.report.notes import HEADING, notes_on
from harness.report.pictures import sample_views
from harness.report.sections import all_tables
from harness.report.speed_tables import runs_table

_TEMPLATES = Path(__file__).with_name("templates")
_RULE = (
    "Rule: runs stand on one curve only if they share initial weights, order of samples, batch, optimizer, schedule, "
    "clipping, precision, type on the wire, steps, test set, hardware and library versions other than the engine. "
    "Samples/s are total samples over total seconds; intervals: Student's t over interleaved repeats."
)
_LINES_A_CHART = 24


def render(comparison: Comparison, prices: Prices) -> str:
    """The page as text."""
    import jinja2

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html.j2").render(**_context(comparison, prices))


def _context(comparison: Comparison, prices: Prices) -> dict[str, Any]:
    found = findings(comparison)
    made = {table.id: table for table in all_tables(comparison, prices)}
    first = (comparison.members(0) or list(comparison.runs))[0]
    context: dict[str, Any] = {
        "title": comparison.title,
        "setting": setting(comparison),
        "facts": _facts(comparison),
        "sentences": verdict(comparison, found),
        "notes_heading": HEADING,
        "notes": notes_on(comparison.runs),
        "findings": found,
        "serious": [finding for finding in found if finding.level == "wrong"],
        "tables": {name: made.get(name) for name in _TABLES},
        "scaling": scaling_charts(comparison, 0),
        "unlike": _unlike(comparison),
        "convergence": convergence_charts(comparison),
        "target": target_table(comparison),
        "split": split_chart(comparison),
        "profile": made.get("profile"),
        "samples": sample_views(comparison),
        "rule": _RULE,
        "reproduce": reproduce(comparison),
        "environment": environment_table(comparison),
        "job": job_table(first),
        "job_name": first.name,
        "engine": engine_table(comparison),
        "runs": without_empty_columns(runs_table(comparison)),
        "css": _css(),
        "js": (_TEMPLATES / "report.js").read_text(),
        "version": _version(),
    }
    context["contents"] = _contents(context)
    return context


_TABLES = (
    "comparison", "differences", "variants", "quality", "categories", "kinds", "split", "ranks", "memory", "resources",
    "cost",
)  # fmt: skip


def _contents(context: dict[str, Any]) -> list[tuple[str, str]]:
    """The sections that the page has, in order."""
    sections = [
        ("scaling", "Scaling", context["scaling"]),
        ("convergence", "Convergence", context["convergence"]),
        ("quality", "Quality", context["tables"]["quality"] or context["tables"]["categories"]),
        ("split", "Step", context["split"]),
        ("memory", "Memory", True),
        ("cost", "Cost", True),
        ("pictures", "Pictures", context["samples"]),
        ("findings", "Warnings", True),
        ("reproduce", "Environment and job", True),
        ("runs", "All runs", True),
    ]
    return [(id, name) for id, name, there in sections if there]


def _facts(comparison: Comparison) -> str:
    failed = int((comparison.frame["group"] == -1).sum())
    started = sorted(filter(None, (run.result.get("started") for run in comparison.runs)))
    parts = [plural(len(comparison.runs), "run") + (f", {failed} failed" if failed else "")]
    if started:
        days = list(dict.fromkeys([started[0][:10], started[-1][:10]]))
        parts.append(" to ".join(days))
    return "; ".join(parts)


# -- charts ---------------------------------------------------------------------------------------------------------
def scaling_charts(comparison: Comparison, group: int) -> list[charts.Chart]:
    """Throughput with its ideal line and efficiency of one group, over workers (log2); the engines in a row where there
    is a single number of workers."""
    by_label = plots.series_of(comparison, "samples_per_s", group)
    workers = sorted({int(cell["workers"]) for cells in by_label.values() for cell in cells})
    if not workers:
        return []
    slots = {label: slot for slot, label in enumerate(comparison.labels)}
    rates = [
        charts.Series(label=label, slot=slots[label], points=[_point(cell, "samples_per_s") for cell in cells])
        for label, cells in by_label.items()
    ]
    if len(workers) == 1:
        at = plural(workers[0], "worker")
        chart = bars.ranked(
            "chart-scaling", f"Throughput at {at}", rates, unit="samples per second", note=f"Bars: {plots.BAR_WORDS}."
        )
        return [] if chart is None else [chart]
    ideals = plots.ideal_lines(comparison, group)
    rates += [
        charts.Series(label=line.label, slot=slots[line.label], points=line.points, ideal=True) for line in ideals
    ]
    x = charts.Axis(label="workers", scale="log2", ticks=workers, form=lambda value: f"{value:.0f}")
    number = f"-{group + 1}" if group else ""
    chart = charts.line_chart(
        f"chart-scaling{number}",
        "Throughput over workers",
        rates,
        x,
        charts.Axis(label="samples per second", scale="log2"),
        note=f"Both axes log2. Dotted: {plots.ideal_words(ideals)}. Bars: {plots.BAR_WORDS}.",
    )
    return [made for made in (chart, _efficiency_chart(comparison, group, x, number)) if made is not None]


def _efficiency_chart(comparison: Comparison, group: int, x: charts.Axis, number: str) -> charts.Chart | None:
    name = plots.efficiency_name(comparison, group)
    slots = {label: slot for slot, label in enumerate(comparison.labels)}
    shares = [
        charts.Series(label=label, slot=slots[label], points=[_point(cell, name) for cell in cells])
        for label, cells in plots.series_of(comparison, name, group).items()
    ]
    if not any(point[0] > 1 for item in shares for point in item.points):
        return None
    shares.append(charts.Series(label="ideal", slot=5, points=[(count, 1.0) for count in x.ticks], ideal=True))
    return charts.line_chart(
        f"chart-efficiency{number}",
        plots.EFFICIENCY_TITLES[name],
        shares,
        x,
        charts.Axis(label="efficiency", from_zero=True, form=percent),
        note=f"{plots.EFFICIENCY_WORDS[name]} Bars: 95 % interval over the repeats.",
    )


def _point(cell: dict[str, Any], name: str) -> tuple[float, ...]:
    low, high = cell[f"{name}_low"], cell[f"{name}_high"]
    ends = (low, high) if is_number(low) and is_number(high) else ()
    return (cell["workers"], cell[name], *ends)


def _unlike(comparison: Comparison) -> list[dict[str, Any]]:
    names = group_names(comparison)
    return [
        {
            "title": _group_title(group + 1, names.get(group, "")),
            "reasons": "; ".join(reasons[:8]),
            "charts": _group_charts(comparison, group),
        }
        for group, reasons in enumerate(comparison.comparability.reasons)
        if group
    ]


def _group_title(number: int, name: str) -> str:
    """``Group 2 [compile=true]``; name: of `group_names`, which may be the number alone."""
    return f"Group {number}" if name == f" [group {number}]" else f"Group {number}{name}"


def _group_charts(comparison: Comparison, group: int) -> list[charts.Chart]:
    """Charts of a further group; none where it has a single number of workers: the table says all of it."""
    workers = {run.workers for run in comparison.members(group)}
    return scaling_charts(comparison, group) if len(workers) > 1 else []


def convergence_charts(comparison: Comparison) -> list[charts.Chart]:
    """Loss over steps and over time, and the loss scale where it moves."""
    slots = {label: slot for slot, label in enumerate(comparison.labels)}
    by_step: list[charts.Series] = []
    by_time: list[charts.Series] = []
    scales: list[charts.Series] = []
    for label, runs in plots.largest_runs(comparison).items():
        for position, run in enumerate(runs[: max(1, _LINES_A_CHART // max(1, len(comparison.labels)))]):
            rows = [row for row in run.steps if is_number(row.get("loss"))]
            if len(rows) < 2:
                continue
            losses = plots.smooth([row["loss"] for row in rows])
            look: dict[str, Any] = {"label": label, "slot": slots[label], "faint": position > 0, "markers": False}
            steps = [(row["step"] + 1.0, loss) for row, loss in zip(rows, losses, strict=True)]
            times = [(row["t"], loss) for row, loss in zip(rows, losses, strict=True)]
            by_step.append(charts.Series(points=charts.thin(steps), **look))
            by_time.append(charts.Series(points=charts.thin(times), **look))
            scale = [(row["step"] + 1.0, row["loss_scale"]) for row in rows if is_number(row.get("loss_scale"))]
            if len({value for _, value in scale}) > 1 or any(value != 1 for _, value in scale):
                scales.append(charts.Series(points=charts.thin(scale), **look))
    y = charts.Axis(label="training loss")
    steps_axis = charts.Axis(label="optimizer steps", form=lambda value: f"{value:.0f}")
    note = (
        f"Mean of the last {plots.SMOOTHING} steps, largest number of workers of each engine; faint: further repeats."
    )
    made = [
        charts.line_chart("chart-loss-steps", "Loss over steps", by_step, steps_axis, y, note=note),
        charts.line_chart("chart-loss-time", "Loss over time", by_time, charts.Axis(label="seconds"), y),
        charts.line_chart(
            "chart-scale", "fp16 loss scale", scales, steps_axis, charts.Axis(label="loss scale", scale="log2")
        ),
    ]
    return [chart for chart in made if chart is not None]


def split_chart(comparison: Comparison) -> charts.Chart | None:
    """Stacked parts of a step, one bar an engine and number of workers."""
    rows = []
    for label, workers, runs in step_tables.cell_runs(comparison):
        parts = step_tables.split_means(runs)
        if parts is not None:
            rows.append((f"{label}, {workers}", parts))
    return bars.stacked_bars(
        "chart-split", "Parts of a step (engine, workers)", rows[:16], step_tables.SPLIT_PARTS, unit="ms"
    )


# -- tables of the page only ----------------------------------------------------------------------------------------
def target_table(comparison: Comparison) -> Table | None:
    """Time to a training loss that every run reaches: the highest of the runs' final losses (MLPerf's rule: the first
    time that the quality is reached counts, here the mean loss of the last 10 steps)."""
    runs = plots.largest_runs(comparison)
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


def environment_table(comparison: Comparison) -> Table:
    """What the first run's machine was, and whether all runs had the same."""
    runs = list(comparison.runs)
    place = next((run.environment for run in runs if run.environment), {})
    cpu, gpus = place.get("cpu") or {}, place.get("gpus") or {}
    git = place.get("git") or {}
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    memory = place.get("memory_mib")
    hosts = sorted(
        {str(rank.get("hostname")) for run in runs for rank in run.environment.get("ranks") or ()} - {"None"}
    )
    rows = [
        ["machine", machine(place)],
        ["processor instructions", ", ".join(cpu.get("instructions") or ()) or DASH],
        ["memory", mebibytes(memory)],
        ["GPU driver, CUDA", f"{gpus.get('driver')}, {gpus.get('cuda_driver')}" if gpus else "no GPU"],
        ["hosts", ", ".join(hosts) or DASH],
        ["system, Python", f"{place.get('os')}, {place.get('python')}"],
        ["MPI", place.get("mpi") or DASH],
        ["versions", ", ".join(f"{name} {version}" for name, version in (place.get("versions") or {}).items())],
        [
            "launchers",
            ", ".join(sorted({str(run.result.get("launcher")) for run in runs if run.result.get("launcher")})),
        ],
        ["commit", f"{git['commit'][:12]}{dirty}" if git.get("commit") else DASH],
        [
            "variables",
            ", ".join(f"{name}={value}" for name, value in (place.get("variables") or {}).items()) or DASH,
        ],
    ]
    return Table(id="environment", title="Environment", columns=["what", "found"], rows=rows, numeric=False)


def job_table(run: RecordedRun) -> Table:
    """Every field of a job; those that differ from the program's defaults are marked by a star."""
    defaults = Job().to_dict()
    rows = []
    for name, value in run.job.items():
        if name != "schema":
            star = " *" if defaults.get(name) != value else ""
            rows.append([f"{name}{star}", value if isinstance(value, str) else json.dumps(value)])
    return Table(
        id="job",
        title=f"Job of {run.name}",
        columns=["field", "value"],
        rows=rows,
        numeric=False,
        note="* not the default",
    )


def engine_table(comparison: Comparison) -> Table | None:
    """`Backend.describe()` of the first ok run of each label, side by side."""
    described: dict[str, dict[str, Any]] = {}
    for run in comparison.runs:
        if run.ok and run.result.get("engine") and run.workers > 1:
            described.setdefault(run.label, run.result["engine"])
    for run in comparison.runs:
        if run.ok and run.result.get("engine"):
            described.setdefault(run.label, run.result["engine"])
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


def _css() -> str:
    text = (_TEMPLATES / "report.css").read_text()
    return text.replace("@@LIGHT@@", colors.css("light")).replace("@@DARK@@", colors.css("dark"))


def _version() -> str:
    try:
        return importlib.metadata.version("anomaly-distbench")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
