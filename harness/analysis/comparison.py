"""A study, summarized: one row a run, one row a cell (engine and setting x workers), and which differences are real."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.analysis import intervals, mfu
from harness.analysis.setting_effects import Variant, variants
from harness.common import formatting
from harness.common.formatting import DASH, fixed, is_number, mebibytes, percent
from harness.records import comparability as contract
from harness.records import step_metrics
from harness.records.run_record import RecordedRun, load_runs, sound_runs

if TYPE_CHECKING:
    from rich.table import Table

QUALITY = ("image_auroc", "pixel_auroc", "aupro", "f1_max", "answer_accuracy")
HEADLINE = ("image_auroc", "pixel_auroc", "answer_accuracy")  # the figures that the verdict judges
QUALITY_NAMES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "f1_max": "F1-max",
    "answer_accuracy": "answer accuracy",
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs side by side.

    frame: one row a run, failed ones too (`run_row`). cells: one row per group, label and number of workers (`_cell`).
    comparability: which rows of the ok runs may share a curve; group 0 is the main one, failed runs have group -1.
    speed, quality: paired differences inside a group at equal numbers of workers. variants: what a setting changes
    inside an engine. left_out: runs that cannot be read, one line each.
    """

    title: str
    runs: Sequence[RecordedRun]
    frame: pd.DataFrame
    cells: pd.DataFrame
    comparability: contract.Comparability
    speed: Sequence[PairedFigure] = field(default_factory=tuple)
    quality: Sequence[PairedFigure] = field(default_factory=tuple)
    variants: Sequence[Variant] = field(default_factory=tuple)
    left_out: Sequence[str] = field(default_factory=tuple)

    @cached_property
    def main(self) -> pd.DataFrame:
        """The cells of the main group."""
        return self.cells[self.cells["group"] == 0] if len(self.cells) else self.cells

    @property
    def labels(self) -> list[str]:
        """Engines with their settings, those of the main group first, in the order of their first run."""
        main = self.frame[self.frame["group"] == 0]["label"]
        return list(dict.fromkeys([*main, *self.frame["label"]]))

    def run(self, name: str) -> RecordedRun:
        return next(run for run in self.runs if run.name == name)

    def members(self, group: int) -> list[RecordedRun]:
        """The ok runs of a group."""
        return [run for run, number in zip(self.runs, self.frame["group"], strict=True) if number == group]

    def table(self) -> Table:
        """The table that `harness compare` prints: nine columns that fit a terminal of 80 characters."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=self.title, caption=TABLE_CAPTION, box=box.SIMPLE_HEAD, padding=0)
        columns = {
            "engine": "engine", "workers": "N", "short_rate": "samples/s", "short_efficiency": "effi-\nciency",
            "peak memory": "peak\nmemory", "final loss": "final\nloss", "image AUROC": "image\nAUROC",
            "pixel AUROC": "pixel\nAUROC", "short_answers": "answers\nright",
        }  # fmt: skip
        for name, heading in columns.items():
            table.add_column(heading, justify="left" if name == "engine" else "right", no_wrap=name != "engine")
        group = None
        for row in table_rows(self):
            if group is not None and row["group"] != group:
                table.add_section()
            group = row["group"]
            texts = row["texts"] | {name: row[name] for name in ("short_rate", "short_answers", "short_efficiency")}
            table.add_row(
                *(escape(texts[name]) for name in columns), style="red" if row["failed"] and not row["ok"] else None
            )
        return table

    def write_csv(self, path: Path) -> None:
        """comparison.csv: the cells, full precision, one line each."""
        self.cells.to_csv(path, index=False, lineterminator="\n", float_format="%.10g")


@dataclass(frozen=True, kw_only=True)
class PairedFigure:
    """A paired difference of one figure between two labels of a group at `workers` workers."""

    group: int
    workers: int
    figure: str
    difference: intervals.Difference


TABLE_CAPTION = (
    "samples/s: median of the repeats (lowest to highest repeat; quartiles of the steps where there is one run); "
    "efficiency: median of the repeats' own; memory: peak of the worker that needs most; loss and quality: mean over "
    "the repeats"
)


def group_names(comparison: Comparison) -> dict[int, str]:
    """What stands behind a label to tell groups apart: the kind of scaling where that does it, the setting that all of
    the group have, else its number."""
    if not len(comparison.cells):
        return {}
    kinds = comparison.cells.drop_duplicates("group")[["group", "scaling"]]
    if len(kinds) > 1 and kinds["scaling"].nunique() == len(kinds):
        return {int(group): f" [{scaling}]" for group, scaling in kinds.itertuples(index=False)}
    return {int(group): f" [{_group_name(comparison, int(group))}]" for group in kinds["group"] if group > 0}


def _group_name(comparison: Comparison, group: int) -> str:
    """``compile=true``; ``group 2`` where its members have no one setting in common, or another group has it too."""
    own = {(found.engine, found.setting) for found in comparison.variants if found.group == group}
    others = {(found.engine, found.setting) for found in comparison.variants if found.group != group}
    settings = {setting for _, setting in own}
    return settings.pop() if len(settings) == 1 and not own & others else f"group {group + 1}"


def table_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The comparison table as text, one dict per cell: ``texts`` by column name; ``short_rate`` (samples/s and half the
    range), ``short_answers`` and ``short_efficiency`` for narrow places; ``group``; and the numbers of ``ok`` and
    ``failed`` runs."""
    names = group_names(comparison)
    rows = []
    for cell in comparison.cells.to_dict("records"):
        label = cell["label"] + names.get(cell["group"], "")
        failed = f"{cell['failed']} failed" if cell["failed"] else ""
        unusable = cell["unusable_answers"]
        short_answers = answers = percent(cell["answer_accuracy"], 1)
        if is_number(unusable) and unusable > 0:
            answers += f" ({unusable:.0f} unusable)"
            short_answers = "UNUSABLE" if cell["answer_accuracy"] == 0 else f"{short_answers} !"
        rate, low, high = (cell[f"samples_per_s{end}"] for end in ("", "_low", "_high"))
        short = f"{formatting.number(rate)} ±{formatting.number((high - low) / 2, 2)}" if is_number(rate) else ""
        rows.append(
            {
                "group": int(cell["group"]),
                "ok": int(cell["ok"]),
                "failed": int(cell["failed"]),
                "short_rate": ", ".join(text for text in (short, failed) if text),
                "short_answers": short_answers,
                "short_efficiency": percent(cell["efficiency"]),
                "texts": {
                    "engine": label,
                    "workers": str(int(cell["workers"])),
                    "samples/s": _with_range(rate, low, high),
                    "step ms (p99)": _step_text(cell["step_ms"], cell["step_ms_p99"]),
                    "efficiency": _efficiency_text(cell),
                    "MFU": percent(cell["mfu"], 1),
                    "peak memory": mebibytes(cell["peak_memory_mib"]),
                    "final loss": formatting.number(cell["final_loss"]),
                    "image AUROC": fixed(cell["image_auroc"], 3),
                    "pixel AUROC": fixed(cell["pixel_auroc"], 3),
                    "answers right": answers,
                    "runs": ", ".join(text for text in (str(cell["ok"]) if cell["ok"] else "", failed) if text),
                },
            }
        )
    return rows


