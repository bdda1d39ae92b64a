"""An elastic Horovod job loses a worker to kill -9, takes in a new one, and ends with an unbroken run's weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import BIN, HERE, started_command

from backends.base import BackendError
from backends.checks.parity import TrainingSpec, compare, run_cells
from backends.horovod.elastic import micro_parts, part
from backends.process.rank import ProcessFacts
from backends.torch.rendezvous import own_addresses

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
STEPS = 260


def test_a_lost_worker_and_a_new_one_change_nothing_but_the_world(tmp_path: Path) -> None:
    hosts, discovery = tmp_path / "hosts", tmp_path / "discover.sh"
    hosts.write_text("localhost:1\n127.0.0.1:1\n")  # two names of this machine are two hosts to Horovod
    discovery.write_text(f"#!/bin/sh\ncat {hosts}\n")
    discovery.chmod(0o755)
    log = tmp_path / "log.txt"
    with started_command(_command(tmp_path, discovery), log) as process:
        _wait_for(lambda: _at(tmp_path) >= (10, 2), process, log, "both workers train")
        os.kill(int((tmp_path / "127.0.0.1.pid").read_text()), signal.SIGKILL)
        _wait_for(lambda: _at(tmp_path)[1] == 1, process, log, "the survivor goes on")
        newcomer = own_addresses()[0]
        if not newcomer.startswith("127."):
            new = tmp_path / "new-hosts"
            new.write_text(f"localhost:1\n{newcomer}:1\n")
            new.replace(hosts)  # the discovery script reads it every second
            _wait_for(lambda: _at(tmp_path)[1] == 2, process, log, "the newcomer is taken in")
        assert process.wait(90) == 0, log.read_text()[-3000:]
    sizes = [size for _, size in _as_unbroken(tmp_path)["worlds"]]
    assert sizes == ([2, 1] if newcomer.startswith("127.") else [2, 1, 2])


def test_gradients_of_a_step_cut_between_backward_and_exchange_are_dropped(tmp_path: Path) -> None:
    discovery = tmp_path / "discover.sh"
    discovery.write_text("#!/bin/sh\nprintf 'localhost:1\\n127.0.0.1:1\\n'\n")
    discovery.chmod(0o755)
    log = tmp_path / "log.txt"
    steps = 24
    dies = {"ELASTIC_DIES": "127.0.0.1:10", "ELASTIC_PACE_S": "0"}
    with started_command(_command(tmp_path, discovery, steps), log, extra=dies) as process:
        assert process.wait(90) == 0, log.read_text()[-3000:]
    assert _as_unbroken(tmp_path, steps)["worlds"] == [[0, 2], [8, 1]]


def _command(folder: Path, discovery: Path, steps: int = STEPS) -> list[str]:
    options = ["-np", "2", "--min-np", "1", "--max-np", "2", "--network-interfaces", "lo"]
    worker = [sys.executable, str(HERE / "elastic.py"), str(folder), str(steps)]
    return [sys.executable, str(BIN / "horovodrun"), *options, "--host-discovery-script", str(discovery), *worker]


def _as_unbroken(folder: Path, steps: int = STEPS) -> dict[str, Any]:
    """The job's summary, whose weights are those of an unbroken run in one process."""
    from tiny import Tiny, batches

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == steps
    assert summary["replayed"] <= 4  # no more than the commit interval
    cell = TrainingSpec(label="single", engine="single", optimization={"total_steps": steps}, steps=steps)
    (expected,) = run_cells([cell], Tiny, batches, facts=ProcessFacts(), device="cpu")
    found = compare(torch.load(folder / "weights.pt"), expected.weights, expected.initial)
    assert found.relative <= 1e-5, found
    return summary


def _at(folder: Path) -> tuple[int, int]:
    """(step, world size) last reported."""
    try:
        step, world = (folder / "step").read_text().split()
    except (OSError, ValueError):
        return (-1, 0)
    return int(step), int(world)


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen, log: Path, what: str) -> None:
    end = time.monotonic() + 150
    while not condition():
        assert process.poll() is None, f"ended before {what}:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < end, f"waited 150 s until {what}:\n{log.read_text()[-3000:]}"
        time.sleep(0.1)


def test_parts_cover_the_batch_once_and_evenly() -> None:
    for total in (1, 7, 16):
        for parts in range(1, total + 1):
            pieces = [part(total, index, parts) for index in range(parts)]
            assert [position for piece in pieces for position in piece] == list(range(total))
            assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
    assert [len(p) for rank in range(3) for p in micro_parts(16, rank=rank, world_size=3, accumulation=2)] == [
        3,
        3,
        3,
        3,
        2,
        2,
    ]


def test_a_world_larger_than_the_batch_is_one_line() -> None:
    with pytest.raises(BackendError, match="use --max-np 4 or a larger batch"):
        micro_parts(8, rank=0, world_size=5, accumulation=2)
