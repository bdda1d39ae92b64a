from __future__ import annotations

import pytest

from harness.job import Job, JobError
from harness.options import apply_settings, job_values, parse_value


def test_a_job_survives_its_json() -> None:
    job = Job(backend="deepspeed", engine={"zero_stage": 2}, nodes=2, global_batch=16, clip_norm=None)
    assert Job.from_dict(job.to_dict()) == job


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backend": "mpi"}, "unknown engine 'mpi': choose one of single, ddp"),
        ({"scaling": "sideways"}, "unknown scaling"),
        ({"slots": 0}, "slots is 0"),
        ({"backend": "single", "slots": 2}, "runs one worker"),
        ({"backend": "ddp", "slots": 3, "global_batch": 8}, "use a multiple of 3"),
        ({"backend": "ddp", "slots": 2, "accumulation": 3, "global_batch": 8}, "use a multiple of 6"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(changes: dict, words: str) -> None:
    with pytest.raises(JobError, match=words) as caught:
        Job(**changes).validate()
    assert "\n" not in str(caught.value)


def test_micro_batch_follows_from_the_global_batch() -> None:
    assert Job(backend="ddp", nodes=2, slots=2, accumulation=2, global_batch=32).micro_batch == 4


def test_unknown_field_is_named() -> None:
    with pytest.raises(JobError, match="unknown job field 'batchsize'"):
        Job.from_dict({"batchsize": 3})


def test_settings_reach_nested_fields() -> None:
    values = {"engine": {"zero_stage": 1}}
    apply_settings(values, ("engine.overlap_comm=false", "lr=0.01", "model.decoder=mlp"))
    assert values == {"engine": {"zero_stage": 1, "overlap_comm": False}, "lr": 0.01, "model": {"decoder": "mlp"}}
    with pytest.raises(JobError, match="KEY=VALUE"):
        apply_settings(values, ("lr",))


def test_zero_stage_belongs_to_deepspeed() -> None:
    assert job_values({"backend": "deepspeed", "zero_stage": 2, "lr": None})["engine"] == {"zero_stage": 2}
    with pytest.raises(JobError, match="belongs to deepspeed"):
        job_values({"backend": "ddp", "zero_stage": 2})


def test_clip_norm_zero_is_no_clipping() -> None:
    assert job_values({"clip_norm": 0.0})["clip_norm"] is None


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("1e-4", 1e-4), ("true", True), ("null", None), ("cutpaste", "cutpaste")]
)
def test_values_are_json_or_text(text: str, value: object) -> None:
    assert parse_value(text) == value
