"""However the launching side of a run ends, result.json tells the truth and the folder is free again. Real launches of
a stand-in worker, which needs no torch."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click
import pytest

from harness.commands.tree import load
from harness.job.declaration import Job, JobError
from harness.launch import run, sealing
from harness.launch.run import run_job, run_jobs
from harness.protocol.console import Progress
from harness.records.locks import LOCK, holder_of
from harness.records.record_files import RESULT, read_json
from harness.records.run_record import RecordedRun
from harness.study.runner import interrupted

ROOT = Path(__file__).resolve().parents[3]
JOB = Job(preset="tiny", study="s", run="one", steps=3)
# Trains SECONDS (of the environment), writing a row every 0.1 s, for each run that it was given.
STAND_IN = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from harness.common.packed_json import unpack
from harness.records import record_files as records
from harness.records.run_folder import write_running

def train(folder):
    write_running(folder, started="2026-01-01T00:00:00+00:00")
    for step in range(int(10 * float(os.environ["SECONDS"]))):
        row = dict(step=step, loss=1.0, step_s=0.1, samples=8)
        records.append_jsonl(folder / records.STEPS, [row])
        time.sleep(0.1)
    records.write_json(folder / records.RESULT, dict(status="ok", reason="", wall_s=1.0, throughput={{}}, final={{}}))

given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "--jobs-file" in given:
    for item in json.loads(Path(given["--jobs-file"]).read_text()):
        train(Path(item["run_dir"]))
else:
    train(Path(given["--run-dir"]))
"""


@pytest.fixture(autouse=True)
def _worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "stand_in.py"
    worker.write_text(STAND_IN.format(root=str(ROOT)))
    monkeypatch.setattr(run, "WORKER", worker)
    monkeypatch.setattr(run, "preflight", lambda job: job)
    monkeypatch.setenv("SECONDS", "0.3")


def result_of(folder: Path) -> dict[str, Any]:
    """What the record says when all is over; nobody works on the folder any more, nothing is left there."""
    assert holder_of(folder) is None
    assert not (folder / LOCK).exists()
    assert not (folder / ".room").exists()
    result = read_json(folder / RESULT)
    assert "holder" not in result
    return result


def test_a_run_names_who_ends_its_record_while_it_runs(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def on_rows(rows: list[dict[str, Any]]) -> None:
        seen.append(read_json(tmp_path / "s" / "one" / RESULT))

    folder = run_job(JOB, tmp_path, on_rows=on_rows)
    assert seen[0]["status"] == "running"
    assert seen[0]["holder"]["pid"] == os.getpid()
    assert {"host", "start"} <= set(seen[0]["holder"])
    assert result_of(folder)["status"] == "ok"


def test_an_error_in_on_rows_ends_the_job_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECONDS", "60")

    def on_rows(rows: list[dict[str, Any]]) -> None:
        raise FileNotFoundError("my own file")

    with pytest.raises(FileNotFoundError, match="my own file"):
        run_job(JOB, tmp_path, on_rows=on_rows)
    result = result_of(tmp_path / "s" / "one")
    assert result["status"] == "failed"
    assert result["reason"] == "its supervisor failed: FileNotFoundError: my own file"


@pytest.mark.parametrize("where", ["opening", "network"])
def test_an_interrupt_between_claim_and_start_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if where == "opening":
        monkeypatch.setattr(sealing.OpenRecord, "open", interrupt)
    else:
        monkeypatch.setattr(run, "_supervised", interrupt)
    folder = run_job(JOB, tmp_path)
    result = result_of(folder)
    assert (result["status"], result["exit_code"]) == ("failed", 130)
    assert interrupted(RecordedRun(folder)), "due again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_the_launch_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, number: int
) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, before))
    monkeypatch.setattr(run, "_supervised", lambda *_: os.kill(os.getpid(), number))
    assert result_of(run_job(JOB, tmp_path))["exit_code"] == 128 + number