def summarize_study(study: Path) -> Comparison:
    """The comparison of all runs of a study folder. Raises `records.RecordError` where there is none."""
    return summarize_runs(load_runs([study]), title=study.resolve().name)


def summarize_runs(runs: Sequence[RecordedRun], *, title: str) -> Comparison:
    """The comparison of any runs, of one study or of several. A run whose files are damaged is left out and named;
    raises `records.RecordError` where no other is there."""
    runs, left_out = sound_runs(runs)
    rows = [run_row(run) for run in runs]
    good = [position for position, run in enumerate(runs) if run.ok]
    comparability = contract.comparable([runs[position].contract for position in good])
    for row in rows:
        row["group"] = -1
    for number, members in enumerate(comparability.groups):
        for member in members:
            rows[good[member]]["group"] = number
    frame = pd.DataFrame(rows)
    cells = pd.DataFrame(_cells(frame))
    speed, quality = _pairs(runs, frame)
    return Comparison(
        title=title,
        runs=tuple(runs),
        frame=frame,
        cells=cells,
        comparability=comparability,
        speed=tuple(speed),
        quality=tuple(quality),
        variants=tuple(variants(runs, list(frame.itertuples()))),
        left_out=tuple(left_out),
    )


def untimed(run: RecordedRun) -> bool:
    """Whether a run's times are never shown: a profiler slows the steps it watches, runs that share a machine slow each
    other, and so do workers that share cores."""
    return bool(run.job.get("profile")) or int(run.job.get("concurrent") or 1) > 1 or crowded(run)


def crowded(run: RecordedRun) -> bool:
    """Whether the run had more workers on this machine than it has cores (--oversubscribe)."""
    cores = (run.environment.get("cpu") or {}).get("usable_cores") or 0
    return bool(run.job.get("oversubscribe")) and int(run.job.get("slots") or 1) > cores > 0


