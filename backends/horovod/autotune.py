"""Horovod's autotuner as a phase of its own: search, write down what it found, then train with that fixed.

Left on while training, the tuner changes fusion and cycle under the measurement, and two runs of one job are not alike.
So a phase trains for a while with it on (`phase`, `tune`), `read_outcome` takes the best sample from its log, and
`fixed` gives the settings of the run that is measured. What the tuner may choose from is narrow (horovod/common/
parameter_manager.cc): fusion 0 to 64 MiB, cycle 1 to 100 ms; Horovod's defaults, 128 MiB and 1 ms, are not among its
samples, so the outcome is worth a run against them before it is believed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends.base import Backend, BackendError
from backends.horovod.settings import HorovodSettings

_COLUMNS = 7  # hierarchical allreduce, hierarchical allgather, torus, cache, cycle (ms), fusion (MiB), score


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One setting that the tuner tried.

    Args:
        score: bytes exchanged a microsecond, median of five.
    """

    fusion_threshold_mb: float
    cycle_time_ms: float
    cache: bool
    hierarchical_allreduce: bool
    score: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the search of Horovod's tuner ended with.

    Args:
        best: the sample with the highest score.
        finished: the tuner ended its search by itself.
        samples: how many.
    """

    best: Sample
    samples: int
    finished: bool


def phase(
    settings: HorovodSettings,
    log: Path,
    *,
    warmup: int = 3,
    steps_per_sample: int = 10,
    samples: int = 20,
    topology: bool = False,
) -> HorovodSettings:
    """`settings` with the tuner on, writing to `log`. It takes about 5 x steps_per_sample x (warmup + samples + 1)
    steps.

    Args:
        topology: also search hierarchical and torus reductions and the cache, which multiplies the search by up to 16
            and means something on several nodes only.
    """
    extra: dict[str, Any] = {
        "HOROVOD_AUTOTUNE_WARMUP_SAMPLES": warmup,
        "HOROVOD_AUTOTUNE_STEPS_PER_SAMPLE": steps_per_sample,
        "HOROVOD_AUTOTUNE_BAYES_OPT_MAX_SAMPLES": samples,
    }
    if not topology:  # a variable that is set is fixed for the tuner
        extra |= {
            "HOROVOD_HIERARCHICAL_ALLREDUCE": 0,
            "HOROVOD_HIERARCHICAL_ALLGATHER": 0,
            "HOROVOD_TORUS_ALLREDUCE": 0,
            "HOROVOD_CACHE_CAPACITY": settings.cache_capacity if settings.cache_capacity is not None else 1024,
        }
    return replace(
        settings,
        fusion_threshold_mb=None,
        cycle_time_ms=None,
        autotune=True,
        autotune_log=str(log),
        extra={**settings.extra, **extra},
    )


def tune(
    backend: Backend,
    batches: Callable[[int], Sequence[Any]],
    log: Path,
    *,
    max_steps: int,
    limit_s: float,
    check_every: int = 50,
) -> Outcome:
    """Trains on `batches(step)` until the tuner has ended, `max_steps` or `limit_s`; the outcome on every rank.

    `backend` was made with `phase` settings and prepared. The weights move: throw the model away afterwards.
    """
    begin = time.monotonic()
    for step in range(max_steps):
        backend.train_step(batches(step))
        if (step + 1) % check_every == 0:
            done = backend.rank == 0 and (time.monotonic() - begin > limit_s or _finished(_rows(log)))
            if backend.broadcast(done):
                break
    found: Any = None
    if backend.rank == 0:
        try:
            found = read_outcome(log)
        except BackendError as error:
            found = str(error)
    found = backend.broadcast(found)
    if isinstance(found, str):
        raise BackendError(found)
    return found


def read_outcome(log: Path) -> Outcome:
    """Raises BackendError where the tuner wrote no sample."""
    rows = _rows(log)
    if not rows:
        raise BackendError(f"{log}: Horovod's autotuner wrote no sample: train more steps in its phase")
    finished = _finished(rows)
    return Outcome(best=max(rows, key=lambda row: row.score), samples=len(rows) - finished, finished=finished)


def fixed(settings: HorovodSettings, outcome: Outcome) -> HorovodSettings:
    """The settings of the measured run: the tuner off, its best sample written out."""
    best = outcome.best
    mine = {name: value for name, value in settings.extra.items() if "AUTOTUNE" not in name}
    return replace(
        settings,
        autotune=False,
        autotune_log="",
        fusion_threshold_mb=best.fusion_threshold_mb,
        cycle_time_ms=best.cycle_time_ms,
        cache_capacity=settings.cache_capacity if best.cache else 0,
        hierarchical_allreduce=best.hierarchical_allreduce,
        extra=mine,
    )


def _rows(log: Path) -> list[Sample]:
    """The samples of the log; the heading and a line that is still being written are left out."""
    if not log.is_file():
        return []
    found = []
    for line in log.read_text().splitlines()[1:]:
        parts = line.split(",")
        if len(parts) == _COLUMNS and parts[-1].strip():
            numbers = [float(part) for part in parts]
            found.append(
                Sample(
                    hierarchical_allreduce=bool(numbers[0]),
                    cache=bool(numbers[3]),
                    cycle_time_ms=numbers[4],
                    fusion_threshold_mb=numbers[5],
                    score=numbers[6],
                )
            )
    return found


def _finished(rows: Sequence[Sample]) -> bool:
    """At its end the tuner repeats its best sample as the last line."""
    return len(rows) > 1 and rows[-1] in rows[:-1] and rows[-1].score == max(row.score for row in rows)
