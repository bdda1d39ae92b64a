"""Horovod or DeepSpeed, and for which job: the answers of several studies in one table, a row a job and number of
workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core_model.user_job.source import label_of
from harness.analysis import judged_speed
from harness.analysis.comparison import Comparison, summarize_study
from harness.analysis.intervals import Difference
from harness.analysis.known_faults.marks import is_superseded
from harness.analysis.verdict import facing, fastest_of_both
from harness.common.formatting import DASH, change, mebibytes, plural
from harness.common.text_table import Table, without_empty_columns
from harness.report.comparison_table import efficiency_text

COLUMNS = ("job", "on", "faster", "by", "memory a worker", "efficiency", "own baseline")


def answers(studies: Sequence[Path], root: Path, summarize: Callable[[Path], Comparison] = summarize_study) -> Table:
    """root: where the table is shown, for the links. summarize: for a caller that has done it. Studies without both
    engines at some number of workers have no row, nor have superseded ones. Raises RecordError for a damaged study."""
    studies = [study for study in studies if not is_superseded(study)]
    rows = [row for study in studies for row in _rows(summarize(study), f"{seen_from(root, study)}/report.html")]
    table = Table(
        id="answers",
        title="",
        columns=COLUMNS,
        rows=rows,
        numeric=False,
        note="Horovod beside the fastest setting of DeepSpeed at that number of workers. by: samples/s more (total "
        'samples over total seconds), with its 95 % interval. "alike": the interval holds zero and lies within 5 %; '
        '"undecided": it holds zero and reaches further, or there is one repeat. Memory: peak of the worker that needs '
        "most; a dash where other runs of the same processes still held some. Efficiency: of plain torch on one worker "
        "times the workers; own baseline: of the engine's own one worker, which does not compare engines.",
    )
    return without_empty_columns(table)


def seen_from(root: Path, study: Path) -> Path:
    """The study's folder as a link from `root` names it; from a folder beside results/ (docs/) too."""
    near = study.is_relative_to(root) or study.is_relative_to(root.parent)
    return Path(os.path.relpath(study, root)) if near else study


def _rows(comparison: Comparison, link: str) -> list[list[str]]:
    cells = judged_speed.cells(comparison)
    if not len(comparison.main):
        return []
    main = cells[(cells["group"] == 0) & cells["samples_per_s"].notna()]
    rows = []
    for workers in sorted({int(count) for count in main["workers"]}, reverse=True):
        if cells := fastest_of_both(main[main["workers"] == workers]):
            faster, by = _faster(comparison, workers, *(cell["label"] for cell in cells))
            memory = _both({cell["label"]: mebibytes(cell["peak_memory_mib"]) for cell in cells})
            shares = [
                _both({cell["label"]: efficiency_text(cell, name) for cell in cells}) if workers > 1 else DASH
                for name in ("efficiency", "own_efficiency")
            ]
            rows.append([_job(comparison, link), _place(comparison, workers), faster, by, memory, *shares])
    return rows


def _faster(comparison: Comparison, workers: int, deepspeed: str, horovod: str) -> tuple[str, str]:
    """Who is faster and by how much; ("alike" or "undecided", the difference) else."""
    for pair in judged_speed.differences(comparison):
        if pair.workers == workers and {pair.difference.a, pair.difference.b} == {deepspeed, horovod}:
            difference = facing(pair, horovod).difference
            if difference.real and difference.value < 0:
                difference = facing(pair, deepspeed).difference
            if difference.real:
                return difference.b, _amount(difference)
            return difference.word, f"{difference.b}: {_amount(difference)}"
    return DASH, DASH


def _amount(difference: Difference) -> str:
    return f"{change(difference.value)} ({difference.bounds()})"


def _job(comparison: Comparison, link: str) -> str:
    run = comparison.members(0)[0]
    job: dict[str, Any] = run.job
    weak = job.get("scaling") == "weak"
    batch = int(job.get("global_batch", 0)) // (run.workers if weak else 1)
    held = f"{batch} samples a worker" if weak else f"{batch} samples in all"
    return f"[{label_of(str(job.get('preset')))}]({link}), {held}"


def _place(comparison: Comparison, workers: int) -> str:
    """``4x NVIDIA H200``, or ``2 workers on 2 cores``."""
    place = comparison.members(0)[0].environment
    devices = (place.get("gpus") or {}).get("devices") or []
    if devices:
        return f"{workers}x {devices[0].get('name')}"
    cores = int((place.get("cpu") or {}).get("usable_cores") or 0)
    return f"{plural(workers, 'worker')} on {plural(cores, 'core')}"


def _both(texts: Mapping[str, str]) -> str:
    """``ZeRO-1 16.8 GiB, Horovod 19.8 GiB``; a dash where neither is known."""
    if all(text == DASH for text in texts.values()):
        return DASH
    return ", ".join(f"{label.removeprefix('DeepSpeed ')} {text}" for label, text in texts.items())
