"""Speeds of `harness recommend`: which way is gone, and what comes out of records that were made to be known."""

from __future__ import annotations

import pytest

from harness.experiments.recommend.evidence import Evidence, Point, engine_text, key_of
from harness.experiments.recommend.speed import (
    EXTRAPOLATED,
    MEASURED,
    PREDICTED,
    UPDATE_S,
    Asked,
    Known,
    Speed,
    all_reduce_s,
    speed_of,
)
from mpi.ring import sent_share

GPU = "NVIDIA H100 80GB HBM3"
JOB, OTHER = (f'{{"precision": "bf16", "preset": "{name}"}}' for name in ("job", "other"))
TRAINED = 100_000_000
COLLECTIVES = {GPU: {2: [(1e3, 1e-5), (1e6, 1e-4), (4e8, 4e-3)]}}


def point(engine: str, workers: int, step_s: float, *, study: str = "s", job: str = JOB, micro: int = 8) -> Point:
    rate = micro * workers / step_s
    return Point(
        study=study, job=job, device=GPU, engine=engine, workers=workers, micro=micro, rate=rate, trained=TRAINED
    )


def evidence(*points: Point) -> Evidence:
    return Evidence(points=points, collectives=COLLECTIVES, memory={GPU: 80_000.0})


def asked(job: str = JOB, *, micro: int = 8, flops: float | None = None) -> Asked:
    return Asked(job=job, device=GPU, micro=micro, trained=TRAINED, flops=flops)


def test_what_was_measured_is_told_as_it_was() -> None:
    known = Known(evidence=evidence(point("horovod", 2, 0.1), point("horovod", 2, 0.1, study="t")))
    told = speed_of(asked(), "horovod", 2, known)
    assert isinstance(told, Speed)
    assert (told.way, told.why, told.value) == (MEASURED, "s, t", pytest.approx(160))


def test_exchange_grows_by_the_ring_from_fewer_workers() -> None:
    known = Known(evidence=evidence(point("single", 1, 0.10), point("horovod", 2, 0.12)))
    told = speed_of(asked(), "horovod", 8, known)
    assert isinstance(told, Speed)
    assert told.way == PREDICTED
    assert told.value == pytest.approx(64 / (0.10 + 0.02 * sent_share("all_reduce", 8) / sent_share("all_reduce", 2)))
    assert told.low is not None
    assert told.low < told.value


def test_an_engine_s_own_time_is_learned_from_other_jobs() -> None:
    other = [point("single", 1, 0.2, study="t", job=OTHER), point("deepspeed:1", 2, 0.25, study="t", job=OTHER)]
    known = Known(evidence=evidence(point("single", 1, 0.10), *other))
    told = speed_of(asked(), "deepspeed:1", 2, known)
    assert isinstance(told, Speed)
    assert told.way == PREDICTED
    assert told.value == pytest.approx(16 / 0.15)  # as many parameters, so the same 0.05 s beside the plain step


def test_a_job_that_nobody_ran_is_extrapolated_from_what_others_reached() -> None:
    known = Known(evidence=evidence(point("single", 1, 0.10, job=OTHER)), flops={OTHER: 1e12})
    told = speed_of(asked(flops=2e12), "single", 1, known)
    assert isinstance(told, Speed)
    assert told.way == EXTRAPOLATED
    fixed = UPDATE_S * TRAINED
    assert told.value == pytest.approx(8 / (fixed + 2 * (0.10 - fixed)))


@pytest.mark.parametrize(
    ("engine", "workers", "flops", "why"),
    [
        ("horovod", 2, None, "the job's FLOPs are not known"),
        ("fsdp2", 2, 1e12, "no record of it beside plain torch"),
        ("deepspeed:1", 2, 1e12, "no record of it on several workers"),
    ],
)
def test_what_stands_on_nothing_is_not_known(engine: str, workers: int, flops: float | None, why: str) -> None:
    other = [point("single", 1, 0.10, job=OTHER), point("deepspeed:1", 1, 0.11, job=OTHER)]
    told = speed_of(asked(flops=flops), engine, workers, Known(evidence=evidence(*other), flops={OTHER: 1e12}))
    assert isinstance(told, str)
    assert told.startswith(why)


def test_nothing_is_known_of_a_device_without_records() -> None:
    nowhere = Asked(job=JOB, device="another GPU", micro=8, trained=TRAINED, flops=1e12)
    assert speed_of(nowhere, "single", 1, Known(evidence=evidence(point("single", 1, 0.1)))) == (
        "the peak of another GPU is not known, and nothing was measured on it"
    )


def test_steps_of_other_samples_are_scaled_but_for_the_update() -> None:
    known = Known(evidence=evidence(point("single", 1, 0.10)))
    told = speed_of(asked(micro=16), "single", 1, known)
    fixed = UPDATE_S * TRAINED
    assert isinstance(told, Speed)
    assert told.value == pytest.approx(16 / (fixed + 2 * (0.10 - fixed)))
    assert isinstance(speed_of(asked(micro=64), "single", 1, known), str)  # too far from what was measured


def test_all_reduce_between_and_beyond_what_was_measured() -> None:
    found = evidence()
    assert all_reduce_s(GPU, 2, 1e6, found) == pytest.approx(1e-4)
    assert 1e-4 < (all_reduce_s(GPU, 2, 1e7, found) or 0) < 4e-3
    assert all_reduce_s(GPU, 2, 8e8, found) == pytest.approx(8e-3)
    assert all_reduce_s(GPU, 4, 8e8, found) == pytest.approx(8e-3 * 1.5)
    assert all_reduce_s("another", 2, 1e6, found) is None


def test_one_job_has_one_key_whatever_its_engine_and_folder() -> None:
    job = {"preset": "llama-600m", "precision": "bf16", "precision_mode": "matched", "optimizer": "adamw",
           "data": "textures", "image_size": 56, "global_batch": 32, "steps": 40}  # fmt: skip
    assert key_of(job) == key_of({**job, "image_size": 0, "global_batch": 64, "steps": 9, "engine": {"zero_stage": 1}})
    assert key_of(job) != key_of({**job, "precision": "fp32"})
    assert key_of(job) != key_of({**job, "compile": True})
    small = {**job, "preset": "small"}
    assert key_of({**small, "image_size": 224}) == key_of({**small, "image_size": 0})
    assert key_of({**small, "image_size": 448}) != key_of(small)
    assert key_of({**small, "data": "mvtec:/a/b"}) == key_of({**small, "data": "mvtec:/c"})


def test_an_engine_is_written_in_one_form() -> None:
    assert engine_text("deepspeed", {"zero_stage": 2, "overlap_comm": True}) == "deepspeed:2+overlap_comm=true"
    assert engine_text("deepspeed", {}) == "deepspeed:2"
    assert engine_text("horovod", {"cycle_time_ms": 0.5, "op": None}) == "horovod:cycle_time_ms=0.5"
    assert engine_text("ddp", {}) == "ddp"