def test_a_closed_pipe_of_the_progress_output_does_not_end_the_job(tmp_path: Path) -> None:
    read, write = os.pipe()
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from harness.launch import run as launch
from harness.job.declaration import Job
launch.WORKER = Path({str(run.WORKER)!r})
launch.preflight = lambda job: job
folder = launch.run_job(Job(preset="tiny", study="s", run="one", steps=3), Path({str(tmp_path)!r}), show=True)
sys.exit(launch.report_end(folder))
"""
    os.close(read)  # as `harness run 2>&1 | head -1` does
    try:
        code = subprocess.run([sys.executable, "-c", program], stdout=write, stderr=write, check=False).returncode
    finally:
        os.close(write)
    assert result_of(tmp_path / "s" / "one")["status"] == "ok"
    assert code in (0, 120), "120: Python could not flush its output at the end"


def test_progress_falls_silent_where_nobody_reads() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as screen:
        progress = Progress(screen, total=2, every_s=0)
        for step in range(2):
            progress.update(step + 1, "", 0.1)
        progress.close()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # for the buffer's end


def test_progress_shows_the_throughput_of_the_last_steps_together() -> None:
    screen = io.StringIO()
    progress = Progress(screen, total=10, every_s=0)
    rows = [{"step": step, "loss": 1.0, "samples": 8, "step_s": 2.0, "t": 2.0 * (step + 1)} for step in range(4)]
    rows.append({"step": 4, "loss": 1.0, "samples": 8, "step_s": 0.1, "t": 8.1})
    progress.tell(rows[:4])
    progress.tell(rows[4:])
    assert "5/10  loss 1.0000  5.25 samples/s  0:08 left" in screen.getvalue()


def test_a_run_past_its_time_limit_says_so_and_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECONDS", "60")
    began = time.monotonic()
    result = result_of(run_job(JOB.with_(time_limit_s=1.5), tmp_path))
    assert time.monotonic() - began < 30
    assert result["status"] == "failed"
    assert result["exit_code"] == 1
    assert result["reason"].startswith("not finished after 1.5 s: raise --time-limit")
    assert "--timeout" not in result["reason"]


def test_without_a_time_limit_no_launch_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[object] = []
    supervise = run.mpi.process.supervise

    def noting(*args: Any, **options: Any) -> Any:
        limits.append(options.get("timeout"))
        return supervise(*args, **options)

    monkeypatch.setattr(run.mpi.process, "supervise", noting)
    run_job(JOB, tmp_path)
    run_jobs([JOB.with_(run="two"), JOB.with_(run="three")], tmp_path)
    assert limits == [None, None]
    assert Job().time_limit_s == 0


def test_runs_that_share_processes_have_a_time_limit_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECONDS", "2")
    jobs = [JOB.with_(run=name, time_limit_s=limit) for name, limit in (("a", 30.0), ("b", 1.0), ("c", 30.0))]
    results = [result_of(folder) for folder in run_jobs(jobs, tmp_path)]
    assert [result["status"] for result in results] == ["ok", "failed", "failed"]
    assert results[1]["reason"].startswith("not finished after 1 s: raise --time-limit")


def test_every_run_that_shares_processes_is_sealed_whatever_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no log")

    monkeypatch.setattr(run.mpi.process, "supervise", broken)
    with pytest.raises(OSError, match="no log"):
        run_jobs([JOB, JOB.with_(run="two")], tmp_path)
    for name in ("one", "two"):
        assert result_of(tmp_path / "s" / name)["reason"] == "its supervisor failed: OSError: no log"


def test_a_time_limit_is_none_of_a_studys_settings(tmp_path: Path) -> None:
    from harness.study.runner import same_job

    recorded = json.loads(json.dumps(JOB.to_dict()))
    assert same_job(JOB.with_(time_limit_s=60), recorded)
    recorded.pop("time_limit_s")
    assert same_job(JOB, recorded)
    with pytest.raises(JobError, match="time_limit_s"):
        JOB.with_(time_limit_s=-1)


def test_every_command_that_launches_has_the_time_limit_apart_from_that_of_one_wait() -> None:
    experiments = ("duel", "parity", "wire", "overhead", "collectives")
    for name in ("run", "compare", *(f"experiment {name}" for name in experiments)):
        command = load(name)
        options = {flag: option for option in command.params for flag in option.opts}
        assert "--time-limit" in options, name
        # the libraries of collectives have no limit of a wait of their own
        limit = options["--time-limit"]
        default = limit.get_default(click.Context(command))
        seconds = limit.type_cast_value(click.Context(command), default) if isinstance(default, str | float) else 0
        assert seconds == (300 if name == "experiment collectives" else 0), name


def test_a_supervisor_outside_the_main_thread_works_too(tmp_path: Path) -> None:
    folders: list[Path] = []
    thread = threading.Thread(target=lambda: folders.append(run_job(JOB, tmp_path)))
    thread.start()
    thread.join(60)
    assert result_of(folders[0])["status"] == "ok"
