"""Tables of the report on quality: by engine, by category, by kind of defect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core_model.user_job.source import source_of
from harness.analysis.comparison import Comparison
from harness.analysis.run_figures import QUALITY_NAMES
from harness.common.formatting import (
    DASH,
    fixed,
    is_number,
    number,
)
from harness.common.text_table import Table
from harness.records.run_record import RecordedRun
from harness.records.undefined_figures import undefined
from harness.report import published_figures
from harness.report.charts.data import largest_runs
from harness.report.step_tables import cell_runs


def quality_table(comparison: Comparison) -> Table | None:
    """Mean and 95 % interval over the seeds of each quality figure, main group."""
    rows = []
    for cell in comparison.main.to_dict("records") if len(comparison.main) else ():
        if any(is_number(cell[name]) for name in QUALITY_NAMES):
            figures = [_with_half(cell[name], cell[f"{name}_half"]) for name in QUALITY_NAMES]
            unusable = f"{cell['unusable_answers']:.0f}" if is_number(cell["unusable_answers"]) else DASH
            rows.append([cell["label"], str(int(cell["workers"])), *figures, unusable])
    if not rows:
        return None
    return Table(
        id="quality",
        title="Quality on the test set",
        columns=["engine", "workers", *QUALITY_NAMES.values(), "unusable answers (worst run)"],
        rows=rows,
        note=" ".join(["Mean ± half of the 95 % interval over the seeds.", *_undefined(comparison)]),
    )


def _undefined(comparison: Comparison) -> list[str]:
    """A sentence for each reason why figures of quality stand nowhere, such as a data set without masks."""
    texts = dict.fromkeys(text for run in comparison.runs for text in undefined(run.evaluation, QUALITY_NAMES))
    return [f"{text[0].upper()}{text[1:]}." for text in texts]


def category_table(comparison: Comparison) -> Table | None:
    """Image and pixel AUROC and answer accuracy per category at the largest number of workers, beside the published
    figures where the category has any."""
    runs = largest_runs(comparison)
    runs = {
        label: members for label, members in runs.items() if any(run.evaluation.get("categories") for run in members)
    }
    if not runs:
        return None
    names = sorted(
        {name for members in runs.values() for run in members for name in run.evaluation.get("categories") or ()}
    )
    figures = ("image_auroc", "pixel_auroc", "answer_accuracy")
    known = [name for name in names if name in published_figures.ACCURACY]
    versions = published_figures.VERSIONS if known else ()
    columns = ["category", *(f"{QUALITY_NAMES[figure]}: {label}" for figure in figures for label in runs)]
    columns += [f"study {version}: answers" for version in versions]
    rows = []
    for name in names:
        row = [name]
        row += [_percent(_mean_of(own, name, figure)) for figure in figures for own in runs.values()]
        row += [
            fixed(value, 1) for value in published_figures.ACCURACY.get(name, (None,) * len(versions))[: len(versions)]
        ]
        rows.append(row)
    mean = ["mean", *(_percent(_mean_of(own, None, figure)) for figure in figures for own in runs.values())]
    rows.append(mean + [fixed(value, 1) for value in published_figures.MEAN["answer_accuracy"][: len(versions)]])
    return Table(
        id="categories",
        title="By category, per cent",
        columns=columns,
        rows=rows,
        note="Published for comparison (MVTec AD, whole training, other data here unless the categories match): the "
        f"study's versions reach image AUROC {_range(published_figures.MEAN['image_auroc'])}, pixel AUROC "
        f"{_range(published_figures.MEAN['pixel_auroc'])}, answers "
        f"{_range(published_figures.MEAN['answer_accuracy'])}; "
        f"the paper {published_figures.PAPER['image_auroc']}, {published_figures.PAPER['pixel_auroc']}, "
        f"{published_figures.PAPER['answer_accuracy']}." + "".join(f" {text}" for text in _undefined(comparison)),
    )


def kind_table(comparison: Comparison) -> Table | None:
    """Per kind of defect, over all categories, at the largest number of workers."""
    runs = largest_runs(comparison)
    kinds: dict[str, dict[str, list[list[float]]]] = {}
    for label, members in runs.items():
        for run in members:
            for category in (run.evaluation.get("categories") or {}).values():
                for kind, row in (category.get("kinds") or {}).items():
                    cells = kinds.setdefault(kind, {}).setdefault(label, [[], [], []])
                    figures = ("image_auroc", "pixel_auroc_defective", "answer_accuracy")
                    for values, figure in zip(cells, figures, strict=True):
                        if is_number(row.get(figure)):
                            values.append(row[figure])
    if not kinds:
        return None
    heads = ("image AUROC", "pixel AUROC in defective", "answers right")
    rows = []
    for kind, by_label in sorted(kinds.items()):
        cells = [by_label.get(label, [[], [], []])[part] for part in range(3) for label in runs]
        rows.append([kind, *(_percent(float(np.mean(values)) if values else None) for values in cells)])
    return Table(
        id="kinds",
        title="By kind of picture, per cent",
        columns=["kind", *(f"{head}: {label}" for head in heads for label in runs)],
        rows=rows,
        note="Image AUROC of each kind against the good pictures; pixel AUROC among pixels of defective pictures only.",
    )


def _mean_of(runs: Sequence[RecordedRun], category: str | None, figure: str) -> float | None:
    values = []
    for run in runs:
        evaluation = run.evaluation
        row = evaluation.get("mean") if category is None else (evaluation.get("categories") or {}).get(category)
        if row and is_number(row.get(figure)):
            values.append(row[figure])
    return float(np.mean(values)) if values else None


def _with_half(value: float | None, half: float | None) -> str:
    text = fixed(value, 3)
    return f"{text} ±{half:.3f}" if is_number(value) and is_number(half) else text


def _percent(value: float | None) -> str:
    return fixed(None if value is None else 100 * value, 1)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"


def own_figures_table(comparison: Comparison) -> Table | None:
    """What the `evaluate` of a user's own job returned: one row a cell, a column a figure; None where there is none."""
    cells = cell_runs(comparison)
    names = sorted({name for _, _, runs in cells for run in runs for name in _figures(run)})
    if not names:
        return None
    rows = []
    for label, workers, runs in cells:
        values = [[_figures(run)[name] for run in runs if name in _figures(run)] for name in names]
        rows.append([label, str(workers), *(_spread(found) for found in values)])
    return Table(
        id="own-figures",
        title="Evaluation",
        columns=["engine", "workers", *(name.replace("_", " ") for name in names)],
        rows=rows,
        note="What the job's own evaluate returned after training: mean of the repeats, lowest to highest in brackets. "
        "The repeats have different seeds.",
    )


def _figures(run: RecordedRun) -> dict[str, float]:
    if source_of(str(run.job.get("preset", ""))) is None:
        return {}
    return {name: value for name, value in (run.result.get("evaluation") or {}).items() if is_number(value)}


def _spread(values: Sequence[float]) -> str:
    if not values:
        return DASH
    text = number(float(np.mean(values)), 4)
    return text if len(values) == 1 else f"{text} ({number(min(values), 4)} to {number(max(values), 4)})"
