"""What a data set lacks: said before a job starts, and beside figures that are undefined for it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from harness.job.declaration import Job

_said: set[tuple[str, str]] = set()  # (data, note)


def check_data(job: Job) -> None:
    """Looks at every file that the job will read, and says on stderr, once a process and data set, what is left
    out and what the test set cannot show. Raises DataError. A job that is not evaluated needs no test set."""
    from core_model.data import open_dataset
    from core_model.data.splits import subset

    for split in ("train", "test") if job.eval_samples >= 0 else ("train",):
        dataset = open_dataset(
            job.data,
            split=split,
            image_size=job.image_size or 224,
            seed=job.seed,
            simulation=job.defects,
            options=job.data_options,
        )
        notes = [*dataset.notes, *dataset.questions]
        if split == "test":
            notes += dataset.lacks(subset(len(dataset), job.eval_samples, job.seed))
        for note in notes:
            if (job.data, note) not in _said:
                _said.add((job.data, note))
                sys.stderr.write(f"warning: {note}\n")


def undefined(evaluation: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """``pixel AUROC, AUPRO undefined: no masks``: the figures of evaluation.json that no category has, with the reason,
    one text a reason. names: of the figures to tell of, as a reader knows them."""
    mean = evaluation.get("mean") or {}
    by_reason: dict[str, list[str]] = {}
    for key, name in names.items():
        if mean.get(key, 0) is not None:
            continue
        reasons = {why for what, why in (evaluation.get("undefined") or {}).items() if what.rsplit(": ", 1)[-1] == key}
        if reasons:
            by_reason.setdefault("; ".join(sorted(reasons)), []).append(name)
    return [f"{', '.join(figures)} undefined: {reason}" for reason, figures in by_reason.items()]
