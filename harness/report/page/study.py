"""The page of a study of trainings, with its duels where it fought any."""

from __future__ import annotations

from typing import Any

from harness.analysis.caveats import findings
from harness.analysis.comparison import Comparison
from harness.analysis.cost import Prices
from harness.analysis.verdict import setting, verdict
from harness.common.formatting import plural
from harness.common.text_table import without_empty_columns
from harness.report.charts.differences import rows_of
from harness.report.notes import HEADING, notes_on
from harness.report.page import figures, layout, tables
from harness.report.pictures import sample_views
from harness.report.sections import all_tables
from harness.report.speed_tables import runs_table

_RULE = (
    "Rule: runs stand on one curve only if they share initial weights, order of samples, batch, optimizer, schedule, "
    "clipping, precision, type on the wire, steps, test set, hardware and library versions other than the engine. "
)
_BASIS = {
    True: "Speed is that of the duels: all engines live at once and take turns in blocks of steps; intervals: "
    "Student's t over the duels. Memory, losses and quality are those of the whole trainings.",
    False: "Samples/s are total samples over total seconds; intervals: Student's t over interleaved repeats.",
}


def render(comparison: Comparison, prices: Prices) -> str:
    """The page as text."""
    context = _context(comparison, prices)
    scored = context["tables"]["quality"] or context["tables"]["categories"]
    return layout.fill("study.html.j2", context, without=() if scored else ["auroc"])


def _context(comparison: Comparison, prices: Prices) -> dict[str, Any]:
    found = findings(comparison)
    made = {table.id: table for table in all_tables(comparison, prices)}
    first = (comparison.members(0) or list(comparison.runs))[0]
    runs = list(comparison.runs)
    launchers = [str(run.result["launcher"]) for run in runs if run.result.get("launcher")]
    context: dict[str, Any] = {
        "title": comparison.title,
        "setting": setting(comparison),
        "facts": _facts(comparison),
        "sentences": verdict(comparison, found),
        "forest": figures.forest("chart-differences", rows_of(comparison)),
        "notes_heading": HEADING,
        "notes": notes_on(comparison.runs),
        "findings": found,
        "serious": [finding for finding in found if finding.level == "wrong"],
        "tables": {name: made.get(name) for name in _TABLES},
        "scaling": figures.scaling_charts(comparison, 0),
        "unlike": figures.unlike(comparison),
        "convergence": figures.convergence_charts(comparison),
        "target": tables.target_table(comparison),
        "split": figures.split_chart(comparison),
        "profile": made.get("profile"),
        "samples": sample_views(comparison),
        "rule": _RULE + _BASIS[comparison.duels is not None],
        "reproduce": tables.reproduce(comparison),
        "environment": tables.environment_table([run.environment for run in runs], launchers),
        "job": tables.job_table(first.job, first.name),
        "job_name": first.name,
        "engine": tables.engine_table(tables.engines_of(comparison)),
        "runs": without_empty_columns(runs_table(comparison)),
    }
    context["contents"] = _contents(context)
    return context


_TABLES = (
    "comparison", "differences", "variants", "quality", "categories", "kinds", "own-figures", "split", "ranks",
    "memory", "resources", "cost",
)  # fmt: skip


def _contents(context: dict[str, Any]) -> list[tuple[str, str]]:
    """The sections that the page has, in order."""
    shown = context["tables"]
    sections = [
        ("differences", "Differences", context["forest"]),
        ("scaling", "Scaling", context["scaling"]),
        ("convergence", "Convergence", context["convergence"]),
        ("quality", "Quality", shown["quality"] or shown["categories"] or shown["own-figures"]),
        ("split", "Step", context["split"]),
        ("memory", "Memory", True),
        ("cost", "Cost", True),
        ("pictures", "Pictures", context["samples"]),
        ("findings", "Warnings", True),
        ("reproduce", "Environment and job", True),
        ("runs", "All runs", True),
        ("glossary", "Glossary", True),
    ]
    return [(id, name) for id, name, there in sections if there]


def _facts(comparison: Comparison) -> str:
    failed = int((comparison.frame["group"] == -1).sum())
    started = sorted(filter(None, (run.result.get("started") for run in comparison.runs)))
    parts = [plural(len(comparison.runs), "run") + (f", {failed} failed" if failed else "")]
    if comparison.duels is not None:
        parts.append(plural(len(comparison.duels["duels"]), "duel"))
    if started:
        days = list(dict.fromkeys([started[0][:10], started[-1][:10]]))
        parts.append(" to ".join(days))
    return "; ".join(parts)
