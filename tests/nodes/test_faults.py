"""Faults during a real job of each engine on virtual nodes: it ends in time, result.json says why, nothing is left.

The commands are those of a user: ``harness run --backend B --nodes 2`` typed on node a.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mpi.nodes.cluster import Cluster
from tests.nodes import fault_table
from tests.nodes.leftovers import assert_nothing_left

pytestmark = [pytest.mark.parallel, pytest.mark.slow, pytest.mark.timeout(240)]
ROOT = Path(__file__).resolve().parents[2]
ENGINES = ("deepspeed", "horovod")
# Each fault is tried with both engines when HARNESS_ALL_FAULTS=1, else with the one named here: minutes matter in CI.
ALL = os.environ.get("HARNESS_ALL_FAULTS") == "1"
EARLIER = ENGINES if ALL else ("horovod",)
LIMIT_S = 60.0


@dataclass
class Job:
    """A job that runs: its process on the host side, where its record is, and the nodes."""

    process: subprocess.Popen[str]
    folder: Path
    nodes: Cluster

    def steps(self) -> int:
        path = self.folder / "steps.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def wait_for_steps(self, count: int = 1, limit: float = 90.0) -> None:
        deadline = time.monotonic() + limit
        while self.steps() < count:
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, f"no step within {limit} s"
            time.sleep(0.1)

    def result(self, began: float) -> dict[str, Any]:
        """How it ended; it must have within 60 s of `began`."""
        self.process.wait(timeout=LIMIT_S + 60)
        seconds = time.monotonic() - began
        found = json.loads((self.folder / "result.json").read_text())
        assert seconds < LIMIT_S, f"{seconds:.0f} s: {found['reason']}"
        return {**found, "code": self.process.returncode, "seconds": seconds}

    def text(self) -> str:
        log = self.folder / "log.txt"
        return log.read_text(errors="replace")[-3000:] if log.exists() else "no log"

    def workers(self, node: str) -> list[int]:
        """Host-side ids of the training processes on a node."""
        found = []
        for pid in self.nodes.processes(node):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                script = next((word for word in words[1:] if word and not word.startswith(b"-")), b"")
                if b"python" in words[0] and script.endswith(b"harness/run.py"):
                    found.append(pid)
        return found


@contextlib.contextmanager
def running(nodes: Cluster, results: Path, engine: str, name: str, *, steps: int = 2000) -> Iterator[Job]:
    (hosts := results.parent / "hostfile").write_text(nodes.hostfile())
    argv = [sys.executable, "-m", "harness", "run", "--backend", engine, "--nodes", "2", "--hostfile", str(hosts)]
    argv += ["--preset", "tiny", "--steps", str(steps), "--log-every", "1", "--eval-samples", "-1", "--timeout", "20"]
    argv += ["--results", str(results), "--study", "faults", "--run-name", name]
    process = subprocess.Popen(
        nodes.argv("a", argv, cwd=ROOT),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Job(process, results / "faults" / name, nodes)
    finally:
        process.kill()
        process.communicate()


def noted(fault: str, engine: str, result: dict[str, Any]) -> None:
    fault_table.note(
        fault, engine, seconds=result["seconds"], status=result["status"], reason=result.get("reason") or ""
    )


def tried_with(*always: str) -> pytest.MarkDecorator:
    left_out = pytest.mark.skipif(not ALL, reason="HARNESS_ALL_FAULTS=1 tries it too")
    return pytest.mark.parametrize(
        "engine", [pytest.param(e, marks=[] if e in always else [left_out]) for e in ENGINES]
    )


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def results(two, tmp_path_factory) -> Path:
    """A results folder with earlier, good runs in it."""
    folder = tmp_path_factory.mktemp("faults") / "results"
    for engine in EARLIER:
        with running(two, folder, engine, f"{engine}-earlier", steps=12) as job:
            output, _ = job.process.communicate(timeout=120)
            assert job.process.returncode == 0, output
    return folder


@pytest.fixture
def intact(results) -> Iterator[Path]:
    """The results folder; the earlier records must be as they were afterwards."""
    earlier = [results / "faults" / f"{engine}-earlier" for engine in EARLIER]
    before = [digest(folder) for folder in earlier]
    yield results
    assert [digest(folder) for folder in earlier] == before


@pytest.fixture
def fresh(make_nodes) -> Callable[[], Cluster]:
    return lambda: make_nodes(2, cores_per_node=1)


@tried_with("deepspeed", "horovod")
def test_a_worker_is_killed(two, intact, engine):
    with running(two, intact, engine, f"{engine}-killed") as job:
        job.wait_for_steps(2)
        (victim,) = job.workers("b")
        os.kill(victim, signal.SIGKILL)
        result = job.result(time.monotonic())
    assert (result["status"], result["code"]) == ("failed", 1)
    # DeepSpeed's launcher may see first the rank that lost its peer; then the silent rank is named.
    named = ("SIGKILL", "was killed", "rank 1 died without a message (killed")
    assert any(words in result["reason"] for words in named), result["reason"]
    assert result["seconds"] < 30
    assert_nothing_left(two)
    noted("a worker is killed (SIGKILL)", engine, result)


@tried_with("horovod")
def test_a_node_is_cut_off_in_the_middle_of_a_step(fresh, intact, engine):
    nodes = fresh()
    with running(nodes, intact, engine, f"{engine}-cut") as job:
        job.wait_for_steps(2)
        nodes.cut("b")
        result = job.result(time.monotonic())
    assert result["status"] == "failed"
    assert result["reason"].startswith("node b: lost the connection"), result["reason"]
    assert_nothing_left(nodes, limit=30)  # the cut-off node's guard waits 20 s for a word
    noted("a node is cut off in the middle of a step", engine, result)


@tried_with("deepspeed")
def test_sshd_is_down_at_the_start(fresh, intact, engine):
    nodes = fresh()
    nodes.stop_sshd("b")
    began = time.monotonic()
    with running(nodes, intact, engine, f"{engine}-sshd") as job:
        result = job.result(began)
    assert result["status"] == "failed"
    assert "node b" in result["reason"]
    assert "Connection refused" in result["reason"]
    assert_nothing_left(nodes)
    noted("sshd is down at the start", engine, result)


@tried_with("horovod")
def test_another_python_on_one_node(fresh, intact, engine, tmp_path):
    """Node b's interpreter starts, but it is another one: the engine is not in it."""
    nodes = fresh()
    for name in ("python", "python3"):
        wrapper = tmp_path / name
        wrapper.write_text(f'#!/bin/sh\nexec {Path(sys.executable).resolve()} -S "$@"\n')
        wrapper.chmod(0o755)
    nodes.mount("b", tmp_path, Path(sys.executable).parent)
    began = time.monotonic()
    with running(nodes, intact, engine, f"{engine}-python") as job:
        result = job.result(began)
    assert result["status"] == "failed"
    assert "node b" in result["reason"] or "is not installed" in result["reason"], result["reason"]
    assert_nothing_left(nodes)
    noted("another Python on one node", engine, result)


