"""Trained runs judged in every way that a user of AnomalyGPT may use them, with the controls that the figures need.

For each run: the decoder's map, the memory of k good pictures, and both added; the answers; and, beside every figure,
what could have produced it without any detection: the map's median, and how near the test's good pictures are to
training pictures. A row of the table is one engine, branch, memory and number of shots: mean and spread over its runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from harness.common.formatting import is_number
from harness.inference.judging import judge
from harness.inference.quality_plan import FIGURES, PASS, Grid
from harness.job.declaration import JobError
from harness.records.record_files import WEIGHTS, finite, is_run, read_json, runs_of
from harness.records.run_record import RecordedRun, whole_run

# Of the job, beside what `label_of` says: runs that differ in one of them are no repeats of each other.
_TOLD_APART = (
    "steps", "global_batch", "scaling", "accumulation", "optimizer", "lr", "betas", "weight_decay", "schedule",
    "warmup_steps", "clip_norm", "precision", "precision_mode", "compile", "random_weights", "data_options",
)  # fmt: skip


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """The runs with weights among `paths`, which are runs or studies."""
    found = []
    for path in paths:
        for folder in [path] if is_run(path) else runs_of(path):
            if whole_run(RecordedRun(folder)).ok and (folder / WEIGHTS).is_file():
                found.append(folder)
    return found


def measure(
    folders: Sequence[Path], grid: Grid, *, data: str | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """quality.json's content: what was judged, rows (aggregates), runs (every figure of every run), the controls."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    runs: list[dict[str, Any]] = []
    leak: dict[str, Any] = {}
    # The figures of one variant take seconds of one core (they sort ten million pixels); the encoder takes no longer.
    cores = min(os.cpu_count() or 1, len(grid.variants()))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        for folder in folders:
            run = RecordedRun(folder)
            figures, leak = judge(folder, grid, data, dict(options or {}), leak, pool)
            runs.append(
                {
                    "run": f"{run.study}/{run.name}", "label": label_of(run), "workers": run.workers, "seed": run.seed,
                    "job": {name: run.job.get(name) for name in (*_TOLD_APART, "version")},
                    "figures": figures,
                }
            )  # fmt: skip
        for each in runs:
            each["figures"] = [{**about, **figures.result()} for about, figures in each["figures"]]
    first = RecordedRun(folders[0])
    return finite(
        {
            "schema": 1,
            "preset": first.job.get("preset"),
            "data": data or first.job.get("data"),
            "grid": asdict(grid),
            "held_out_pass": PASS,
            "near_duplicates": leak,
            "rows": aggregate(runs),
            "runs": runs,
        }
    )


def label_of(run: RecordedRun) -> str:
    """The engine, and what of the model and the data was chosen beside the preset: what the rows tell apart."""
    job = run.job
    parts = [f"{key.replace('_', ' ')} {value}" for key, value in sorted((job.get("model") or {}).items())]
    parts += [f"version {job['version']}"] if job.get("version") else []
    parts += [f"{job['image_size']} px"] if job.get("image_size") else []
    parts += [f"defects {job['defects']}"] if job.get("defects") else []
    return ", ".join([run.label, *parts])


def labels_of(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The label of each of the record's `runs`, and whatever else of the job is not the same for all of them: unlike
    runs are never averaged, wherever they were judged. Records from before 2026-11-27 do not say it."""
    told = [run.get("job") or {} for run in runs]
    varied = [name for name in _TOLD_APART if len({str(job.get(name)) for job in told if job}) > 1]
    return [
        ", ".join([run["label"], *(f"{name.replace('_', ' ')} {job.get(name)}" for name in varied if job)])
        for run, job in zip(runs, told, strict=True)
    ]


def merge(files: Sequence[Path]) -> dict[str, Any]:
    """One record from quality.json files that judged runs in the same way: for runs judged on different machines.
    A run that is in several counts once. Raises JobError where they were judged differently."""
    found = [read_json(file) for file in files]
    for file, each in zip(files[1:], found[1:], strict=True):
        for key in ("grid", "data", "preset", "held_out_pass"):
            if each.get(key) != found[0].get(key):
                raise JobError(f"{file}: judged with another {key} than {files[0]}: judge the runs again, in one call")
    runs = list({run["run"]: run for each in found for run in each["runs"]}.values())
    return {**found[0], "rows": aggregate(runs), "runs": runs}


def aggregate(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each label, workers, branch, memory and shots: mean, sd (n - 1) and n of every figure, and the
    mean figures of each kind of picture."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run, label in zip(runs, labels_of(runs), strict=True):
        for figures in run["figures"]:
            key = (label, run["workers"], figures["branch"], figures["memory"], figures["shots"])
            groups.setdefault(key, []).append(figures)
    rows = []
    for (label, workers, branch, memory, shots), members in groups.items():
        row: dict[str, Any] = {
            "label": label, "workers": workers, "branch": branch, "memory": memory, "shots": shots,
            "runs": len(members),
        }  # fmt: skip
        for name in FIGURES:
            values = [figures[name] for figures in members if is_number(figures.get(name))]
            if values:
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
                row[name] = {"mean": float(np.mean(values)), "sd": spread, "n": len(values)}
        kinds: dict[str, dict[str, float]] = {}
        for kind in sorted({kind for figures in members for kind in figures["kinds"]}):
            own = [figures["kinds"][kind] for figures in members if kind in figures["kinds"]]
            kinds[kind] = {
                name: float(np.mean([each[name] for each in own if is_number(each.get(name))]))
                for name in ("samples", "image_auroc", "pixel_auroc_defective", "answer_accuracy")
                if any(is_number(each.get(name)) for each in own)
            }
        why = sorted({text for figures in members for text in figures.get("undefined", ())})
        rows.append({**row, "kinds": kinds, "undefined": why})
    return rows
