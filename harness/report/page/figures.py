"""The charts of a study's page."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.analysis.comparison import Comparison
from harness.report.charts import differences, scaling, training
from harness.report.charts.to_page import POINTS, SIZE, Chart, chart
from harness.report.comparison_table import group_names
from harness.report.step_tables import cell_runs, split_means


def there(*made: Chart | None) -> list[Chart]:
    """The charts that have something to show."""
    return [each for each in made if each is not None]


def forest(id: str, rows: list[differences.Row], title: str = "", unit: str = "") -> Chart | None:
    """The interval picture of `rows`; None without any."""
    return chart(id, partial(differences.forest, rows, title=title, unit=unit), size=differences.size(rows))


def scaling_charts(comparison: Comparison, group: int) -> list[Chart]:
    """Throughput with its ideal line and efficiency of one group, over workers (log2); the engines in a row where there
    is a single number of workers."""
    number = f"-{group + 1}" if group else ""
    return there(
        chart(f"chart-scaling{number}", partial(scaling.throughput, comparison, group=group)),
        chart(f"chart-efficiency{number}", partial(scaling.efficiency, comparison, group=group)),
    )


def convergence_charts(comparison: Comparison) -> list[Chart]:
    """Loss over steps and over time, and the loss scale where it moves."""
    return there(
        chart("chart-loss-steps", partial(training.loss_over, comparison, over="step")),
        chart("chart-loss-time", partial(training.loss_over, comparison, over="time")),
        chart("chart-scale", partial(training.loss_scale, comparison)),
    )


def split_chart(comparison: Comparison) -> Chart | None:
    """Stacked parts of a step, one bar an engine and number of workers."""
    rows = sum(split_means(runs) is not None for _, _, runs in cell_runs(comparison))
    height = (70 + 34 * min(rows, training.MOST_BARS)) / POINTS
    return chart("chart-split", partial(training.step_parts, comparison), size=(SIZE[0], height))


def unlike(comparison: Comparison) -> list[dict[str, Any]]:
    """The groups that must not share a curve with the main one: why, and their own charts."""
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


def _group_charts(comparison: Comparison, group: int) -> list[Chart]:
    """Charts of a further group; none where it has a single number of workers: the table says all of it."""
    workers = {run.workers for run in comparison.members(group)}
    return scaling_charts(comparison, group) if len(workers) > 1 else []
