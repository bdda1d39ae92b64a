"""Who works on a folder: real processes that hold one, end, are killed, or seem to be on another machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.cli import main
from harness.job.declaration import Job, JobError
from harness.launch import run
from harness.records import locks, record_files
from harness.records.locks import LOCK, SILENT_S, HeldError, Holder, check_free, hold, holder_of, release
from harness.records.record_files import RESULT, read_json, write_json
from harness.records.run_folder import claim_run_folder, claim_run_folders
from harness.study.runner import run_study
from harness.study.study_file import Study
from tests.harness.made_runs import write_run

JOB = Job(preset="tiny", study="s", run="one")


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `folder` until it is told to end."""
    text = "import pathlib, sys; from harness.records.locks import hold; hold(pathlib.Path(sys.argv[1])); "
    text += "print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", text, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def on_another_host(folder: Path, silent_s: float) -> None:
    """A lock file as one of another machine looks from here, its last sign of life `silent_s` seconds ago."""
    path = folder / LOCK
    path.write_text(json.dumps({**Holder.me().to_dict(), "host": "node7", "boot": "another", "pid": 4711}))
    then = path.stat().st_mtime - silent_s
    os.utime(path, (then, then))


def test_a_folder_in_use_is_refused_by_name_until_its_holder_ends(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        with pytest.raises(HeldError, match=rf"study x is in use by process {process.pid} on .+: wait until") as caught:
            hold(tmp_path, "study x")
        assert "\n" not in str(caught.value)
        with pytest.raises(HeldError, match=str(process.pid)):
            check_free(tmp_path)
        found = holder_of(tmp_path)
        assert found is not None
        assert found.pid == process.pid
        assert found.is_alive
    hold(tmp_path)
    release(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_a_killed_process_never_blocks(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK).exists(), "killed: nobody took it away"
        assert holder_of(tmp_path) is None
        check_free(tmp_path)
        hold(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    release(tmp_path)


def test_a_process_id_that_was_given_out_again_is_another_process(tmp_path: Path) -> None:
    mine = Holder.me().to_dict()
    assert Holder(**mine).is_alive
    assert not Holder(**{**mine, "start": mine["start"] - 1}).is_alive
    assert Holder(**{**mine, "boot": "before"}).is_alive is None
    (tmp_path / LOCK).write_text(json.dumps({**mine, "start": mine["start"] - 1}))
    hold(tmp_path)
    release(tmp_path)


def test_another_hosts_run_counts_as_live_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    on_another_host(tmp_path, silent_s=SILENT_S - 30)
    with pytest.raises(HeldError, match=r"in use by process 4711 on node7.*counts for \d+ s more"):
        hold(tmp_path)
    assert str(holder_of(tmp_path)).startswith("process 4711 on node7")
    on_another_host(tmp_path, silent_s=SILENT_S + 1)
    assert holder_of(tmp_path) is None
    hold(tmp_path)
    release(tmp_path)


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    hold(tmp_path)
    os.utime(tmp_path / LOCK, (1, 1))
    for _ in range(500):
        if (tmp_path / LOCK).stat().st_mtime > 1:
            break
        os.sched_yield()
        subprocess.run(["sleep", "0.01"], check=True)
    assert (tmp_path / LOCK).stat().st_mtime > 1
    release(tmp_path)


def test_a_live_run_is_not_resumed_and_a_dead_one_is(tmp_path: Path) -> None:
    _, folder = claim_run_folder(JOB, tmp_path)
    release(folder)
    before = (folder / record_files.JOB).read_bytes()
    with held_elsewhere(folder), pytest.raises(JobError, match="run s/one is in use by process"):
        claim_run_folder(JOB.with_(resume=True, log_every=3), tmp_path)
    assert (folder / record_files.JOB).read_bytes() == before
    assert claim_run_folder(JOB.with_(resume=True, log_every=3), tmp_path)[1] == folder
    release(folder)


def test_folders_are_claimed_all_or_none(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="run name"):
        claim_run_folders([JOB, JOB.with_(run="../up")], tmp_path)
    assert list((tmp_path / "s").iterdir()) == []


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of one run, whose launch writes the run's folder."""

    def run_job(job: Job, results: Path, **_: object) -> Path:
        return write_run(results / job.study, job)

    monkeypatch.setattr(run, "run_job", run_job)
    monkeypatch.setattr(run, "preflight", lambda job: job)
    return Study.from_matrix(name="s", backends=["single"], workers=[1], repeats=1, job={"preset": "tiny"})


def test_a_second_compare_leaves_the_first_ones_runs_alone(
    tmp_path: Path, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "s", study.jobs[0])
    write_json(folder / RESULT, {"status": "running"})
    arguments = ["compare", "--study", "s", "--backends", "single", "--workers", "1", "--repeats", "1"]
    arguments += ["--preset", "tiny", "--results", str(tmp_path)]
    with held_elsewhere(tmp_path / "s"), pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: study s is in use by process ")
    with held_elsewhere(folder), pytest.raises(SystemExit) as ended:  # started by hand into the same study
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: run s/{folder.name} is in use by process ")
    assert read_json(folder / RESULT)["status"] == "running"
    run_study(study, tmp_path, show=False)
    assert read_json(folder / RESULT)["status"] == "ok"
    assert not (tmp_path / "s" / LOCK).exists()


def test_a_dry_run_says_which_runs_are_live(tmp_path: Path, study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "s", study.jobs[0])
    write_json(folder / RESULT, {"status": "running"})
    arguments = ["compare", "--study", "s", "--backends", "single", "--workers", "1", "--repeats", "1", "--dry-run"]
    with held_elsewhere(folder):
        main([*arguments, "--preset", "tiny", "--results", str(tmp_path)])
    assert f"live  {folder.name}" in capsys.readouterr().out
