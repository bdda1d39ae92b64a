"""Contenders by their text, as `harness experiment duel --backends` takes them."""

from __future__ import annotations

from collections import Counter

from harness.experiments.duels.fight import Contender
from harness.experiments.trainings.cells import Cell, parse_engine
from harness.job.declaration import Job, JobError
from harness.job.engines import split_workers


def contenders_of(text: str, workers: int, base: Job, *, weak: bool, mode: str) -> list[Contender]:
    """``single@1,ddp@2,deepspeed:1@2`` as contenders. Raises JobError."""
    found: list[Contender] = []
    seen: Counter[str] = Counter()
    for part in text.split(","):
        engine, own = split_workers(part)
        number = own or workers
        cell = Cell(
            **parse_engine(engine),
            workers=number,
            accumulation=base.accumulation,
            precision=base.precision,
            precision_mode=mode if base.precision != "fp32" else "matched",
        )
        batch = base.global_batch * (number if weak else 1)
        name = f"{cell.engine}@{number}"
        seen[name] += 1
        name += f" #{seen[name]}" if seen[name] > 1 else ""
        found.append(Contender(name=name, cell=cell, global_batch=batch))
    if len(found) < 2:
        raise JobError(f"engines '{text}': a duel needs two or more, such as horovod,deepspeed:2")
    return found
