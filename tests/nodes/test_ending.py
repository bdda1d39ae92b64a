"""What is given up on in a node is ended there, with all that it has started; nsenter hands no signal on by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.experiments.virtual_scaling import run
from harness.records.record_files import RESULT, read_json
from mpi.nodes import cluster
from mpi.nodes.cluster import Cluster
from mpi.nodes.processes import end_entered
from tests.nodes.leftovers import assert_nothing_left

# A command that ignores polite signals, with a child in a session of its own whose parent ends, and one on node b.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, '-c', "import subprocess; subprocess.Popen(['sleep', '1000'])"]).wait()
subprocess.Popen(['sleep', '1000'], start_new_session=True)
print('up', flush=True)
time.sleep(1000)
"""


def test_a_command_that_takes_too_long_is_ended_in_the_node(two: Cluster) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        two.run("a", ["sh", "-c", "sleep 1000 & sleep 1000"], timeout=1.0)
    assert_nothing_left(two)


def test_ending_a_command_ends_what_descends_from_it_and_no_other(two: Cluster) -> None:
    bystander = subprocess.Popen(two.argv("a", ["sleep", "1000"]))
    process = subprocess.Popen(two.argv("a", [sys.executable, "-c", STUBBORN]), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    end_entered(process, grace=0.5)
    process.stdout.close()
    left = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in two.processes("a")]
    assert len([line for line in left if b"python" in line]) == 0
    assert bystander.poll() is None
    two.end_processes()  # the sleep whose parent had ended before, and the bystander
    assert bystander.wait(timeout=30) != 0
    assert_nothing_left(two)


def test_a_node_with_a_stopped_command_can_be_switched_off(make_nodes: Callable[..., Cluster]) -> None:
    made = make_nodes(1)
    process = subprocess.Popen(made.argv("a", ["sh", "-c", "echo up; exec sleep 1000"]), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    os.kill(made.processes("a")[0], signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while (state := Path(f"/proc/{process.pid}/stat").read_text().split()[2]) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state == "T"
    assert cluster.down(made.name) == 1
    assert process.wait(timeout=10) != 0
    process.stdout.close()


def test_exec_hands_signals_on(two: Cluster) -> None:
    words = [
        "cluster",
        "nodes",
        "exec",
        "--name",
        two.name,
        "a",
        "sh",
        "-c",
        "trap 'exit 9' TERM; echo up; sleep 1000 & wait",
    ]
    process = subprocess.Popen([sys.executable, "-m", "harness", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    assert process.wait(timeout=30) == 9
    process.stdout.close()
    two.end_processes()


def test_a_scaling_job_at_its_limit_is_ended_on_all_nodes(two: Cluster, tmp_path: Path) -> None:
    cell = {"engine": "ddp", "nodes": 2, "rate": "unlimited", "scaling": "weak", "repeat": 0, "width": 64}
    row = run._run(two, cell, 5000.0, 1000, tmp_path, limit_s=25.0)
    assert row["failed"] == "not finished after 25 s"
    assert_nothing_left(two)
    assert read_json(tmp_path / row["run"] / RESULT)["status"] == "failed"


LAUNCHER = """
import sys, time
from pathlib import Path
from mpi import guard, guards
from mpi.launchers.base import Launch
from mpi.process import supervise
guards.SILENCE_S, guards.BEAT_S = 5.0, 0.5
tag, log = sys.argv[1], Path(sys.argv[2])
worker = f"{guard.VARIABLE}={tag} {sys.executable} -c 'import time; time.sleep(15)'"
launch = Launch(launcher="x", argv=("ssh", "b", worker), tag=tag, remote=("b",))
print("up", flush=True)
out = supervise(launch, log_path=log, timeout=200)
print(out.returncode, out.reason, out.orphans, flush=True)
"""


def test_a_launcher_that_is_stopped_for_longer_than_a_node_is_silent(two: Cluster, tmp_path: Path) -> None:
    argv = two.argv("a", [sys.executable, "-c", LAUNCHER, f"job-stopped-{os.getpid()}", str(tmp_path / "log")])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        deadline = time.monotonic() + 60
        while not any(b"time.sleep(15)" in _words(pid) for pid in two.processes("b")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        launcher = next(pid for pid in two.processes("a") if b"supervise" in _words(pid))
        os.kill(launcher, signal.SIGSTOP)
        time.sleep(8)  # a guard that heard nothing for 5 s would have ended the worker
        os.kill(launcher, signal.SIGCONT)
        process.send_signal(signal.SIGCONT)  # nsenter stops itself when its command is stopped
        out, _ = process.communicate(timeout=90)
    assert out == "0  0\n"
    assert_nothing_left(two)


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
