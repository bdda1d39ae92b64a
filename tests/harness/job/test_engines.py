"""How an engine with its settings is written: one grammar in every command and study file."""

from __future__ import annotations

import pytest

import backends
from harness.experiments.trainings.cells import parse_engine
from harness.job.declaration import JobError
from harness.job.engines import ZERO_STAGE, parse_backend, split_engines, split_workers


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("ddp", {}),
        ("deepspeed:2", {"zero_stage": 2}),
        ("deepspeed:zero_stage=2", {"zero_stage": 2}),
        (" deepspeed:3+memory_efficient_linear=false ", {"zero_stage": 3, "memory_efficient_linear": False}),
        ("horovod:fusion_threshold_mb=32+cycle_time_ms=0.5", {"fusion_threshold_mb": 32, "cycle_time_ms": 0.5}),
        ("deepspeed:config=/a@b/c.json", {"config": "/a@b/c.json"}),
    ],
)
def test_what_is_written_is_understood(text: str, engine: dict[str, object]) -> None:
    assert parse_backend(text) == {"backend": text.strip().partition(":")[0], "engine": engine}


@pytest.mark.parametrize(
    "text", ["ddp:2", "deepspeed:x", "ddp+a=1", "ddp:", ":a=1", "ddp:a", "horovod:=1", "horovod:2", "deepspeed:1+2"]
)
def test_what_is_not_is_one_line(text: str) -> None:
    with pytest.raises(JobError, match=r"write NAME, NAME:KEY=VALUE") as error:
        parse_backend(text)
    assert f"'{text}'" in str(error.value)


def test_workers_stand_behind_an_at() -> None:
    assert split_workers("deepspeed:1+overlap_comm=true@2") == ("deepspeed:1+overlap_comm=true", 2)
    assert split_workers("ddp") == ("ddp", None)
    for text in ("ddp@no", "ddp@0", "ddp@"):
        with pytest.raises(JobError, match="number of workers behind @"):
            split_workers(text)
    with pytest.raises(JobError, match="given by --workers"):
        parse_backend("ddp@2")


def test_a_list_has_commas() -> None:
    assert split_engines("ddp, horovod") == ["ddp", "horovod"]
    with pytest.raises(JobError, match="harness list engines"):
        split_engines(" , ")


def test_deepspeed_without_a_stage_is_the_same_everywhere() -> None:
    assert backends.backend_class("deepspeed").Settings().zero_stage == ZERO_STAGE  # type: ignore[attr-defined]
    assert parse_engine("deepspeed") == parse_engine(f"deepspeed:{ZERO_STAGE}")
