"""Elastic Horovod on virtual nodes: one is cut off in the middle of a step, the rest carries on to the end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.nodes import fault_table

pytestmark = [pytest.mark.parallel, pytest.mark.slow, pytest.mark.timeout(420)]


def test_the_rest_carries_on_when_a_node_is_cut_off(make_nodes, tmp_path):
    pytest.importorskip("horovod")
    nodes = make_nodes(3)  # on all cores: their imports end together
    script = Path(__file__).with_name("elastic_on_node.py")
    argv = nodes.argv("a", [sys.executable, str(script), "a:1,b:1,c:1", str(tmp_path), "160"])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL) as process:
        _wait(lambda: _at(tmp_path) >= (10, 3), process, tmp_path, "three workers train")
        nodes.cut("c")
        cut_at, _ = _at(tmp_path)
        began = time.monotonic()
        _wait(lambda: _at(tmp_path)[1] == 2, process, tmp_path, "the rest goes on")
        carried_on = time.monotonic() - began
        assert carried_on < 60
        out, _ = process.communicate(timeout=120)
    outcome = json.loads(out.splitlines()[-1])
    assert outcome["returncode"] == 0, outcome
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [size for _, size in summary["worlds"]] == [3, 2]
    assert summary["steps"] == 160
    assert summary["worlds"][1][0] <= cut_at + 4  # a step under way and what was committed since
    deadline = time.monotonic() + 30  # the guard of the cut-off node waits for a word before it cleans up
    while nodes.processes("c") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [nodes.processes(name) for name in ("a", "b", "c")] == [[], [], []]
    went_on = f"elastic: the other two carried on after {carried_on:.0f} s and trained all {summary['steps']} steps"
    fault_table.note("a node is cut off, elastic job of three", "horovod", seconds=None, status="ok", reason=went_on)


def _at(folder: Path) -> tuple[int, int]:
    try:
        step, world = (folder / "step").read_text().split()
    except (OSError, ValueError):
        return (-1, 0)
    return int(step), int(world)


def _wait(condition, process, folder: Path, what: str) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        log = folder / "log.txt"
        assert process.poll() is None, f"ended before {what}:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"waited 90 s until {what}:\n{log.read_text()[-3000:]}"
        time.sleep(0.1)
