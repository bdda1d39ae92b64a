"""How far off recommendations are: every study of the records predicted as if it had not been made.

Speed, three ways (`speed.WAYS`), each with less known:
measured      the cell by the other studies' records of the same cell (how well a record repeats);
predicted     by the other studies, and of the study itself only plain torch on one worker;
extrapolated  by the other jobs' records alone, as for a job that nobody has run.
Memory: the formula against each recorded peak of a GPU.

An interval is the 95 % quantile of such errors. Where an error is said to lie inside, the interval was made of the
other studies' errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from harness.experiments.max_model.memory_formula import Setting, Training, demand_of
from harness.experiments.recommend.evidence import Evidence, Point, model_of, shape_of
from harness.experiments.recommend.sizing import Sized
from harness.experiments.recommend.speed import (
    EXTRAPOLATED,
    MEASURED,
    PLAIN,
    PREDICTED,
    WAYS,
    Asked,
    Known,
    Speed,
    speed_of,
)
from harness.job.engines import parse_backend

MEMORY = "memory"
_LEVEL = 0.95
_LEAST = 6  # errors that an interval needs


@dataclass(frozen=True, kw_only=True)
class Error:
    """One prediction that a record can judge. way: of WAYS, or MEMORY. error: predicted over measured, minus 1. figure:
    predicted and measured in samples/s, or MiB. alone: whether no other engine of the cell's row was predicted."""

    way: str
    study: str
    job: str
    engine: str
    workers: int
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def log(self) -> float:
        return math.log(self.predicted / self.measured)


def speed_errors(evidence: Evidence, flops: Mapping[str, float]) -> list[Error]:
    """The errors of every way for every recorded cell that it reaches."""
    found = []
    for point in evidence.points:
        if not point.rate or point.device not in evidence.memory:
            continue
        rest = evidence.without(point.study)
        own = [p for p in evidence.points if p.study == point.study and p.workers == 1 and p.engine in PLAIN]
        others = [p for p in evidence.points if model_of(p.job) != model_of(point.job)]
        is_base = point.workers == 1 and point.engine in PLAIN
        asked = Asked(
            job=point.job, device=point.device, micro=point.micro, trained=point.trained, flops=flops.get(point.job)
        )
        views = {
            MEASURED: rest,
            PREDICTED: None if is_base else _with(rest, own),
            EXTRAPOLATED: _with(evidence, others, replace=True),
        }
        for way, view in views.items():
            if view is None:
                continue
            told = speed_of(asked, point.engine, point.workers, Known(evidence=view, flops=flops))
            if isinstance(told, Speed) and told.way == way:
                found.append(_error(way, point, told.value, point.rate))
    return found


def memory_errors(evidence: Evidence, sizes: Mapping[tuple[str, int], Sized]) -> list[Error]:
    """The formula's error at every recorded peak of a GPU whose job's sizes are known. sizes: by `shape_of`
    the job and micro-batch."""
    found = []
    for point in evidence.points:
        sized = sizes.get((shape_of(point.job), point.micro))
        if sized is None or sized.kept_bytes is None or not point.peak_mib:
            continue
        need = demand_of(
            Setting(**parse_backend(point.engine)), sized.model_sizes(), point.workers, training_of(point.fields, True)
        )
        found.append(_error(MEMORY, point, need.device, point.peak_mib))
    return found


def training_of(job: Mapping[str, Any], on_gpu: bool) -> Training:
    """What the memory formula must know of a job."""
    return Training(
        precision=str(job["precision"]),
        precision_mode=str(job.get("precision_mode") or "matched"),
        activation_checkpointing=bool(job.get("activation_checkpointing")),
        on_gpu=on_gpu,
    )


def spread(errors: Sequence[Error]) -> float | None:
    """Half the interval on the log scale: the 95 % quantile of the errors' sizes, None where there are too few."""
    if len(errors) < _LEAST:
        return None
    return float(np.quantile([abs(error.log) for error in errors], _LEVEL, method="higher"))


def spreads(errors: Sequence[Error]) -> dict[str, float | None]:
    """Way -> `spread`; a way that knows less is never given the narrower interval."""
    found: dict[str, float | None] = {MEMORY: spread([error for error in errors if error.way == MEMORY])}
    widest: float | None = None
    for way in WAYS:
        own = spread([error for error in errors if error.way == way])
        widest = own if widest is None or (own is not None and own > widest) else widest
        found[way] = None if own is None else widest
    return found


def inside(errors: Sequence[Error]) -> list[bool]:
    """Whether each error (of one way) lies in the interval that the other studies' errors make; left out where those
    are too few."""
    found = []
    for error in errors:
        width = spread([other for other in errors if other.study != error.study])
        if width is not None:
            found.append(abs(error.log) <= width)
    return found


def fastest_right(errors: Sequence[Error]) -> tuple[int, int]:
    """(right, asked): rows of a study (one job and number of workers, two engines or more) where the engine that was
    predicted to be the fastest was so, or within 2 % of it."""
    rows: dict[tuple[str, str, int], list[Error]] = {}
    for error in errors:
        rows.setdefault((error.study, error.job, error.workers), []).append(error)
    several = [row for row in rows.values() if len(row) > 1]
    right = 0
    for row in several:
        chosen = max(row, key=lambda error: error.predicted)
        right += chosen.measured >= 0.98 * max(error.measured for error in row)
    return right, len(several)


def as_rows(errors: Sequence[Error]) -> list[dict[str, Any]]:
    """For the record."""
    return [{**asdict(error), "error": error.error} for error in errors]


def _with(evidence: Evidence, points: Sequence[Point], *, replace: bool = False) -> Evidence:
    kept = list(points) if replace else [*evidence.points, *points]
    return Evidence(points=kept, collectives=evidence.collectives, memory=evidence.memory)


def _error(way: str, point: Point, predicted: float, measured: float) -> Error:
    return Error(
        way=way,
        study=point.study,
        job=point.job,
        engine=point.engine,
        workers=point.workers,
        predicted=predicted,
        measured=measured,
    )
