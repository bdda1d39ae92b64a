"""tuned.toml: what is written is read back, what is of another job or machine is said, bad files are one line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from harness.commands.experiment.parity import tuned_engines
from harness.job.declaration import Job, JobError
from harness.study.study_file import Study
from harness.study.tuned_file import TunedEngine, TunedFile, deciding, read, text_of, this_machine, write
from harness.study.tuned_rows import notes, with_tuned

JOB = {"preset": "tiny", "global_batch": 8, "clip_norm": None, "model": {"max_tokens": 9}, "data": 'mvtec:/a "b"\\c'}
HOROVOD = TunedEngine(
    backend="horovod", workers=2, given={}, settings={"num_groups": 4, "cycle_time_ms": 0.5}, verdict="faster",
    value=0.031, low=0.01, high=0.05, tried=12, duels=9, parity=2e-7,
    lost=({"settings": {"cycle_time_ms": 5.0}, "value": -0.2, "reason": "left after rung 1"},),
)  # fmt: skip
ZERO = TunedEngine(backend="deepspeed", workers=2, given={"zero_stage": 2}, settings={}, verdict="as it comes: slower")


def tuned(**changes: Any) -> TunedFile:
    machine, versions = {"hardware": "x", "cores": 2, "gpus": 0}, {"torch": "2.13.0"}
    values = {"schema": 1, "job": deciding(JOB), "machine": machine, "versions": versions, "engine": (HOROVOD, ZERO)}
    return TunedFile(**{**values, **changes})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    write(tuned(), path)
    assert read(path) == tuned()
    assert tomllib.loads(text_of(tuned()))["job"]["data"] == JOB["data"]


def test_the_same_job_with_another_learning_rate_seed_and_length_is_accepted() -> None:
    tuned().check_job({**JOB, "lr": 0.5, "seed": 3, "steps": 500, "backend": "horovod", "slots": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "small"}, "of another job: preset was tiny, here it is small: run `harness tune`"),
        ({"precision": "bf16"}, "precision was fp32, here it is bf16"),
        ({"global_batch": 16}, "global_batch was 8, here it is 16"),
        ({"accumulation": 2}, "accumulation was not set, here it is 2"),
        ({"model": {}}, "model was {'max_tokens': 9}, here it is not set"),
    ],
)
def test_another_job_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message.replace("{", r"\{")):
        tuned().check_job({**JOB, **change})


def test_each_engine_has_a_row_as_it_comes_and_one_as_tuned() -> None:
    engines: list[dict[str, Any]] = [
        {"backend": "horovod", "engine": {}},
        {"backend": "deepspeed", "engine": {"zero_stage": 2}},
        {"backend": "ddp", "engine": {}},
    ]
    rows = with_tuned(engines, 2, tuned())
    assert rows == [engines[0], {"backend": "horovod", "engine": dict(HOROVOD.settings)}, *engines[1:]]
    assert with_tuned(engines, 4, tuned()) == engines
    assert with_tuned(rows, 2, tuned()) == rows, "a row that is there already is not doubled"
    machine, versions = {"hardware": "y", "cores": 2, "gpus": 0}, {"torch": "2.14.0"}
    said = notes(engines, [2], tuned(), machine=machine, versions=versions)
    elsewhere = "hardware was x, here it is y; torch was 2.13.0, here it is 2.14.0"
    assert said == [
        "deepspeed:zero_stage=2 at 2 workers: nothing was shown to be faster than the engine as it comes",
        "ddp was not tuned for 2 workers: it has one row there, as it comes",
        f"the tuned settings were found elsewhere and may not be the best here: {elsewhere}",
    ]
    assert len(notes(engines, [2], tuned(), machine=tuned().machine, versions=tuned().versions)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file: `harness tune` writes it"),
        ("a = ", "not a readable TOML file"),
        ("schema = 1", "tuned file: job: a value is missing"),
        ("schema = 7\n[job]\n[machine]\n[versions]\n", "schema: must be at most 1, got 7"),
        ("schema = 1\nengine = 3\n[job]\n[machine]\n[versions]\n", r"'engine' must be a list of \[\[engine\]\]"),
        ('schema = 1\n[job]\n[machine]\n[versions]\n[[engine]]\nbackend = "ddp"\n', "workers: a value is missing"),
        ("schema = 1\nspeed = 3\n[job]\n[machine]\n[versions]\n", "unknown setting 'speed'"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "tuned.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(JobError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_this_machine_is_described_by_what_decides_speed() -> None:
    machine, versions = this_machine()
    assert set(machine) == {"hardware", "cores", "gpus"}
    assert "torch" in versions
    assert deciding(Job().to_dict())["preset"] == "small"


def study_of(path: Path, **changes: Any) -> Study:
    declared = {"name": "s", "backends": ["horovod", "deepspeed:zero_stage=2"], "workers": [1, 2], "repeats": 2}
    return Study.from_matrix(**{**declared, "job": JOB, "tuned": str(path), **changes})


def test_a_study_runs_each_engine_as_it_comes_and_tuned(tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    write(tuned(), path)
    study = study_of(path)
    names = [job.run for job in study.jobs if job.repeat == 0]
    assert names == [
        "horovod-w1-fp32-s0-r0",
        "deepspeed-z2-w1-fp32-s0-r0",
        "horovod-w2-fp32-s0-r0",
        "horovod-cycle_time_ms-0.5-num_groups-4-w2-fp32-s0-r0",
        "deepspeed-z2-w2-fp32-s0-r0",
    ]
    assert len(study.jobs) == 10
    later = [job.engine for job in study.jobs if job.repeat == 1 and job.world_size == 2]
    assert later[0] == HOROVOD.settings, "each repeat begins with the next row"
    assert any("horovod was not tuned for 1 workers" in note for note in study.notes)
    with pytest.raises(JobError, match="global_batch was 8, here it is 16"):
        study_of(path, job={**JOB, "global_batch": 16})
    with pytest.raises(JobError, match="precision was fp32, here it is bf16"):
        study_of(path, matrix={"precision": ["fp32", "bf16"]})


def test_parity_takes_the_tuned_engines(tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    zero = TunedEngine(backend="deepspeed", workers=4, given={"zero_stage": 1}, settings={"overlap_comm": True})
    write(tuned(engine=(HOROVOD, ZERO, zero)), path)
    assert tuned_engines(path) == [
        ("horovod:num_groups=4+cycle_time_ms=0.5", 2),
        ("deepspeed:zero_stage=1+overlap_comm=true", 4),
    ]
    write(tuned(engine=(ZERO,)), path)
    with pytest.raises(JobError, match="no engine in it has tuned settings"):
        tuned_engines(path)
