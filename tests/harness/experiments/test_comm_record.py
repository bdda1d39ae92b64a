"""The record of collectives: its tables, its sentence, and what may be kept beside a new measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.common.formatting import DASH
from harness.experiments.collectives import record as comm_record
from harness.job.declaration import JobError
from harness.publish.experiment_headlines import headline_of
from harness.records.record_files import read_json
from mpi import hostfile

TWO = hostfile.local(2)


def row(size: int, seconds: float, *, correct: bool = True) -> dict[str, Any]:
    return {
        "operation": "all_reduce", "bytes": size, "ranks": 2, "seconds": seconds, "seconds_median": seconds,
        "seconds_q1": 0.9 * seconds, "seconds_q3": 1.1 * seconds, "repeats": 5, "algbw": size / seconds,
        "busbw": size / seconds, "correct": correct,
    }  # fmt: skip


def library(via: str, *rows: dict[str, Any], device: str = "cpu", reason: str = "") -> dict[str, Any]:
    return {"via": via, "reason": reason, "rows": list(rows), "transport": {"library": f"{via} 1.0", "device": device}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    measured = [
        library("gloo", row(1024, 1e-4), row(64 << 20, 0.05)),
        library("horovod", row(1024, 2e-3, correct=False)),
    ]
    comm_record.write(comm_record.made(measured, TWO, 0.0), tmp_path / "comm")
    return tmp_path / "comm"


def test_table_has_a_column_a_library_and_shouts_at_wrong_results(folder: Path) -> None:
    text = (folder / "comm.md").read_text()
    assert "| 1 KiB | 100 (90 to 110) | 2,000 (1,800 to 2,200) WRONG | 0.0819 | 0.0041" in text
    assert f"| 64 MiB | 50,000 (45,000 to 55,000) | {DASH} | 10.7 | {DASH} |" in text
    assert (folder / "comm.png").stat().st_size > 1000


def test_sentence_is_about_the_smallest_size_and_a_full_bucket(folder: Path) -> None:
    headline = headline_of(folder)
    assert headline is not None
    assert headline.sentence.startswith(
        "An all-reduce on 2 workers of 1 KiB: gloo 0.100, horovod 2.00 ms; of 64 MiB: gloo 50.0 ms. ("
    )
    assert "; torch " in headline.sentence


def test_record_says_where_it_was_measured(folder: Path) -> None:
    assert read_json(folder / "comm.json")["environment"]["versions"]["torch"]


def test_other_libraries_are_kept_and_the_same_one_is_not(folder: Path) -> None:
    (kept,) = comm_record.others(folder, ["horovod", "deepspeed"], TWO, "cpu")
    assert kept["via"] == "gloo"
    assert comm_record.others(folder / "new", ["gloo"], TWO, "cpu") == []


@pytest.mark.parametrize(("hosts", "device"), [(hostfile.local(4), "cpu"), (TWO, "cuda")])
def test_figures_of_other_workers_or_another_device_are_not_mixed(folder: Path, hosts: Any, device: str) -> None:
    with pytest.raises(JobError, match="of other workers or of another device"):
        comm_record.others(folder, ["deepspeed"], hosts, device)


def test_figures_of_other_hardware_are_not_mixed_and_the_links_rate_stays(folder: Path) -> None:
    record = json.loads((folder / "comm.json").read_text())
    record["environment"]["gpus"] = {"devices": [{"name": "NVIDIA H100"}]}
    record["link_bytes_per_s"] = 125e6
    (folder / "comm.json").write_text(json.dumps(record))
    with pytest.raises(JobError, match="was measured on NVIDIA H100"):
        comm_record.others(folder, ["deepspeed"], TWO, "cpu")
    assert comm_record.rate_of(folder) == 125e6


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    comm_record.write(comm_record.made([library("nccl", reason="no GPU")], TWO, 0.0), tmp_path)
    assert "no GPU" in (tmp_path / "comm.md").read_text()
    assert headline_of(tmp_path).sentence.startswith("Nothing was measured: the record says why.")
