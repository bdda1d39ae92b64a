"""`harness experiment max-model` with real engines under their launchers, each worker's memory limited."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from launch import run_command

from harness.records.soundness import schema_errors

ARGUMENTS = [
    *(
        "experiment",
        "max-model",
        "--device",
        "cpu",
        "--memory-gib",
        "0.15",
        "--vocab",
        "512",
        "--length",
        "32",
        "--resolution",
        "0.3",
    ),
    *("--backends", "ddp,deepspeed:zero_stage=2+reduce_bucket_size=1000000"),
]


@pytest.mark.slow
def test_finds_the_largest_model_in_fresh_processes_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "harness", *ARGUMENTS, "--workers", "2", "--results", str(tmp_path)]
    stopped = run_command([*argv, "--budget", "25s"], tmp_path / "first.txt", limit_s=100)
    assert "the budget is used up" in stopped.output
    begun = json.loads((tmp_path / "fit" / "fit.json").read_text())
    assert not begun["finished"]
    before = sum(len(cell["tries"]) for cell in begun["cells"])

    ended = run_command(argv, tmp_path / "second.txt", limit_s=280)
    assert ended.code == 0, ended.output
    record = json.loads((tmp_path / "fit" / "fit.json").read_text())
    assert schema_errors("fit", record) == []
    assert record["finished"]
    assert record["cells"][0]["tries"][:before] == begun["cells"][0]["tries"][:before]
    ddp, zero = record["cells"]
    for cell in (ddp, zero):
        assert cell["status"] == "found", cell["reason"]
        sizes = {one["status"]: one["parameters"] for one in cell["tries"]}
        assert sizes["ok"] == cell["largest"]["parameters"] < sizes["oom"] == cell["too_large"]
        # the limit was what decided: no try took more than it, and the best one came near
        assert 0.6 * 0.15 * 1024 < cell["largest"]["peak_mib"] < 1.1 * 0.15 * 1024
    # 16 bytes a weight and Adam's temporary fit 154 MiB; a DDP worker holds everything
    assert abs(ddp["error"]) <= 0.35
    assert ddp["largest"]["parameters"] * 20 < 1.1 * 0.15 * 2**30
    assert str(tmp_path) not in (tmp_path / "fit" / "log.txt").read_text()
    for name in ("fit.csv", "fit.md", "fit.png", "fit.svg"):
        assert (tmp_path / "fit" / name).stat().st_size > 0


def test_a_failure_that_is_not_memory_is_named_and_ends_the_cell(tmp_path: Path) -> None:
    setting = 'ddp:extra={"process_group":1}'  # an option that there is, with a value that only DDP itself refuses
    argv = [sys.executable, "-m", "harness", *ARGUMENTS[:-1], setting, "--workers", "1", "--results", str(tmp_path)]
    ended = run_command(argv, tmp_path / "log.txt", limit_s=100)
    assert ended.code == 1, ended.output
    (cell,) = json.loads((tmp_path / "fit" / "fit.json").read_text())["cells"]
    assert cell["status"] == "failed"
    assert cell["largest"] is None
    assert [one["status"] for one in cell["tries"]] == ["failed"]
    assert "TypeError: _verify_params_across_processes()" in cell["reason"]


def test_a_cpu_needs_a_limit_in_one_line(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "harness", "experiment", "max-model", "--device", "cpu", "--results", str(tmp_path)]
    ended = run_command(argv, tmp_path / "log.txt")
    assert ended.code == 2
    assert ended.output.startswith("error: a search on a CPU needs --memory-gib")
    assert ended.output.count("\n") == 1


def test_a_dry_run_starts_and_writes_nothing(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "harness", *ARGUMENTS, "--dry-run", "--results", str(tmp_path / "r")]
    ended = run_command(argv, tmp_path / "log.txt")
    assert ended.code == 0, ended.output
    assert "DeepSpeed ZeRO-2" in ended.output
    assert not (tmp_path / "r").exists()
