"""Samples/s of a job on an engine and number of workers, by what is known: pure functions on `Evidence`.

Three ways, the first that can be gone is taken, and the answer says which it was:

measured      this job, device, engine, number of workers and samples a worker are in the records.
predicted     the job is known on this device with fewer workers. Where the engine itself is known on 1 and on more
              workers, the part of its exchange that is not hidden grows from there by the ring's share of bytes
              (`harness.experiments.prediction.from_study`). Else
                  step = plain step on one worker + own * P + exposed * T(n)
              P: trained parameters; own: seconds a parameter of what the engine does beside plain torch; T(n): seconds
              of an all-reduce of P fp32 gradients over n devices, measured (`harness experiment collectives`); exposed:
              the share of it that is not hidden. own and exposed are fitted to the records of this engine on all jobs.
extrapolated  the job has never been run on this device: its plain step is its FLOPs over the device's peak times the
              share of the peak that the recorded job with the nearest FLOPs a step reached, on whatever device.

Every value has an interval: how far such figures were off where the records could be asked (`scoring`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.analysis.intervals import mean_ratio
from harness.analysis.mfu import peak_flops
from harness.experiments.prediction.from_study import Law
from harness.experiments.recommend.evidence import Evidence, Point, model_of, precision_of
from mpi.ring import sent_share

MEASURED, PREDICTED, EXTRAPOLATED = "measured", "predicted", "extrapolated"
WAYS = (MEASURED, PREDICTED, EXTRAPOLATED)
PLAIN = ("single", "horovod", "ddp")  # on one worker Horovod registers no hooks and DDP hides its copies: plain torch
# Seconds a parameter of AdamW and clipping on an H100 or H200: 36 bytes read and written at about 3 TB/s. The part of a
# step that does not grow with the samples.
UPDATE_S = 36 / 3e12
_CLOSE = 2.0  # a step of other samples a worker is used up to this factor


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of: `evidence.key_of` the job, device, samples a worker, trained parameters, FLOPs of a sample."""

    job: str
    device: str
    micro: int
    trained: int
    flops: float | None = None


@dataclass(frozen=True, kw_only=True)
class Speed:
    """value: samples/s of all workers. way: of WAYS. why: what it stands on, a phrase. low, high: the 95 % interval,
    None where nothing bounds it."""

    value: float
    way: str
    why: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Known:
    """evidence, and FLOPs of a sample by job (`key_of`) where they are known."""

    evidence: Evidence
    flops: Mapping[str, float] = field(default_factory=dict)


def speed_of(asked: Asked, engine: str, workers: int, known: Known) -> Speed | str:
    """The speed of one setting without an interval but its own repeats', or why it is not known."""
    if found := _measured(asked, engine, workers, known.evidence):
        return found
    if workers > 1 and (found := _grown(asked, engine, workers, known.evidence)):
        return found
    plain, way, why = _plain_step(asked, known)
    if plain is None:
        return why
    if engine == "single" or (workers == 1 and engine in PLAIN):
        return Speed(value=asked.micro / plain, way=way, why=why)
    fitted = _engine(engine, workers, asked.device, known.evidence)
    if isinstance(fitted, str):
        return fitted
    own, exposed = fitted
    exchange = all_reduce_s(asked.device, workers, 4.0 * asked.trained, known.evidence) if workers > 1 else 0.0
    if exchange is None:
        return f"no collectives were measured on {asked.device}"
    step = plain + own * asked.trained + exposed * exchange
    return Speed(value=workers * asked.micro / step, way=way, why=f"{why}, the engine's own time from other records")


def all_reduce_s(device: str, ranks: int, size: float, evidence: Evidence) -> float | None:
    """Seconds of an all-reduce of `size` bytes: between measured sizes on the log scale, beyond them at the bandwidth
    of the largest; with other ranks than were measured by the ring's share. None where nothing was measured."""
    by_ranks = evidence.collectives.get(device)
    if not by_ranks:
        return None
    nearest = min(by_ranks, key=lambda count: (abs(math.log(count / ranks)), count))
    rows = by_ranks[nearest]
    sizes, seconds = (np.array(column) for column in zip(*rows, strict=True))
    if size >= sizes[-1]:
        found = float(seconds[-1] * size / sizes[-1])
    else:
        found = float(np.exp(np.interp(math.log(max(size, 1.0)), np.log(sizes), np.log(seconds))))
    return found * sent_share("all_reduce", ranks) / sent_share("all_reduce", nearest)


def _same(asked: Asked, evidence: Evidence) -> list[Point]:
    return [p for p in evidence.points if p.rate and p.job == asked.job and p.device == asked.device]


def _measured(asked: Asked, engine: str, workers: int, evidence: Evidence) -> Speed | None:
    points = [
        p for p in _same(asked, evidence) if (p.engine, p.workers, p.micro) == (engine, workers, asked.micro) and p.rate
    ]
    if not points:
        return None
    value, low, high = mean_ratio([p.rate for p in points if p.rate])
    if len(points) == 1:
        low, high = points[0].low, points[0].high
    assert value is not None
    return Speed(value=value, way=MEASURED, why=", ".join(sorted({p.study for p in points})), low=low, high=high)


