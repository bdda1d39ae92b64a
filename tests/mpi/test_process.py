"""`supervise` on this machine: every way a job can end, how fast, what is said, and that nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpi import guard, hostfile
from mpi.launch import command
from mpi.launchers.base import Launch
from mpi.process import Outcome, supervise


def python(code: str, tmp_path: Path, **options: object) -> tuple[Launch, Outcome]:
    """Runs `code` as a lone worker."""
    launch = command(
        "local", [sys.executable, "-c", textwrap.dedent(code)], hostfile.local(1), scratch=tmp_path / "job"
    )
    options = {"timeout": 20.0, "grace": 1.0, **options}
    return launch, supervise(launch, log_path=tmp_path / "log.txt", **options)  # type: ignore[arg-type]


def assert_nothing_left(launch: Launch) -> None:
    assert guard.tagged(launch.tag) == []


def test_success_and_the_log(tmp_path):
    seen: list[str] = []
    launch, outcome = python("import os; print('hello', os.environ['OMP_NUM_THREADS'])", tmp_path, on_line=seen.append)
    assert outcome.ok
    assert outcome.reason == ""
    assert outcome.orphans == 0
    assert seen == ["hello 1"]
    assert (tmp_path / "log.txt").read_text() == "hello 1\n"
    assert_nothing_left(launch)


def test_an_exception_becomes_the_reason(tmp_path):
    _, outcome = python("raise ValueError('bad tile')", tmp_path)
    assert outcome.returncode == 1
    assert outcome.reason == "a worker failed: ValueError: bad tile"
    assert outcome.tail[-1] == "ValueError: bad tile"


def test_kill_minus_nine_is_named(tmp_path):
    _, outcome = python("import os; os.kill(os.getpid(), 9)", tmp_path)
    assert outcome.returncode == -9
    assert "SIGKILL" in outcome.reason


def test_a_worker_that_ignores_signals_and_has_children_is_ended_at_the_time_limit(tmp_path):
    launch, outcome = python(
        """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # a child in a session of its own: out of reach of the process group
        subprocess.Popen(['sleep', '1000'], start_new_session=True)
        print('up', flush=True)
        time.sleep(1000)
        """,
        tmp_path,
        timeout=6,
    )
    assert outcome.returncode == 124
    assert outcome.reason.startswith("not finished after 6 s")
    assert outcome.orphans >= 1
    assert outcome.seconds < 60
    assert_nothing_left(launch)


def test_a_child_left_behind_by_a_worker_that_ended_well_is_found(tmp_path):
    launch, outcome = python("import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)", tmp_path)
    assert outcome.ok
    assert outcome.orphans == 1
    assert_nothing_left(launch)


def test_on_poll_ends_the_job(tmp_path):
    launch, outcome = python("import time; time.sleep(1000)", tmp_path, on_poll=lambda: "the disk is full")
    assert (outcome.returncode, outcome.reason) == (1, "the disk is full")
    assert_nothing_left(launch)


def test_a_program_that_is_not_there(tmp_path):
    launch = Launch(launcher="local", argv=("/no/such/launcher",), tag="job-none")
    outcome = supervise(launch, log_path=tmp_path / "log.txt", timeout=5)
    assert outcome.returncode == 127
    assert "'/no/such/launcher'" in outcome.reason


def test_files_are_written_and_removed(tmp_path):
    path = tmp_path / "job" / "hostfile"
    argv = (sys.executable, "-c", f"print(open({str(path)!r}).read())")
    outcome = supervise(
        Launch(launcher="x", argv=argv, files={path: "a slots=1"}, tag="job-files"),
        log_path=tmp_path / "log",
        timeout=9,
    )
    assert outcome.tail[0] == "a slots=1"
    assert not path.parent.exists()


def test_one_failing_command_ends_the_others(tmp_path):
    sleeper = (sys.executable, "-c", "import time; time.sleep(1000)")
    failing = (sys.executable, "-c", "import time; time.sleep(.3); raise SystemExit(7)")
    launch = Launch(launcher="x", argv=sleeper, others=(failing,), tag="job-pair", env={guard.VARIABLE: "job-pair"})
    outcome = supervise(launch, log_path=tmp_path / "log", timeout=20, grace=2)
    assert outcome.returncode == 7
    assert outcome.seconds < 18
    assert_nothing_left(launch)


SUPERVISOR = """
import sys
from pathlib import Path
from mpi import hostfile
from mpi.launch import command
from mpi.process import supervise
code = "import subprocess as s, time; s.Popen(['sleep', '99'], start_new_session=True); print('up'); time.sleep(99)"
worker = [sys.executable, "-c", code]
launch = command("local", worker, hostfile.local(1), scratch=Path(sys.argv[1]) / "job", tag=sys.argv[2])
log = Path(sys.argv[1]) / "log.txt"
outcome = supervise(launch, log_path=log, timeout=60, grace=2, on_line=lambda line: print(line, flush=True))
print(outcome.returncode, outcome.reason, flush=True)
"""


def heed_hangups() -> None:
    """Whatever pytest was started with."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start_supervisor(tmp_path: Path, tag: str, before: Callable[[], object] = heed_hangups) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), tag],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
        preexec_fn=before,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGINT, "130 interrupted (Ctrl-C)"),
        (signal.SIGTERM, "143 ended by SIGTERM"),
        (signal.SIGHUP, "129 ended by SIGHUP"),
    ],
)
def test_signals_end_the_job_cleanly(tmp_path, number, says):
    tag = f"job-signal-{number}-{os.getpid()}"
    process = start_supervisor(tmp_path, tag)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == says
    assert Outcome(returncode=int(says.split()[0])).interrupted
    assert guard.tagged(tag) == []


def test_a_job_started_with_nohup_outlives_the_terminal(tmp_path):
    tag = f"job-nohup-{os.getpid()}"
    process = start_supervisor(tmp_path, tag, before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "143 ended by SIGTERM"


def test_killing_the_supervisor_itself_leaves_nothing(tmp_path):
    tag = f"job-kill-{os.getpid()}"
    process = start_supervisor(tmp_path, tag)
    assert len(guard.tagged(tag)) >= 2
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while guard.tagged(tag) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert guard.tagged(tag) == []
