"""`harness experiment overhead`: what it makes of the blocks, refuses and keeps. The real thing is in
tests/parallel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.commands.experiment.overhead import overhead
from harness.experiments.overhead.record import headline
from harness.experiments.overhead.run import Overhead, ratio_of, row_of
from harness.experiments.trainings.cells import Cell
from harness.job.declaration import JobError
from harness.records.record_files import read_json

DDP = Cell(backend="ddp", zero_stage=None, workers=2, precision="fp32")


def run(*argv: str) -> None:
    overhead.main(list(argv), standalone_mode=False)


def test_ratio_is_of_pairs_so_that_drift_cancels() -> None:
    by_hand = [1.0, 2.0, 3.0, 4.0]  # a machine that becomes slower
    found = ratio_of(DDP, [1.01 * value for value in by_hand], by_hand)
    assert found.ratio == pytest.approx(1.01)
    assert found.low == pytest.approx(1.01)
    assert found.high == pytest.approx(1.01)
    assert found.blocks == 4


def test_engine_without_a_hand_written_loop_is_refused() -> None:
    with pytest.raises(JobError, match="no hand-written loop for engine 'fsdp2': choose of single, ddp"):
        run("--backends", "fsdp2", "--study", "")


def test_what_was_measured_before_a_failure_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(base: Any, cells: list[Cell], *, say: Any) -> list[Overhead]:
        if cells[0].backend == "horovod":
            raise JobError("horovod on 2 workers failed: no network")
        return [ratio_of(cells[0], [1.0, 1.0], [1.0, 1.0])]

    monkeypatch.setattr("harness.commands.experiment.overhead.measure", measure)
    with pytest.raises(JobError, match="no network"):
        run("--backends", "ddp,horovod", "--workers", "2", "--results", str(tmp_path))
    (row,) = read_json(tmp_path / "overhead" / "overhead.json")["rows"]
    assert row["engine"] == "ddp"
    assert (
        "| ddp | 2 | 1000.00 | 1000.00 | 1.000 | 1.000 to 1.000 | 2 |"
        in (tmp_path / "overhead" / "overhead.md").read_text()
    )


def test_headline_tells_what_is_slower_for_certain() -> None:
    drifting = row_of(ratio_of(DDP, [1.1, 0.9, 1.2], [1.0, 1.0, 1.0]))
    slower = row_of(ratio_of(DDP, [1.05, 1.04, 1.05], [1.0, 1.0, 1.0]))
    assert headline([drifting]) == (
        "1.100 to 1.100 times a hand-written loop over 1 cell; none is slower by more than its 95 % interval."
    )
    assert headline([drifting, slower]).endswith(
        "slower for certain: ddp on 2 workers (1.050, 95 % CI 1.040 to 1.050)."
    )
    assert headline([]) == "No cell was measured."
