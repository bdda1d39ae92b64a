"""A rank that dies ends the others within 30 s, under every launcher, and leaves no process; wrong pairs are one
line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launch import HERE, run, started, tag_of, tagged

pytestmark = pytest.mark.timeout(150)

PAIRS = [
    ("horovodrun-gloo", "horovod", {}),
    ("mpirun", "horovod", {}),
    ("torchrun", "ddp", {}),
    ("deepspeed", "deepspeed", {"zero_stage": 2}),
    ("mpirun", "deepspeed", {"zero_stage": 1}),
]


@pytest.mark.parametrize(("launcher", "engine", "settings"), PAIRS, ids=lambda value: str(value))
def test_kill_9_of_a_rank_ends_the_job(tmp_path: Path, launcher: str, engine: str, settings: dict) -> None:
    log = tmp_path / "log.txt"
    with started(launcher, 2, HERE / "forever.py", [engine, json.dumps(settings), str(tmp_path)], log) as process:
        pids = [_pid(tmp_path / f"{rank}.pid", process, log) for rank in range(2)]
        tag = tag_of(process)
        os.kill(pids[1], signal.SIGKILL)
        begin = time.monotonic()
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running 30 s after a rank was killed:\n{log.read_text()[-2000:]}") from None
        assert code != 0
        while time.monotonic() - begin < 30 and set(tagged(tag)) & set(pids):
            time.sleep(0.2)
        assert not set(tagged(tag)) & set(pids), "an orphan is left"


def _pid(file: Path, process: subprocess.Popen, log: Path) -> int:
    end = time.monotonic() + 80
    while not (file.exists() and file.read_text()):
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < end, f"training did not begin:\n{log.read_text()[-2000:]}"
        time.sleep(0.1)
    return int(file.read_text())


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_horovod_under_a_foreign_launcher_is_one_line_with_the_remedy(tmp_path: Path, launcher: str) -> None:
    ended = run(launcher, 2, HERE / "forever.py", ["horovod", "{}", str(tmp_path)], tmp_path / "log.txt", limit_s=90)
    assert ended.code != 0
    lines = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert lines
    assert all("start it with horovodrun" in line for line in lines)


def test_torch_engines_under_horovodrun_say_what_to_do(tmp_path: Path) -> None:
    ended = run(
        "horovodrun-gloo", 2, HERE / "forever.py", ["ddp", "{}", str(tmp_path)], tmp_path / "log.txt", limit_s=90
    )
    assert ended.code != 0
    assert "error: launcher 'horovodrun' does not say where rank 0 is" in ended.output
