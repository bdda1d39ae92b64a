"""What a rank wrote before there was a log reaches the terminal, however the rank ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.protocol.early_output import last_lines

START = """
import os, signal
from harness.protocol.console import Output
output = Output(rank=1, redirect=True)
print("what MPI said", flush=True)
os.write(2, b"terminate called\\n")
"""


def end(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    env = {"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, timeout=60, env=env, check=False
    )


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), signal.SIGKILL)", "os.abort()", "os._exit(1)"])
def test_a_rank_that_dies_in_native_code_is_heard(death: str, tmp_path: Path) -> None:
    done = end(death, tmp_path)
    assert done.stderr.splitlines() == [
        "error: rank 1 ended without a message (killed, or by native code). The last that it wrote:",
        "what MPI said",
        "terminate called",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "calm", ["output.close()", "output.attach(__import__('pathlib').Path(os.environ['TMPDIR'], 'log'))"]
)
def test_a_rank_that_has_spoken_or_has_a_log_is_not_watched(calm: str, tmp_path: Path) -> None:
    done = end(f"{calm}\nos._exit(1)", tmp_path)
    assert done.stderr == ""
    logs = list(tmp_path.iterdir())
    assert [log.read_text() for log in logs] == ([] if "close" in calm else ["what MPI said\nterminate called\n"])


def test_lines_for_a_supervisor_are_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "early"
    file.write_text("a\n\nHARNESS-FAILURE rank=1 user=0 b\n" + "c\n" * 20)
    assert last_lines(file) == ["c"] * 12
    assert last_lines(tmp_path / "none") == []
