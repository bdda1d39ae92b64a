"""What a whole run records of its machine: other programs beside it, and devices of its own ranks only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.record_files import RESOURCES, RESULT, read_json, read_jsonl, runs_of
from harness.records.soundness import schema_errors

pytestmark = [pytest.mark.parallel, pytest.mark.timeout(200)]
ROOT = Path(__file__).resolve().parent.parent.parent
BUSY = "while True: pass"


def test_a_busy_loop_beside_a_run_is_in_its_record_and_said(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "harness", "run", "--backend", "ddp", "--slots", "2", "--preset", "tiny"),
        *("--steps", "120", "--log-every", "40", "--eval-samples", "-1", "--results", str(tmp_path), "--study", "s"),
    ]
    with subprocess.Popen([sys.executable, "-c", BUSY]) as busy:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                timeout=150, check=False,
            )  # fmt: skip
        finally:
            busy.kill()
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = runs_of(tmp_path / "s")
    result = read_json(run / RESULT)
    assert schema_errors("result", result) == []
    (host,) = result["hosts"]  # two ranks of one machine: watched once
    load = host["load"]
    assert load["cores"] == len(os.sched_getaffinity(0))
    assert load["foreign_cores"] > 0.1  # a third of a core or more where three processes share two
    assert load["worst_cores"] >= load["foreign_cores"]
    assert "other programs kept" in done.stdout
    rows = list(read_jsonl(run / RESOURCES))
    assert any(row.get("foreign_cores", 0) > 0.1 for row in rows)
    assert all(schema_errors("resources", row) == [] for row in rows)
    assert (host["gpu_j"], host["cpu_j"]) == (None, None) or host["cpu_j"] > 0