def _grown(asked: Asked, engine: str, workers: int, evidence: Evidence) -> Speed | None:
    """From the engine's own steps on 1 (or plain torch's) and on fewer workers than are asked, of one study."""
    same = [p for p in _same(asked, evidence) if p.micro == asked.micro]
    best: Speed | None = None
    most = 1
    for study in sorted({p.study for p in same}):
        own = {p.workers: p for p in same if p.study == study and p.engine == engine}
        plain = _first_plain([p for p in same if p.study == study and p.workers == 1])
        one = own.get(1) or plain
        several = [count for count in own if 1 < count < workers]
        if one is None or not several or max(several) <= most:
            continue
        most = max(several)
        unhidden = max(0.0, own[most].step_s - one.step_s) / sent_share("all_reduce", most)
        law = Law(fixed=one.step_s, sample=0.0, exchange=unhidden)
        step = law.step(workers, asked.micro)
        slow = law.fixed + unhidden * (workers - 1) / (most - 1) * sent_share("all_reduce", most)
        best = Speed(
            value=workers * asked.micro / step,
            way=PREDICTED,
            why=f"the exchange on {most} workers ({study}) drawn out to {workers}",
            low=workers * asked.micro / slow,
        )
    return best


def _first_plain(points: Sequence[Point]) -> Point | None:
    for engine in PLAIN:
        for point in points:
            if point.engine == engine:
                return point
    return None


def _plain_step(asked: Asked, known: Known) -> tuple[float | None, str, str]:
    """Seconds of a step of plain torch on one worker, the way, and what it stands on (or why it is not known)."""
    one = [p for p in _same(asked, known.evidence) if p.workers == 1 and p.engine in PLAIN]
    near = [p for p in one if max(p.micro, asked.micro) <= _CLOSE * min(p.micro, asked.micro)]
    if near:
        least = min(abs(math.log(p.micro / asked.micro)) for p in near)
        near = [p for p in near if abs(math.log(p.micro / asked.micro)) == least]
        point = _first_plain(near)
        assert point is not None
        fixed = min(UPDATE_S * point.trained, 0.5 * point.step_s)
        step = fixed + (point.step_s - fixed) * asked.micro / point.micro
        return step, PREDICTED, f"one worker in {point.study}"
    if asked.flops is None:
        return None, "", "the job's FLOPs are not known, and it was never run on this device"
    peak = peak_flops(asked.device, precision_of(asked.job))
    if peak is None:
        return None, "", f"the peak of {asked.device or 'such a device'} is not known, and nothing was measured on it"
    near_job = nearest_share(asked.flops * asked.micro, known)
    if near_job is None:
        return None, "", "no record says what share of its peak a device reaches"
    share, job = near_job
    step = UPDATE_S * asked.trained + asked.flops * asked.micro / (share * peak)
    return step, EXTRAPOLATED, f"{share:.0%} of the peak, as {model_of(job)} reached"


def nearest_share(step_flops: float, known: Known) -> tuple[float, str] | None:
    """Share of its peak that plain torch reached on one device, and by which job: of the recorded jobs the one whose
    FLOPs a step are nearest (small steps leave a device waiting for its host)."""
    by_job: dict[tuple[str, int], list[float]] = {}
    for point in known.evidence.points:
        flops = known.flops.get(point.job)
        peak = peak_flops(point.device, precision_of(point.job))
        if point.rate and flops and peak and point.workers == 1 and point.engine in PLAIN:
            computing = max(point.step_s - UPDATE_S * point.trained, 0.2 * point.step_s)
            by_job.setdefault((point.job, point.micro), []).append(flops * point.micro / computing / peak)
    if not by_job:
        return None
    job, micro = min(by_job, key=lambda item: (abs(math.log(known.flops[item[0]] * item[1] / step_flops)), item))
    return float(np.exp(np.mean(np.log(by_job[job, micro])))), job


def _engine(engine: str, workers: int, device: str, evidence: Evidence) -> tuple[float, float] | str:
    """(own, exposed) of an engine, fitted to the records of all jobs; why not, where they do not tell them."""
    from scipy.optimize import nnls

    rows, targets, several = [], [], False
    on_gpu = device in evidence.memory
    for point in evidence.points:
        if point.engine != engine or not point.rate or (point.device in evidence.memory) != on_gpu:
            continue
        if not on_gpu and point.device != device:
            continue
        alike = Asked(job=point.job, device=point.device, micro=point.micro, trained=point.trained)
        own_study = Evidence(points=[p for p in evidence.points if p.study == point.study])
        plain = _plain_step(alike, Known(evidence=own_study))[0] or _plain_step(alike, Known(evidence=evidence))[0]
        exchange = all_reduce_s(point.device, point.workers, 4.0 * point.trained, evidence) if point.workers > 1 else 0
        if plain is None or exchange is None or (point.workers == 1 and engine in PLAIN):
            continue
        several = several or point.workers > 1
        rows.append([point.trained / point.step_s, exchange / point.step_s])
        targets.append((point.step_s - plain) / point.step_s)
    if not rows:
        return "no record of it beside plain torch"
    if workers > 1 and not several:
        return "no record of it on several workers"
    (own, exposed), _ = nnls(np.array(rows), np.array(targets))
    return float(own), float(exposed)
