"""Launchers across two nodes: how each kind of failure ends. What arrives is looked at in test_secrets."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpi.nodes.cluster import Cluster
from tests.nodes.leftovers import assert_nothing_left

pytestmark = [pytest.mark.parallel, pytest.mark.slow]
SCRIPT = Path(__file__).with_name("launch_on_node.py")
LAUNCHERS = ("deepspeed", "deepspeed-openmpi", "horovodrun", "horovodrun-mpi", "mpirun", "torchrun")


def launch(
    nodes: Cluster, launcher: str, *arguments: str, limit: float = 120, meanwhile: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Starts the stand-in worker from node a. `meanwhile` is run once both workers have said who they are."""
    argv = nodes.argv("a", [sys.executable, str(SCRIPT), launcher, "a:1,b:1", str(limit), *arguments])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        if meanwhile is not None:
            threading.Thread(target=_when_running, args=(nodes, meanwhile), daemon=True).start()
        out, _ = process.communicate(timeout=limit + 60)
    found = json.loads(out.splitlines()[-1])
    if "missing" in found:
        pytest.skip(found["missing"])
    return found


def _when_running(nodes: Cluster, action: Callable[[], None]) -> None:
    deadline = time.monotonic() + 110
    while time.monotonic() < deadline:
        commands = [Path(f"/proc/{pid}/cmdline") for name in ("a", "b") for pid in nodes.processes(name)]
        if sum(_is_worker(path) for path in commands) >= 2:
            time.sleep(1)
            action()
            return
        time.sleep(0.1)


def _is_worker(path: Path) -> bool:
    try:
        words = path.read_bytes().split(b"\0")
    except OSError:
        return False
    # The interpreter running the script itself: launchers have the same words further back.
    return [word for word in words[1:] if word != b"-u"][:2] == [str(SCRIPT).encode(), b"--worker"]


@pytest.mark.parametrize("launcher", ["deepspeed", "horovodrun", "mpirun", "torchrun"])
def test_a_killed_worker_ends_the_job_within_30_s(two, launcher):
    began = time.monotonic()
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.monotonic())
        for pid in two.processes("b"):
            if _is_worker(Path(f"/proc/{pid}/cmdline")):
                subprocess.run(["kill", "-9", str(pid)], check=False)

    found = launch(two, launcher, "wait", meanwhile=kill)
    assert found["returncode"] != 0
    assert "SIGKILL" in found["reason"] or "was killed" in found["reason"]
    assert time.monotonic() - killed[0] < 30, f"began {began}"
    assert_nothing_left(two)


def test_a_node_cut_off_is_named_and_cleans_itself(make_nodes):
    nodes = make_nodes(2, cores_per_node=1)
    cut: list[float] = []

    def unplug() -> None:
        cut.append(time.monotonic())
        nodes.cut("b")

    found = launch(nodes, "deepspeed", "wait", meanwhile=unplug)
    assert found["reason"].startswith("node b: lost the connection"), found
    assert time.monotonic() - cut[0] < 45
    # The cut-off node hears nothing of this; its guard ends what runs there.
    assert_nothing_left(nodes, limit=30)


def test_sshd_down_at_the_start_is_named_at_once(make_nodes):
    nodes = make_nodes(2, cores_per_node=1)
    nodes.stop_sshd("b")
    found = launch(nodes, "horovodrun", "wait")
    assert "node b: ssh: connect to host b port 22: Connection refused" in found["reason"]
    assert found["seconds"] < 20


def test_another_python_on_a_node_is_named_at_once(make_nodes, tmp_path):
    nodes = make_nodes(2, cores_per_node=1)
    nodes.mount("b", tmp_path, Path(sys.executable).parent)  # its interpreter is not where a's is
    found = launch(nodes, "horovodrun", "wait")
    assert found["reason"].startswith("node b: ")
    assert "No such file" in found["reason"] or "not found" in found["reason"]
    assert found["seconds"] < 20


def test_the_time_limit_ends_every_node(two):
    found = launch(two, "torchrun", "wait", limit=12)
    assert (found["returncode"], found["reason"][:18]) == (124, "not finished after")
    assert_nothing_left(two)
