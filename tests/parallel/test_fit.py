"""`harness fit` with real engines under their launchers and a tiny limit of memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import records
from harness.check import schema_errors

pytestmark = [pytest.mark.parallel, pytest.mark.slow]


def search(results: Path, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "harness", "fit", "--device", "cpu", "--memory-gib", "0.25", "--precision", "fp32"]
    argv += ["--vocab", "512", "--length", "32", "--resolution", "1", "--workers", "2", "--results", str(results)]
    argv += ["--backends", "ddp,horovod", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False, env=environment)


def test_finds_the_largest_and_goes_on_without_trying_again(tmp_path: Path) -> None:
    told = search(tmp_path)
    assert told.returncode == 0, told.stderr
    record = records.read_json(tmp_path / "fit" / "fit.json")
    assert schema_errors("fit", record) == []
    assert record["finished"]
    for cell in record["cells"]:
        assert cell["status"] == "found"
        assert {one["status"] for one in cell["tries"]} == {"ok", "oom"}
        # The limit is real: 16 bytes a trained parameter, and Horovod's fusion buffer (128 MiB, mapped whole).
        fusion = 128 * 2**20 if cell["setting"] == "horovod" else 0
        assert 16 * cell["largest"]["parameters"] < 0.25 * 2**30 < 1.5 * 16 * cell["too_large"] + fusion
    again = search(tmp_path)
    assert again.returncode == 0, again.stderr
    assert records.read_json(tmp_path / "fit" / "fit.json")["cells"] == record["cells"]
