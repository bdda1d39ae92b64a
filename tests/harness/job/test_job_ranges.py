"""Every number of a job and of an engine has a type and a range, checked wherever it comes from, in one line."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import backends
from backends.base import BackendError, LossScale, Optimization
from backends.declared import field_info
from harness.cli import main
from harness.commands.run import run
from harness.job.declaration import TABLES, Job, JobError, json_schema
from harness.job.options import FieldType, make_job
from harness.study.study_file import Study

RESULTS = Path(__file__).resolve().parents[3] / "results"

# field, wrong value, what is said behind the field's name
WRONG = [
    ("steps", "abc", "'abc' is not a whole number"),
    ("steps", 2.5, "2.5 is not a whole number"),
    ("steps", True, "True is not a whole number"),
    ("steps", 0, "must be at least 1, got 0"),
    ("lr", "fast", "'fast' is not a number"),
    ("lr", -1, "must be above 0, got -1"),
    ("lr", float("nan"), "must be a finite number, got nan"),
    ("lr", float("inf"), "must be a finite number, got inf"),
    ("precision", "fp8", "'fp8' is not one of fp32, bf16, fp16"),
    ("precision_mode", "exact", "'exact' is not one of matched, native"),
    ("optimizer", "lion", "'lion' is not one of adamw, adam, sgd"),
    ("schedule", "step", "'step' is not one of constant, warmup_linear, warmup_cosine"),
    ("device", "tpu", "'tpu' is not one of auto, cpu, cuda"),
    ("clip_norm", -1, "must be at least 0, got -1"),
    ("warmup_steps", -3, "must be at least 0, got -3"),
    ("betas", [0.9, 1], "must be below 1, got 1"),
    ("betas", [-0.1, 0.9], "must be at least 0, got -0.1"),
    ("betas", [0.9], "a value is missing"),
    ("eps", 0, "must be above 0, got 0"),
    ("weight_decay", -0.1, "must be at least 0, got -0.1"),
    ("seed", -1, "must be at least 0, got -1"),
    ("seed", "abc", "'abc' is not a whole number"),
    ("seed", 2**32, "must be at most 4294967295, got 4294967296"),
    ("timeout_s", 0, "must be above 0, got 0"),
    ("image_size", -224, "must be at least 0, got -224"),
    ("loader_workers", -1, "must be at least 0, got -1"),
    ("eval_samples", -2, "must be at least -1, got -2"),
    ("shots", -1, "must be at least 0, got -1"),
    ("checkpoint_every", -1, "must be at least 0, got -1"),
    ("timing_warmup", -1, "must be at least 0, got -1"),
    ("emulate_compute_ms", -1, "must be at least 0, got -1"),
    ("keep_weights", "maybe", "'maybe' is not true or false"),
    ("preset", ["tiny"], "is not text"),
    ("engine", 3, "3 is not a set of KEY=VALUE"),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG)
def test_a_wrong_value_is_refused_wherever_it_comes_from(
    name: str, value: object, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for make in (
        lambda: Job(**{name: value}),
        lambda: Job().with_(**{name: value}),
        lambda: Job.from_dict({**Job().to_dict(), name: value}),  # job.json
        lambda: make_job({name: value}),
        lambda: Study.from_matrix(name="s", backends=["ddp"], workers=[1], job={name: value}),
        lambda: Study.from_matrix(name="s", backends=["ddp"], workers=[1], matrix={name: [value]}),
    ):
        with pytest.raises(JobError) as caught:
            make()
        assert "\n" not in str(caught.value)
        if name not in ("engine", "seed"):  # of a study they are refused altogether
            assert says in str(caught.value), caught.value
            assert name in str(caught.value)
    with pytest.raises(SystemExit) as stop:
        main(["run", "--dry-run", "--results", str(tmp_path / "r"), "--set", f"{name}={json.dumps(value)}"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"error: --set {name}: "), said
    assert not (tmp_path / "r").exists()


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(JobError, match=r"steps: 'abc' is not a whole number; lr: must be above 0, got -1"):
        Job(steps="abc", lr=-1)
    with pytest.raises(JobError, match=r"unknown job field 'stepz': did you mean 'steps'\?; lr: "):
        Job.from_dict({"stepz": 3, "lr": -1})


def test_what_can_be_read_is_taken() -> None:
    job = Job(steps="12", lr=1, betas=[0, 0.5], clip_norm=0, keep_weights="no", study=2026)
    assert (job.steps, job.lr, job.betas, job.clip_norm, job.keep_weights, job.study) == (
        12, 1.0, (0.0, 0.5), None, False, "2026",
    )  # fmt: skip
    assert Job(clip_norm="none").clip_norm is None


def test_a_warm_up_longer_than_the_run_is_refused_but_a_short_run_needs_no_word_about_it() -> None:
    with pytest.raises(JobError, match="warmup_steps: 70 steps of warm-up do not fit in a run of 60 steps"):
        Job(steps=60, warmup_steps=70).validate()
    with pytest.raises(JobError, match="warmup_steps: 5 steps"):
        make_job({"steps": 3, "warmup_steps": 5})
    assert make_job({"steps": 3}).warmup_steps == 3
    assert Job(steps=3, warmup_steps=70, schedule="constant").validate()


@pytest.mark.parametrize(
    ("engine", "values", "says"),
    [
        ("deepspeed", {"zero_stage": "two"}, "deepspeed: zero_stage: 'two' is not a whole number"),
        ("deepspeed", {"reduce_bucket_size": -1}, "deepspeed: reduce_bucket_size: must be at least 1, got -1"),
        ("deepspeed", {"overlap_comm": "perhaps"}, "deepspeed: overlap_comm: 'perhaps' is not true or false"),
        ("deepspeed", {"gradient_predivide_factor": 0}, "must be above 0, got 0"),
        ("deepspeed", {"zero_stag": 1}, "engine 'deepspeed' has no setting 'zero_stag': did you mean 'zero_stage'"),
        ("horovod", {"cycle_time_ms": -1}, "horovod: cycle_time_ms: must be above 0, got -1"),
        ("horovod", {"num_groups": -1}, "horovod: num_groups: must be at least 0, got -1"),
        ("horovod", {"gradient_predivide_factor": 0}, "must be above 0, got 0"),
        ("horovod", {"commit_every": 0}, "horovod: commit_every: must be at least 1, got 0"),
        ("ddp", {"bucket_cap_mb": 0}, "ddp: bucket_cap_mb: must be above 0, got 0"),
        ("ddp", {"compression": "int8"}, "ddp: compression: 'int8' is not one of none, fp16, bf16"),
        ("ddp", {"extra": {"bucket_cap": 3}}, "argument of DistributedDataParallel 'bucket_cap'"),
        ("fsdp2", {"wrap_min_parameters": -1}, "fsdp2: wrap_min_parameters: must be at least 0, got -1"),
        ("fsdp2", {"extra": {"reshard": 3}}, "unknown argument of fully_shard 'reshard'"),
        ("single", {"extra": 3}, "extra: 3 is not a set of KEY=VALUE"),
    ],
)
def test_an_engine_s_settings_are_checked_before_it_is_made(engine: str, values: dict, says: str) -> None:
    with pytest.raises(BackendError) as caught:
        backends.settings_from(engine, values)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_loss_scale_s_rule_is_checked_with_the_job() -> None:
    with pytest.raises(JobError, match=r"loss_scale: unknown setting 'windo': did you mean 'window'\?"):
        Job(loss_scale={"windo": 5}).validate()
    with pytest.raises(JobError, match="loss_scale: window: must be at least 1, got 0"):
        Job(loss_scale={"window": 0}).validate()
    assert LossScale(window=5).window == 5


def test_a_job_is_still_a_frozen_dataclass() -> None:
    job = Job(engine={"zero_stage": 1}, betas=[0.9, 0.99])
    assert pickle.loads(pickle.dumps(job)) == job == replace(job) == Job.from_dict(job.to_dict())
    with pytest.raises(AttributeError):
        job.steps = 3  # type: ignore[misc]
    assert Job.steps == 60, "defaults are read from the class"


def test_what_a_job_and_its_optimization_share_is_declared_once() -> None:
    shared = {field.name for field in fields(Job)} & {field.name for field in fields(Optimization)} - {"loss_scale"}
    assert len(shared) == 11
    for name in shared:
        job, optimization = field_info(Job, name), field_info(Optimization, name)
        assert (job.annotation, str(job.metadata)) == (optimization.annotation, str(optimization.metadata)), name


def test_every_field_has_a_help_text_and_an_option_or_is_set_by_key() -> None:
    options = {option.name: option for option in run.params if isinstance(option.type, FieldType)}
    flags = {option.name for option in run.params}
    for field in fields(Job):
        text = field_info(Job, field.name).description
        assert text, field.name
        if field.name in options:
            assert options[field.name].help == text
        assert field.name in flags | TABLES | {"concurrent", "repeat"}, field.name
    shown = CliRunner().invoke(run, ["--help"]).output
    assert "--precision [fp32|bf16|fp16]" in shown
    assert "--keep-weights / --no-keep-weights" in shown


def test_the_schema_fits_every_committed_record() -> None:
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(json_schema())
    jobs = [json.loads(path.read_text()) for path in RESULTS.rglob("job.json")]
    assert jobs
    for job in jobs:
        assert not list(validator.iter_errors(job))
        read = Job.from_dict(job).validate().to_dict()
        assert {name: read[name] for name in job if name != "schema"} == {n: v for n, v in job.items() if n != "schema"}
    assert list(validator.iter_errors({"schema": 1, **Job().to_dict(), "lr": -1}))
