"""Guards: they end a job whose launcher is gone or whose node is cut off, never one whose launcher is only stopped.

The other node is this machine behind an ``ssh`` that runs the command here; `tests/nodes` has real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpi import guard

SSH = '#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n'
SUPERVISOR = """
import os, sys, time
from pathlib import Path
from mpi import guard, guards
from mpi.launchers.base import Launch
from mpi.process import supervise
guards.BEAT_S, guards.SILENCE_S = 0.1, 1.0
folder, tag, stall = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
code = f"import os, time\\nprint('up', flush=True)\\nwhile not os.path.exists('{folder}/go'): time.sleep(0.05)"
launch = Launch(
    launcher="x", argv=(sys.executable, "-c", code), tag=tag, env={guard.VARIABLE: tag}, remote=("other",)
)
began = time.monotonic()

def poll():
    global stall
    time.sleep(stall)  # as a file system does that answers nobody
    stall = 0.0

out = supervise(
    launch, log_path=folder / "log.txt", timeout=60, on_line=lambda line: print(line, flush=True), on_poll=poll
)
print(out.returncode, out.reason, out.orphans, flush=True)
"""


def start(tmp_path: Path, tag: str, stall: float = 0.0) -> subprocess.Popen[str]:
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), tag, str(stall)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": f"{ssh.parent}{os.pathsep}{os.environ['PATH']}"},
    )
    assert process.stdout is not None
    if not stall:
        assert process.stdout.readline() == "up\n"
    return process


def until_gone(tag: str, limit: float = 30.0) -> bool:
    deadline = time.monotonic() + limit
    while (left := guard.tagged(tag)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left


def guards_of(tag: str) -> dict[str, int]:
    """Role -> process id, of the guards that carry `tag` among their arguments."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if tag.encode() in words and words[words.index(tag.encode()) + 1] in (b"beat", b"listen"):
            found[words[words.index(tag.encode()) + 1].decode()] = int(entry)
    return found


def test_a_stopped_launcher_ends_no_job(tmp_path: Path) -> None:
    tag = f"job-stopped-{os.getpid()}"
    process = start(tmp_path, tag)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)  # more than twice the silence that a cut-off node takes for an end
    assert len(guard.tagged(tag)) == 1
    assert set(guards_of(tag)) == {"beat", "listen"}
    process.send_signal(signal.SIGCONT)
    (tmp_path / "go").touch()
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "0  0"


def test_a_launcher_that_waits_for_a_file_system_ends_no_job(tmp_path: Path) -> None:
    tag = f"job-stalled-{os.getpid()}"
    process = start(tmp_path, tag, stall=2.5)
    (tmp_path / "go").touch()
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "0  0"


def test_a_killed_launcher_ends_the_job_even_when_it_was_stopped(tmp_path: Path) -> None:
    tag = f"job-killed-{os.getpid()}"
    process = start(tmp_path, tag)
    process.send_signal(signal.SIGSTOP)
    process.kill()
    process.communicate(timeout=60)
    assert until_gone(tag)
    deadline = time.monotonic() + 30
    while guards_of(tag) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert guards_of(tag) == {}


@pytest.mark.parametrize("also", [True, False], ids=["with its launcher", "alone"])
def test_a_node_that_hears_nothing_ends_its_part(tmp_path: Path, also: bool) -> None:
    tag = f"job-cut-off-{also}-{os.getpid()}"
    process = start(tmp_path, tag)
    roles = guards_of(tag)
    if also:
        process.send_signal(signal.SIGSTOP)
    os.kill(roles["beat"], signal.SIGSTOP)
    assert until_gone(tag)
    os.kill(roles["beat"], signal.SIGCONT)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0
