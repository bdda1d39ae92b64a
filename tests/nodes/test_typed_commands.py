"""The two command lines of the README, typed on node a with the repository's hostfile, and what their records say."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records import comparability
from harness.records.record_files import ENVIRONMENT, EVALUATION, JOB, RESULT, read_json, runs_of
from mpi.nodes.cluster import Cluster

pytestmark = [pytest.mark.parallel, pytest.mark.slow, pytest.mark.timeout(240)]
ROOT = Path(__file__).resolve().parents[2]
TYPED = {
    "deepspeed": "harness run --backend deepspeed --nodes 2",
    "horovod": "horovodrun -np 2 -H a:1,b:1 python harness/run.py --backend horovod",
}
SHORT = "--preset tiny --steps 3 --eval-samples 12"  # else both train `small` for minutes


def typed(nodes: Cluster, line: str, results: Path) -> None:
    """Types `line` at a prompt of node a, in the repository, with its environment active."""
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    words = shlex.split(f"{line} {SHORT} --results {results}")
    argv = nodes.argv("a", [path, *words], cwd=ROOT)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_command_lines_end_with_records_that_may_be_compared(two: Cluster, tmp_path: Path) -> None:
    assert (ROOT / "hostfile").read_text() == two.hostfile(), "the repository's hostfile is that of two virtual nodes"
    sides = {}
    for engine, line in TYPED.items():
        typed(two, line, tmp_path / engine)
        (study,) = [path for path in (tmp_path / engine).iterdir() if path.is_dir()]
        (run,) = runs_of(study)
        result = read_json(run / RESULT)
        assert (result["status"], result["world_size"]) == ("ok", 2)
        assert (read_json(run / JOB)["nodes"], read_json(run / JOB)["slots"]) == (2, 1)
        assert read_json(run / ENVIRONMENT)["host"]["name"] == "a"
        assert read_json(run / EVALUATION)["samples"]
        sides[engine] = result["contract"]
    assert comparability.differences(sides["deepspeed"], sides["horovod"], same_curve=True) == []
