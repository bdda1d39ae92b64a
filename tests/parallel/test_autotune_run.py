"""`harness run --autotune`: a phase of its own, its outcome in the run's records, the run fixed to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import BIN, run_command

from harness.analysis.check import check_runs
from harness.records.record_files import JOB, RESULT, STEPS, read_json, read_jsonl, runs_of

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]
TINY = ("--preset", "tiny", "--steps", "6", "--log-every", "2", "--timing-warmup", "1", "--eval-samples", "-1")


def check(folder: Path, steps: int) -> None:
    """The records of a run after a phase of `steps` steps."""
    found, result = read_json(folder / "autotune.json"), read_json(folder / RESULT)
    assert result["status"] == "ok", result
    assert found["steps"] == steps
    assert check_runs([folder]) == []
    assert found["samples"] >= 1
    assert result["autotune"]["best"] == found["best"]
    engine = result["engine"]
    assert engine["autotune"] is False
    assert engine["fusion_threshold_bytes"] == int(found["best"]["fusion_threshold_mb"] * 2**20)
    assert engine["cycle_time_ms"] == pytest.approx(found["best"]["cycle_time_ms"])
    assert not [name for name in engine["environment"] if "AUTOTUNE" in name]
    assert (folder / "autotune.csv").read_text().count("\n") > found["samples"]
    assert read_json(folder / JOB)["engine"] == {"tune_steps": steps}  # what was asked
    assert [row["step"] for row in read_jsonl(folder / STEPS)] == list(range(6))


def test_the_run_is_fixed_to_what_its_phase_found(tmp_path: Path) -> None:
    argv = [str(BIN / "harness"), "run", "--backend", "horovod", "--slots", "2", "--autotune", "60", *TINY]
    ended = run_command([*argv, "--results", str(tmp_path)], tmp_path / "log.txt", limit_s=180)
    assert ended.code == 0, ended.output[-3000:]
    assert "tuned in" in ended.output
    (folder,) = runs_of(tmp_path / "scratch")
    check(folder, 60)


def test_a_study_declares_it_beside_another_engine(tmp_path: Path) -> None:
    study = tmp_path / "tuned.toml"
    study.write_text(
        'backends = ["ddp", "horovod:tune_steps=40"]\nworkers = [2]\nrepeats = 1\nbudget = "0"\n[job]\n'
        'preset = "tiny"\n'
        "steps = 6\nlog_every = 2\ntiming_warmup = 1\neval_samples = -1\n"
    )
    argv = [str(BIN / "harness"), "compare", str(study), "--results", str(tmp_path)]
    ended = run_command(argv, tmp_path / "log.txt", limit_s=180)
    assert ended.code == 0, ended.output[-3000:]
    runs = {folder.name.split("-")[0]: folder for folder in runs_of(tmp_path / "tuned")}
    check(runs["horovod"], 40)
    assert "autotune" not in read_json(runs["ddp"] / RESULT)
    again = run_command(argv, tmp_path / "again.txt", limit_s=60)
    assert "2 done" in again.output
