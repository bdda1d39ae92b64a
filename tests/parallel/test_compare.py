"""`harness compare` with real workers: a study from nothing to its report, once more for nothing, and a slowed rank."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.analysis.caveats import findings
from harness.analysis.check import check_runs
from harness.analysis.comparison import summarize_study
from harness.study.runner import interrupted

RUN = ["--preset", "tiny", "--steps", "14", "--timing-warmup", "2", "--eval-samples", "6", "--global-batch", "4"]
TINY = [*RUN, "--budget", "0"]  # no duels: they have tests of their own


def harness(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command as a user calls it."""
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    engines = "deepspeed:zero_stage=1,horovod"
    done = harness(
        "compare", "--backends", engines, "--workers", "2", "--repeats", "1", "--study", "real", *TINY,
        "--results", str(results),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DeepSpeed ZeRO-1" in done.stdout
    return results / "real"


def test_study_has_everything_and_its_records_hold(study: Path) -> None:
    for name in ("comparison.csv", "report.html", "study.json", "convergence.svg"):
        assert (study / name).stat().st_size > 0, name
    assert check_runs([study]) == []
    runs = summarize_study(study)
    assert runs.comparability.alike, runs.comparability.reasons
    assert set(runs.frame["status"]) == {"ok"}
    for run in runs.runs:
        assert {row["rank"] for row in run.split} == {0, 1}
        measured = run.result["memory"]
        assert measured["kinds"]["weights"] == pytest.approx(measured["theory"]["weights"], rel=0.02)
        assert measured["kinds"]["optimizer"] == pytest.approx(measured["theory"]["optimizer"], rel=0.02)


def test_finished_study_takes_seconds(study: Path) -> None:
    began = time.monotonic()
    done = harness("compare", str(study / "study.json"), "--results", str(study.parent))
    assert done.returncode == 0, done.stderr
    assert "2 done" in done.stderr
    assert time.monotonic() - began < 60
    assert len(summarize_study(study).runs) == 2


def test_slowed_rank_is_found_and_named(tmp_path: Path) -> None:
    done = harness(
        "run", "--backend", "ddp", "--slots", "2", "--study", "slow", *RUN, "--results", str(tmp_path),
        HARNESS_FAULT="slow:rank=1,step=0,ms=400",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = [finding.text for finding in findings(summarize_study(tmp_path / "slow")) if finding.code == "straggler"]
    assert len(found) == 1
    assert "rank 1" in found[0]
    # Whole step times do not show it: everybody waits.
    rows = [json.loads(line) for line in next(tmp_path.glob("slow/*/steps.jsonl")).read_text().splitlines()]
    assert sorted(row["step_s"] for row in rows)[len(rows) // 2] > 0.35


def test_shared_processes_train_what_processes_of_their_own_do(study: Path, tmp_path: Path) -> None:
    engines = "ddp,fsdp2,deepspeed:zero_stage=1,deepspeed:zero_stage=2"
    done = harness(
        "compare", "--backends", engines, "--workers", "2", "--repeats", "1", "--study", "shared", "--take-turns",
        *TINY, "--results", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert check_runs([tmp_path / "shared"]) == []
    runs = summarize_study(tmp_path / "shared").runs
    assert [run.result["status"] for run in runs] == ["ok"] * 4
    alone = next(run for run in summarize_study(study).runs if run.job["backend"] == "deepspeed")
    for run in runs:  # also those that came second into used processes
        assert run.result["final"]["loss"] == pytest.approx(alone.result["final"]["loss"], rel=1e-4), run.job["run"]


TURNS = ["compare", "--backends", "ddp,horovod", "--workers", "2", "--repeats", "2", "--study", "turns", "--take-turns"]


def test_engines_take_turns_in_the_studys_order(tmp_path: Path) -> None:
    done = harness(*TURNS, *TINY, "--results", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert check_runs([tmp_path / "turns"]) == []
    results = {run.job["run"]: run.result for run in summarize_study(tmp_path / "turns").runs}
    assert [result["waiting_processes"] for result in results.values()] == [2] * 4
    order = json.loads((tmp_path / "turns" / "study.json").read_text())["jobs"]
    times = [(results[job["run"]]["started"], results[job["run"]]["ended"]) for job in order]
    for (_, ended), (started, _) in itertools.pairwise(times):
        assert started >= ended


def test_processes_that_die_at_their_turn_end_the_study_and_not_the_wait(tmp_path: Path) -> None:
    done = harness(*TURNS, *TINY, "--results", str(tmp_path), HARNESS_FAULT="kill:rank=1,step=3")
    assert done.returncode == 1, done.stdout + done.stderr
    runs = summarize_study(tmp_path / "turns").runs
    assert [run.result["status"] for run in runs] == ["failed"] * 4
    assert all("rank 1" in run.reason or "SIGKILL" in run.reason for run in runs), [run.reason for run in runs]


def test_interrupt_ends_all_that_wait_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness", *TURNS, *TINY, "--steps", "4000", "--results", str(tmp_path)]
    study = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("turns/*/steps.jsonl")):
        assert study.poll() is None, study.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(study.pid, signal.SIGINT)  # as a terminal's Ctrl-C, and once more as `timeout -s INT` does
    study.send_signal(signal.SIGINT)
    _, said = study.communicate(timeout=60)
    assert study.returncode == 130, said
    assert "interrupted: the same command goes on" in said
    assert "Traceback" not in said
    deadline = time.monotonic() + 10  # Python's own resource tracker ends after its owner
    while subprocess.run(["pgrep", "-g", str(study.pid)], check=False, capture_output=True).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    runs = summarize_study(tmp_path / "turns").runs
    assert [interrupted(run) for run in runs] == [True] * 4