def run_row(run: RecordedRun) -> dict[str, Any]:
    """The figures of one run, flat; missing ones are None. Times in s (or ms where named), memory in MiB."""
    job, result = run.job, run.result
    throughput, memory = result.get("throughput") or {}, run.memory
    evaluation, phases = result.get("evaluation") or {}, result.get("phases") or {}
    if untimed(run):
        throughput = {}
    rate, step = throughput.get("samples_per_s") or {}, throughput.get("step_s") or {}
    device, rss = _numbers(memory.get("peak_device_mib")), _numbers(memory.get("peak_rss_mib"))
    return {
        "study": run.study,
        "run": run.name,
        "label": run.label,
        "backend": run.backend,
        "workers": run.workers,
        "nodes": job.get("nodes"),
        "scaling": job.get("scaling"),
        "precision": job.get("precision"),
        "precision_mode": job.get("precision_mode"),
        "global_batch": job.get("global_batch"),
        "seed": run.seed,
        "repeat": run.repeat,
        "status": result.get("status"),
        "reason": run.reason,
        "samples_per_s": rate.get("median"),
        "samples_per_s_q1": rate.get("q1"),
        "samples_per_s_q3": rate.get("q3"),
        "step_s": step.get("median"),
        "step_s_p90": step.get("p90"),
        "step_s_p99": step.get("p99"),
        "timed_steps": step.get("n"),
        "mfu": mfu.mfu(job, result, run.environment, rate.get("median")),
        "data_share": throughput.get("data_share"),
        "drift": throughput.get("drift"),
        "peak_rss_mib": max(rss, default=None),
        "peak_device_mib": max(device, default=None),
        "peak_memory_mib": max(device, default=None) or max(rss, default=None),
        "final_loss": final_loss(run),
        **{name: evaluation.get(name) for name in QUALITY},
        "unusable_answers": evaluation.get("unusable_answers"),
        "setup_s": phases.get("setup_s"),
        "train_s": phases.get("train_s"),
        "eval_s": phases.get("eval_s"),
        "wall_s": result.get("wall_s"),
    }


def final_loss(run: RecordedRun, window: int = 10) -> float | None:
    """Mean loss of the last `window` steps: one step's loss depends on its batch more than on the engine."""
    losses = [row["loss"] for row in run.steps[-window:] if is_number(row.get("loss"))]
    return float(np.mean(losses)) if losses else (run.result.get("final") or {}).get("loss")


