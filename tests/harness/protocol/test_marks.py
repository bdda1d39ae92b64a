"""The line by which a failing rank says why, found in the log of each launcher."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.protocol.failure_marks import LogPart, first_mark

TAGGED = {
    "plain": "HARNESS-FAILURE rank=1 user=0 ValueError: no tile\n",
    "horovodrun": "[1]<stderr>:HARNESS-FAILURE rank=1 user=0 ValueError: no tile\n",
    # Open MPI: a tag before every write, and Python writes the end of the line apart.
    "mpirun": "[1,1]<stderr>:HARNESS-FAILURE rank=1 user=0 ValueError: no tile[1,1]<stderr>:\n",
    "mpirun, in pieces": "[1,1]<stderr>:HARNESS-FAILURE rank=1 user=0 Value[1,1]<stderr>:Error: no tile\n",
    "pdsh": "b: HARNESS-FAILURE rank=1 user=0 ValueError: no tile\n",
}


@pytest.mark.parametrize("launcher", TAGGED)
def test_the_reason_is_without_the_launchers_tags(launcher: str, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(f"something\n{TAGGED[launcher]}")
    assert first_mark(LogPart(tmp_path / "none.txt").lines()) is None
    assert first_mark(log.read_text().splitlines()) == (1, False, "ValueError: no tile")


def test_a_resumed_runs_reason_is_that_of_its_last_life(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("HARNESS-FAILURE rank=0 user=1 no space on the disk\n")
    part = LogPart(log)
    assert first_mark(part.lines()) is None
    with log.open("a") as file:
        file.write("HARNESS-FAILURE rank=1 user=0 RuntimeError: out of memory\n")
    assert first_mark(part.lines()) == (1, False, "RuntimeError: out of memory")
