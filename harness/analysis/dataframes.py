"""Records as pandas frames, for notebooks: ``harness.load("results/STUDY", "steps")``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.comparison import summarize_runs
from harness.records.run_record import RecordedRun, load_runs, sound_runs

KINDS = ("runs", "cells", "steps", "resources", "split", "samples", "categories")


def load(path: str | Path | Sequence[str | Path], what: str = "runs") -> pd.DataFrame:
    """The records under `path` (run or study folders) as one frame.

    what: ``runs`` a row a run; ``cells`` a row an engine and number of workers, as in comparison.csv; ``steps``,
    ``resources``, ``split`` a row a line of those files; ``samples`` a row a test sample; ``categories`` a row a
    category. All but ``cells`` have the columns study, run, label, backend, workers, seed, repeat.
    Raises RecordError for a folder without runs and ValueError for another `what`.
    """
    if what not in KINDS:
        raise ValueError(f"what is '{what}': choose one of {', '.join(KINDS)}")
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    runs = load_runs([Path(item) for item in paths])
    if what in ("runs", "cells"):
        comparison = summarize_runs(runs, title="")
        return comparison.frame if what == "runs" else comparison.cells
    runs, left_out = sound_runs(runs)
    for text in left_out:
        warnings.warn(text, stacklevel=2)
    rows = [{**_identity(run), **row} for run in runs for row in _ROWS[what](run)]
    return pd.DataFrame(rows)


def _identity(run: RecordedRun) -> dict[str, Any]:
    return {
        "study": run.study,
        "run": run.name,
        "label": run.label,
        "backend": run.backend,
        "workers": run.workers,
        "seed": run.seed,
        "repeat": run.repeat,
    }


def _steps(run: RecordedRun) -> Iterator[dict[str, Any]]:
    """The loss parts become columns loss_NAME."""
    for row in run.steps:
        flat = {key: value for key, value in row.items() if key not in ("losses", "rank_step_s")}
        yield flat | {f"loss_{name}": value for name, value in (row.get("losses") or {}).items()}


def _resources(run: RecordedRun) -> Iterator[dict[str, Any]]:
    """Figures of GPU 0, 1, ... become columns gpu0_util_percent, ..."""
    for row in run.resources:
        flat = {key: value for key, value in row.items() if key != "gpus"}
        for gpu in row.get("gpus") or ():
            flat |= {f"gpu{gpu['index']}_{key}": value for key, value in gpu.items() if key != "index"}
        yield flat


def _samples(run: RecordedRun) -> Iterator[dict[str, Any]]:
    yield from run.evaluation.get("samples") or ()


def _categories(run: RecordedRun) -> Iterator[dict[str, Any]]:
    for name, row in (run.evaluation.get("categories") or {}).items():
        yield {"category": name, **{key: value for key, value in row.items() if not isinstance(value, dict)}}


_ROWS: dict[str, Callable[[RecordedRun], Any]] = {
    "steps": _steps,
    "resources": _resources,
    "split": lambda run: run.split,
    "samples": _samples,
    "categories": _categories,
}
