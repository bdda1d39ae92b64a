from __future__ import annotations

import pytest

from harness.job.declaration import Job, JobError
from harness.job.options import apply_settings, job_values, make_job, parse_value
from harness.worker.horovod_autotune import budget


def test_a_job_survives_its_json() -> None:
    job = Job(backend="deepspeed", engine={"zero_stage": 2}, nodes=2, global_batch=16, clip_norm=None)
    assert Job.from_dict(job.to_dict()) == job


ELASTIC = {"backend": "horovod", "nodes": 2, "hostfile": "hosts", "engine": {"min_np": 1, "max_np": 2}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backend": "mpi"}, "unknown engine 'mpi': choose one of single, ddp"),
        ({"scaling": "sideways"}, "scaling: 'sideways' is not one of strong, weak"),
        ({"slots": 0}, "slots: must be at least 1, got 0"),
        ({"backend": "single", "slots": 2}, "runs one worker"),
        ({"backend": "ddp", "slots": 3, "global_batch": 8}, "use a multiple of 3"),
        ({"backend": "ddp", "slots": 2, "accumulation": 3, "global_batch": 8}, "use a multiple of 6"),
        ({"backend": "horovod", "launcher": "horovodrun-elastic"}, "add --min-np 1 --max-np N"),
        (ELASTIC | {"backend": "ddp"}, "ddp is not: leave them out"),
        (ELASTIC | {"nodes": 3}, "starts with 3 workers: --min-np 1 and --max-np 2 must enclose it"),
        (ELASTIC | {"global_batch": 1}, "use --max-np 1 or a larger batch"),
        (ELASTIC | {"nodes": 1, "hostfile": ""}, "an elastic job needs hosts that can be lost"),
        (ELASTIC | {"checkpoint_every": 5}, "does not support checkpoint-every"),
        (ELASTIC | {"engine": {"min_np": 1, "max_np": 2, "tune_steps": 100}}, "does not support tune-steps"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(changes: dict, words: str) -> None:
    with pytest.raises(JobError, match=words) as caught:
        Job(**changes).validate()
    assert "\n" not in str(caught.value)


def test_micro_batch_follows_from_the_global_batch() -> None:
    assert Job(backend="ddp", nodes=2, slots=2, accumulation=2, global_batch=32).micro_batch == 4


@pytest.mark.parametrize(
    ("slots", "accumulation", "batch"), [(1, 1, 8), (4, 1, 8), (6, 1, 12), (16, 1, 16), (2, 8, 16)]
)
def test_the_default_batch_can_be_shared_by_all_workers(slots: int, accumulation: int, batch: int) -> None:
    job = make_job({"backend": "ddp", "slots": slots, "accumulation": accumulation})
    assert job.global_batch == batch
    with pytest.raises(JobError, match="global batch 8 cannot be split"):
        make_job({"backend": "ddp", "slots": 3, "global_batch": 8})


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


def test_an_elastic_job_may_split_unevenly_and_names_its_limits() -> None:
    engine = {"min_np": 2, "max_np": 5}
    job = Job(backend="horovod", nodes=3, hostfile="hosts", global_batch=8, engine=engine).validate()
    assert job.elastic == (2, 5)
    assert Job().elastic is None
    assert Job(nodes=4, engine={"min_np": 3}).elastic == (3, 4)


def test_horovods_own_options_belong_to_horovod() -> None:
    given = {"backend": "horovod", "min_np": 1, "max_np": 4, "tune_steps": 300}
    assert job_values(given)["engine"] == {"min_np": 1, "max_np": 4, "tune_steps": 300}
    for name, flag in (("min_np", "--min-np"), ("max_np", "--max-np"), ("tune_steps", "--autotune")):
        with pytest.raises(JobError, match=f"{flag} belongs to horovod, not to ddp"):
            job_values({"backend": "ddp", name: 2})
        with pytest.raises(JobError, match="must be at least 1"):
            job_values({"backend": "horovod", name: 0})


@pytest.mark.parametrize("steps", [20, 33, 100, 500, 1000, 12345])
def test_the_tuner_gets_no_more_steps_than_there_are(steps: int) -> None:
    parts = budget(steps)
    assert 5 * parts["steps_per_sample"] * (parts["warmup"] + parts["samples"] + 1) <= steps
    assert parts["samples"] >= 2


def test_too_few_steps_to_tune_in_is_one_line() -> None:
    with pytest.raises(JobError, match="needs at least 20 steps"):
        budget(10)


def test_clip_norm_zero_is_no_clipping() -> None:
    assert job_values({"clip_norm": 0.0})["clip_norm"] is None


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("1e-4", 1e-4), ("true", True), ("null", None), ("cutpaste", "cutpaste")]
)
def test_values_are_json_or_text(text: str, value: object) -> None:
    assert parse_value(text) == value