@tried_with("deepspeed")
def test_the_disk_for_results_is_full(fresh, intact, engine, tmp_path):
    nodes = fresh()
    small = tmp_path / "small"
    small.mkdir()
    nodes.mount_small_disk("a", small, 1024)
    record = small / "faults" / "full"  # inside node a's file system, so it is read there

    def read(name: str) -> str:
        return nodes.run("a", ["cat", str(record / name)]).stdout

    with running(nodes, small, engine, "full", steps=100000) as job:
        deadline = time.monotonic() + 90
        while read("steps.jsonl").count("\n") < 2:
            assert job.process.poll() is None, read("log.txt")[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.3)
        nodes.run("a", ["sh", "-c", f"cat /dev/zero > {small}/fill"])
        began = time.monotonic()
        job.process.wait(timeout=LIMIT_S + 60)
        seconds = time.monotonic() - began
        result = json.loads(read("result.json"))
    assert job.process.returncode == 1
    assert result["status"] == "failed"
    assert "o space left on device" in result["reason"], result["reason"]
    assert seconds < LIMIT_S
    assert [json.loads(line) for line in read("steps.jsonl").splitlines()[:2]]
    assert_nothing_left(nodes)
    noted("the disk for results is full", engine, {**result, "seconds": seconds})


@tried_with("horovod")
def test_a_slow_link_slows_the_job_and_breaks_nothing(fresh, intact, engine):
    nodes = fresh()
    nodes.limit("b", "8mbit")
    with running(nodes, intact, engine, f"{engine}-slow", steps=4) as job:
        output, _ = job.process.communicate(timeout=150)
    assert job.process.returncode == 0, output
    result = json.loads((job.folder / "result.json").read_text())
    assert result["status"] == "ok"
    # The gradients of a step, one way, at that rate: it cannot have been quicker.
    least = (job.folder / "weights.safetensors").stat().st_size * 8 / 8e6
    rows = [json.loads(line) for line in (job.folder / "steps.jsonl").read_text().splitlines()]
    earlier = (intact / "faults" / f"{engine}-earlier" / "steps.jsonl").read_text().splitlines()
    quickest = min(row["step_s"] for row in rows[1:])
    assert quickest > 0.9 * least
    before = min(json.loads(line)["step_s"] for line in earlier[1:])
    assert_nothing_left(nodes)
    slowed = f"carries on: {quickest:.2f} s a step instead of {before:.2f} s"
    noted("a link of 8 Mbit/s", engine, {**result, "seconds": None, "reason": slowed})


@tried_with("deepspeed")
def test_ctrl_c_at_the_launcher(two, intact, engine):
    with running(two, intact, engine, f"{engine}-interrupted") as job:
        job.wait_for_steps(2)
        began = time.monotonic()
        for pid in two.processes("a"):  # what a terminal does: SIGINT to the foreground program
            with contextlib.suppress(OSError):
                if b"\0harness\0run\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGINT)
        result = job.result(began)
    assert (result["status"], result["code"]) == ("failed", 130)
    assert "interrupted" in result["reason"]
    assert result["seconds"] < 30
    assert_nothing_left(two)
    noted("Ctrl-C at the launcher", engine, result)