def _cells(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per (group, label, workers), main group first, labels in the order of their first run. A failed run is
    counted in the cell of the same label and workers in the main group."""
    main = frame[frame["group"] == 0]["label"]
    order = {label: position for position, label in enumerate(dict.fromkeys([*main, *frame["label"]]))}
    groups = sorted({int(group) for group in frame["group"] if group >= 0}) or [0]
    cells = []
    for group in groups:
        here = frame[(frame["group"] == group) | ((frame["group"] == -1) & (group == 0))]
        one_worker: dict[str, pd.DataFrame] = {}
        keys = sorted({(order[row.label], row.label, int(row.workers)) for row in here.itertuples()})
        for _, label, workers in keys:
            members = here[(here["label"] == label) & (here["workers"] == workers)]
            good = members[members["group"] == group]
            if workers == 1:
                one_worker[label] = good
            cells.append(_cell(group, label, workers, members, good, one_worker.get(label)))
    return cells


def _cell(
    group: int, label: str, workers: int, members: pd.DataFrame, good: pd.DataFrame, one: pd.DataFrame | None
) -> dict[str, Any]:
    """Figures of a cell: medians over the repeats for times, means for losses and quality, highest for memory."""
    rates = _column(good, "samples_per_s")
    repeated = len(rates) > 1
    efficiencies = _efficiencies(good, one, workers)
    quality: dict[str, Any] = {}
    for name in ("final_loss", *QUALITY):
        values = _column(good, name)
        mean, half = intervals.mean_interval(values) if len(values) else (None, None)
        quality |= {name: mean, f"{name}_half": half}
    unusable = _column(good, "unusable_answers")
    return {
        "group": group,
        "label": label,
        "backend": members["backend"].iloc[0],
        "workers": workers,
        "scaling": members["scaling"].iloc[0],
        "precision": members["precision"].iloc[0],
        "ok": len(good),
        "failed": int((members["group"] == -1).sum()),
        "samples_per_s": _median(rates),
        "samples_per_s_low": min(rates) if repeated else _median(_column(good, "samples_per_s_q1")),
        "samples_per_s_high": max(rates) if repeated else _median(_column(good, "samples_per_s_q3")),
        "step_ms": _times(_median(_column(good, "step_s")), 1000),
        "step_ms_p90": _times(_median(_column(good, "step_s_p90")), 1000),
        "step_ms_p99": _times(_median(_column(good, "step_s_p99")), 1000),
        "mfu": _median(_column(good, "mfu")),
        "data_share": _median(_column(good, "data_share")),
        "efficiency": _median(efficiencies),
        "efficiency_low": min(efficiencies, default=None),
        "efficiency_high": max(efficiencies, default=None),
        # the median: a repeat now and then still holds what Python's collector frees a moment later
        "peak_memory_mib": _median(_column(good, "peak_memory_mib")),
        "peak_rss_mib": _median(_column(good, "peak_rss_mib")),
        "peak_device_mib": _median(_column(good, "peak_device_mib")),
        **quality,
        "unusable_answers": max(unusable, default=None),
        "train_s": _median(_column(good, "train_s")),
        "wall_s": _median(_column(good, "wall_s")),
    }


def _efficiencies(good: pd.DataFrame, one: pd.DataFrame | None, workers: int) -> list[float]:
    """Efficiency of each run against the one-worker run of the same turn, or the median of its study where there is
    none."""
    if one is None:
        return []
    studies: dict[str, dict[Any, float]] = {}
    for row in one.itertuples():
        if is_number(row.samples_per_s):
            studies.setdefault(row.study, {})[_turn(row)] = row.samples_per_s
    found = []
    for row in good.itertuples():
        if is_number(row.samples_per_s) and (rates := studies.get(row.study)):
            reference = rates.get(_turn(row), float(np.median(list(rates.values()))))
            found.append(step_metrics.efficiency(reference, row.samples_per_s, workers))
    return found


def _pairs(runs: Sequence[RecordedRun], frame: pd.DataFrame) -> tuple[list[PairedFigure], list[PairedFigure]]:
    """Differences of speed (inside a study: runs of two studies did not take turns) and of quality between every two
    labels at equal workers, inside each group."""
    speed: list[PairedFigure] = []
    quality: list[PairedFigure] = []
    by_name = {id(run): run for run in runs}
    good = frame.assign(key=[id(run) for run in runs])
    good = good[good["group"] >= 0]
    for (group, workers), cell in good.groupby(["group", "workers"], sort=True):
        labels = list(dict.fromkeys(cell["label"]))
        many = len(labels) * (len(labels) - 1) // 2
        rates = _rates(cell, labels)
        timed: dict[str, dict[tuple[str, int, int], RecordedRun]] = {label: {} for label in labels}
        for row in cell.itertuples():
            timed[row.label][_turn(row)] = by_name[row.key]
        speeds = intervals.Speeds(rates, timed, many)
        for a, b in itertools.combinations(labels, 2):
            first = {(row.repeat, row.seed): row for row in cell[cell["label"] == a].itertuples()}
            second = {(row.repeat, row.seed): row for row in cell[cell["label"] == b].itertuples()}
            shared = sorted(first.keys() & second.keys())
            where = {"group": int(group), "workers": int(workers)}
            if (difference := speeds.difference(a, b)) is not None:
                speed.append(PairedFigure(figure="samples_per_s", difference=difference, **where))
            for name in ("final_loss", *QUALITY):
                figures = [
                    (getattr(first[key], name), getattr(second[key], name))
                    for key in shared
                    if is_number(getattr(first[key], name)) and is_number(getattr(second[key], name))
                ]
                if figures:
                    difference = intervals.plain_difference(a, b, figures, comparisons=many * len(HEADLINE))
                    quality.append(PairedFigure(figure=name, difference=difference, **where))
    return speed, quality


def _turn(row: Any) -> tuple[str, int, int]:
    """`RecordedRun.turn` of a row of the frame."""
    return row.study, row.repeat, row.seed


def _rates(cell: pd.DataFrame, labels: Sequence[str]) -> dict[str, dict[tuple[str, int, int], float]]:
    """Samples/s of every label by turn."""
    return {
        label: {
            _turn(row): row.samples_per_s
            for row in cell[cell["label"] == label].itertuples()
            if is_number(row.samples_per_s)
        }
        for label in labels
    }


def _column(frame: pd.DataFrame, name: str) -> list[float]:
    return [float(value) for value in frame[name] if is_number(value)]


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values or () if is_number(value)]


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if len(values) else None


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _with_range(value: float | None, low: float | None, high: float | None) -> str:
    if not is_number(value):
        return DASH
    text = formatting.number(value)
    return f"{text} ({formatting.number(low)}–{formatting.number(high)})" if is_number(low) else text  # noqa: RUF001


def _efficiency_text(cell: Mapping[str, Any]) -> str:
    """``75 % (56-79)``: the median of the repeats' own efficiencies, lowest to highest where they differ."""
    text = percent(cell["efficiency"])
    ends = [percent(cell[f"efficiency_{end}"]).removesuffix(" %") for end in ("low", "high")]
    return f"{text} ({ends[0]}–{ends[1]})" if is_number(cell["efficiency"]) and ends[0] != ends[1] else text  # noqa: RUF001


def _step_text(value: float | None, p99: float | None) -> str:
    return f"{formatting.number(value)} ({formatting.number(p99)})" if is_number(value) else DASH
