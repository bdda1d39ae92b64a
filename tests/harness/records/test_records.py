from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness.job.declaration import Job, JobError
from harness.records.record_files import (
    RecordError,
    append_jsonl,
    finite,
    hide_places,
    read_json,
    read_jsonl,
    write_json,
)
from harness.records.run_folder import claim_run_folder


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"status": "ok"})
    with pytest.raises(TypeError):
        write_json(path, {"status": object()})
    assert read_json(path)["status"] == "ok"
    assert os.listdir(tmp_path) == ["result.json"]


def test_nan_never_enters_a_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    write_json(tmp_path / "x.json", finite({"loss": [float("nan"), 1.0, float("inf")]}))
    assert read_json(tmp_path / "x.json")["loss"] == [None, 1.0, None]


@pytest.mark.parametrize("content", ["", "{", "[1]", json.dumps({"schema": 99})])
def test_a_damaged_or_foreign_record_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=r"job\.json"):
        read_json(path)


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    append_jsonl(path, [{"step": 0}, {"step": 1}])
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [row["step"] for row in read_jsonl(path)] == [0, 1]


def test_runs_never_share_a_folder(tmp_path: Path) -> None:
    job = Job(backend="ddp", slots=2, study="s")
    first, second = claim_run_folder(job, tmp_path), claim_run_folder(job, tmp_path)
    assert first[1].name == "ddp-w2-fp32-s0-r0"
    assert second[1].name == "ddp-w2-fp32-s0-r0-2"
    assert Job.load(first[1] / "job.json") == first[0]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "results"
    blocked.write_text("a file where a folder must be")
    with pytest.raises(JobError, match="cannot write results there"):
        claim_run_folder(Job(), blocked)
    with pytest.raises(JobError, match="use letters"):
        claim_run_folder(Job(study="../up"), tmp_path)


def test_a_log_loses_this_machines_folders_and_nothing_else(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("see /a/b/results/run/log.txt and /a/b/harness/run.py:3, not /a/bc\n")
    hide_places(log, {"/a/b": "", "/a/b/results": "results/"})
    assert log.read_text() == "see results/run/log.txt and harness/run.py:3, not /a/bc\n"
    hide_places(tmp_path / "absent", {"/a": ""})
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]
