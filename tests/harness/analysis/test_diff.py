"""`harness results diff`: what differs, in words."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.analysis.diff import describe_difference
from harness.commands.results.diff import diff
from harness.job.declaration import Job
from harness.records.record_files import RecordError
from harness.records.run_record import RecordedRun
from tests.harness.made_runs import write_run


def pair(study: Path, first: dict, second: dict, **keywords) -> dict[str, list[str]]:
    a = write_run(study, Job(backend="horovod", slots=2, preset="tiny", run="a", **first))
    b = write_run(study, Job(backend="horovod", slots=2, preset="tiny", run="b", **second), **keywords)
    return dict(describe_difference(RecordedRun(a), RecordedRun(b)))


def test_same_job_twice_is_comparable_and_no_faster(tmp_path: Path) -> None:
    parts = pair(tmp_path / "s", {}, {})
    assert parts["Comparable?"] == ["yes: they share everything that must be alike"]
    assert "Asked" not in parts
    assert "every test sample has the same score in both" in parts["Quality"]


def test_slowdown_of_three_per_cent_is_told_from_noise(tmp_path: Path) -> None:
    steps = {"steps": 120}
    slow = pair(tmp_path / "slow", steps, {**steps, "repeat": 1}, step_s=0.515)["Speed"][0]
    assert re.search(r"16\.\d -> 15\.\d \(-[23]\.\d %\); steps alone -[23]\.\d %, 95 % CI -3\.\d to -2\.\d %", slow)
    same = pair(tmp_path / "same", steps, {**steps, "repeat": 1}, step_s=0.5)["Speed"]
    assert re.search(r"95 % CI -0\.\d to 0\.\d %", same[0])
    assert same[1].startswith("typical step: ")
    assert "repeats tell" in same[2]


def test_what_was_asked_and_why_it_cannot_be_compared(tmp_path: Path) -> None:
    parts = pair(tmp_path / "s", {}, {"lr": 0.01, "global_batch": 16})
    assert "lr: 0.001 -> 0.01" in parts["Asked"]
    assert "no: global batch is 8 in one and 16 in the other" in parts["Comparable?"]


def test_failed_run_is_said(tmp_path: Path) -> None:
    parts = pair(tmp_path / "s", {}, {}, fail="rank 0: boom")
    assert parts["Outcome"] == ["b failed: rank 0: boom"]


def test_command_prints_and_refuses_a_study(tmp_path: Path) -> None:
    pair(tmp_path / "s", {}, {"seed": 3})
    done = CliRunner().invoke(diff, [str(tmp_path / "s" / "a"), str(tmp_path / "s" / "b")])
    assert done.exit_code == 0
    assert "seed: 0 -> 3" in done.output
    done = CliRunner().invoke(diff, [str(tmp_path / "s"), str(tmp_path / "s" / "b")])
    assert isinstance(done.exception, RecordError)
    with pytest.raises(RecordError, match="name one of its runs"):
        raise done.exception
