"""Tuned settings with real engines: they train what one process trains; `harness tune` finds and writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from launch import run_command

from harness.study.tuned_file import TunedEngine, TunedFile, read, write

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
HARNESS = [sys.executable, "-m", "harness"]


def test_tuned_settings_of_two_engines_equal_the_single_process(tmp_path: Path) -> None:
    horovod = TunedEngine(backend="horovod", workers=2, given={}, settings={"num_groups": 4, "cycle_time_ms": 0.1})
    settings = {"overlap_comm": True, "reduce_bucket_size": 8000}
    deepspeed = TunedEngine(backend="deepspeed", workers=2, given={"zero_stage": 2}, settings=settings)
    file = tmp_path / "tuned.toml"
    write(TunedFile(schema=1, job={}, machine={}, versions={}, engine=(horovod, deepspeed)), file)
    argv = [*HARNESS, "experiment", "parity", "--tuned", str(file), "--steps", "6", "--results", str(tmp_path)]
    ended = run_command(argv, tmp_path / "log.txt", limit_s=400)
    assert ended.code == 0, ended.output[-3000:]
    cells = json.loads((tmp_path / "parity" / "parity.json").read_text())["cells"]
    assert [cell["settings"] for cell in cells] == [horovod.settings, settings]
    assert all(cell["same_split"] <= 1e-5 for cell in cells), cells


def test_tune_measures_anew_what_won_and_writes_the_file(tmp_path: Path) -> None:
    argv = [*HARNESS, "tune", "--backends", "ddp", "--preset", "tiny", "--trials", "2", "--budget", "5s"]
    ended = run_command([*argv, "--rounds", "2", "--results", str(tmp_path)], tmp_path / "log.txt", limit_s=550)
    assert ended.code == 0, ended.output[-3000:]
    record = json.loads((tmp_path / "tuned" / "tuning.json").read_text())["engines"][0]
    assert [trial["name"].partition("=")[0] for trial in record["trials"]] == ["static_graph", "bucket_cap_mb"]
    assert all(trial["value"] is not None for trial in record["trials"])
    (entry,) = read(tmp_path / "tuned" / "tuned.toml").engine
    assert (entry.backend, entry.workers, dict(entry.given)) == ("ddp", 2, {})
    found = record["difference"]
    if entry.settings:
        assert found["low"] > 0
        assert entry.parity is not None
        assert entry.parity <= 1e-5
    else:
        assert entry.verdict.startswith("as it comes: ")
    assert found is None or found["duels"] == 4, "the search's duels do not count"
