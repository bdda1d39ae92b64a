"""Trained weights on a data set, with the controls that every AUROC needs: `harness model eval`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness.inference.load_model import Trained, branch_of
from harness.job.declaration import JobError
from harness.protocol.console import Progress
from harness.records.record_files import is_run


def is_bare(source: str) -> bool:
    """Whether `source` is no run (or a run's weights): nothing beside it says which data it was trained on."""
    path = Path(source)
    return not source or (path.is_file() and not is_run(path.parent))


def evaluate(
    trained: Trained, *, branch: str | None, scoring: str, split: str, samples: int, answers: bool
) -> dict[str, Any]:
    """One evaluation as it is printed and written: what was evaluated, the figures, and an entry a sample.

    Args:
        trained: the model and the job that says what it is judged on.
        branch: which map is judged; None: memory with shots, else decoder.
        scoring: rule from map to score, "" = the preset's.
        split: ``test`` or ``val``.
        samples: how many pictures, chosen by seed; 0 = all.
        answers: whether to ask a model that was trained to answer.

    Raises:
        JobError: an unknown rule or branch, or a val split that nothing was held out for.
    """
    from harness.inference.eval_table import alarms
    from harness.worker.model_and_data import build_dataset

    job = trained.job
    if scoring:
        trained.model.scoring = _rule(scoring)
    chosen = branch_of(trained, branch, job.shots > 0)
    warnings = _held_out(trained) if split == "val" else []
    dataset = build_dataset(job, trained.model, split)
    shots = 0 if chosen == "decoder" else job.shots
    memory, few = _memory(trained, shots, chosen)
    figures, entries, lacking = _judged(trained, dataset, samples, memory, answers=answers and trained.trained)
    kept = [{key: entry[key] for key in entry if key not in ("map", "mask")} for entry in entries]
    shouted = alarms(figures, kept)
    warnings += [*few, *lacking]
    # the alarm says what the metrics' own warning says, louder
    warnings += [text for text in figures.pop("warnings") if not (shouted and "neither Yes nor No" in text)]
    if trained.initial and trained.initial == trained.digests.get("all"):
        warnings.insert(0, "these weights are those from before training: nothing was learned, or it is the wrong file")
    return {
        "source": trained.name,
        **{name: getattr(job, name) for name in ("preset", "version", "data", "seed")},
        "split": split,
        "branch": chosen,
        "shots": shots,
        "scoring": trained.model.scoring,
        "weights": dict(trained.digests),
        "alarms": shouted,
        "warnings": warnings,
        "figures": figures,
        "samples": kept,
    }


def _rule(scoring: str) -> str:
    """`scoring`, a rule from map to score. Raises JobError where there is no such rule."""
    from core_model.anomalygpt.scoring import RULES

    if scoring not in RULES:
        raise JobError(f"unknown scoring rule '{scoring}': choose one of {', '.join(RULES)}")
    return scoring


def _memory(trained: Trained, shots: int, combination: str) -> tuple[Any, list[str]]:
    """The memory of `shots` good pictures a category (None for no shots), and which categories have fewer."""
    from harness.worker.evaluation.few_shot import bank, good_pictures

    if not shots:
        return None, []
    images, names = good_pictures(trained.model, trained.job)
    few = [
        f"{name} has only {count} good pictures: its figures are {count}-shot, not {shots}-shot"
        for name, count in Counter(names).items()
        if count < shots
    ]
    return bank(trained.model, images, names, trained.device, combination=combination), few


def _judged(
    trained: Trained, dataset: Any, samples: int, memory: Any, *, answers: bool
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """The figures, an entry a picture, and what the data lacks for some figure."""
    from core_model.data.splits import subset
    from harness.worker.evaluation.evaluate import evaluate as measure

    indices = subset(len(dataset), samples, trained.job.seed)
    watched = _Watched(dataset, len(indices))
    outcome = measure(trained.model, watched, device=trained.device, indices=indices, memory=memory, answers=answers)
    watched.close()
    assert outcome is not None  # one process holds everything
    return (*outcome, [*dataset.notes, *dataset.lacks(indices)])


def _held_out(trained: Trained) -> list[str]:
    """Remarks on judging by the val split, whose pictures training must not have seen."""
    options = trained.job.data_options
    if not (options.get("holdout") or options.get("folds")):
        what = f"'{trained.name}' held no pictures out of training: use --split test, or train with"
        if not trained.trained:
            what = "nothing is held out of the good pictures: use --split test, or add"
        raise JobError(f"{what} --set data_options.holdout=0.2")
    if trained.trained and not trained.initial:
        return ["whether training saw these val pictures cannot be told: a bare weights file does not say"]
    return []


class _Watched:
    """A data set that shows on standard error how far its reader is."""

    def __init__(self, dataset: Any, total: int) -> None:
        self._dataset, self._done = dataset, 0
        self._begin = time.perf_counter()
        self._progress = Progress(sys.stderr, total=total)

    def __len__(self) -> int:
        return len(self._dataset)

    def get(self, index: int, epoch: int) -> Any:
        if self._done:
            self._progress.update(self._done, "pictures", (time.perf_counter() - self._begin) / self._done)
        self._done += 1
        return self._dataset.get(index, epoch)

    def close(self) -> None:
        if self._done:
            self._progress.update(self._done, "pictures", 0.0)
        self._progress.close()
