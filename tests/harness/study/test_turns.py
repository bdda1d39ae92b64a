"""The files by which a study's processes take turns; the processes themselves are in tests/parallel/test_compare.py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from harness.commands.compare import compare
from harness.job.declaration import Job, JobError
from harness.launch import run as launch
from harness.protocol.turns import CoordinatorGoneError, Turn
from harness.records.run_record import RecordedRun
from harness.study import turn_conductor
from harness.study.runner import interrupted
from harness.study.turn_conductor import until_ready


@pytest.fixture
def turn(tmp_path: Path) -> Turn:
    (tmp_path / "conductor").write_text(str(os.getpid()))
    return Turn(folder=tmp_path, name="horovod-w2", waiting=3)


def test_run_begins_at_its_turn_and_says_that_it_has_ended(turn: Turn) -> None:
    again = Turn.from_dict(turn.to_dict())  # as the worker reads it
    assert again == turn
    waiting = threading.Thread(target=again.wait)
    waiting.start()
    waiting.join(timeout=0.2)
    assert waiting.is_alive()
    turn.begin()
    waiting.join(timeout=5)
    assert not waiting.is_alive()
    assert not turn.is_over
    again.end()
    assert turn.is_over


def test_processes_are_ready_when_each_rank_says_so(turn: Turn) -> None:
    turn.ready(1)
    assert not turn.is_ready(2)
    turn.ready(0)
    assert turn.is_ready(2)


def test_the_first_run_waits_for_all_starts_but_not_for_one_that_failed(turn: Turn) -> None:
    running: Future[list[Path]] = Future()
    failed: Future[list[Path]] = Future()
    other = Turn(folder=turn.folder, name="ddp-w1", waiting=3)
    waiting = threading.Thread(target=until_ready, args=([(turn, 2, running), (other, 1, failed)],), daemon=True)
    waiting.start()
    turn.ready(0)
    failed.set_result([])
    waiting.join(timeout=0.3)
    assert waiting.is_alive()
    turn.ready(1)
    waiting.join(timeout=5)
    assert not waiting.is_alive()


def test_no_run_begins_beside_processes_that_still_start(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have not started in time are told to end, and only their end lets the first run begin."""
    monkeypatch.setattr(turn_conductor, "START_LIMIT_S", 0.2)
    monkeypatch.setattr(turn_conductor, "_SAY_AFTER_S", 0.05)
    late: Future[list[Path]] = Future()
    ready: Future[list[Path]] = Future()
    other = Turn(folder=turn.folder, name="ddp-w1", waiting=3)
    other.ready(0)
    said: list[list[str]] = []
    waiting = threading.Thread(
        target=until_ready, args=([(turn, 2, late), (other, 1, ready)], said.append), daemon=True
    )
    waiting.start()
    limit = time.monotonic() + 5
    while not turn.is_given_up and time.monotonic() < limit:
        time.sleep(0.01)
    assert turn.is_given_up
    assert not other.is_given_up
    waiting.join(timeout=0.2)
    assert waiting.is_alive(), "its processes are still there"
    late.set_result([])
    waiting.join(timeout=5)
    assert not waiting.is_alive()
    assert said == [["horovod-w2"]]


def test_processes_that_are_late_are_ended_and_recorded(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = turn.folder / "stand_in.py"
    worker.write_text("import time; time.sleep(1000)")
    monkeypatch.setattr(launch, "WORKER", worker)
    monkeypatch.setattr(launch, "preflight", lambda job: job)
    turn.give_up()
    job = Job(preset="tiny", study="s", run=turn.name)
    began = time.monotonic()
    [folder] = launch.run_jobs([job], turn.folder, turns={job.run: turn})
    assert time.monotonic() - began < 30
    run = RecordedRun(folder)
    assert run.result["status"] == "failed"
    assert run.reason == "its processes had not started after 900 s: no run is timed beside a start"
    assert not interrupted(run), "the next start would not be quicker: done again when it is asked for"


def test_nobody_waits_for_a_conductor_that_is_gone(turn: Turn) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (turn.folder / "conductor").write_text(str(gone.pid))
    with pytest.raises(CoordinatorGoneError, match="horovod-w2 had not begun"):
        turn.wait()


def test_ways_to_save_starts_exclude_each_other() -> None:
    with pytest.raises(JobError, match="exclude each other: choose one"):
        compare.main(["--take-turns", "--concurrent", "2"], standalone_mode=False)
