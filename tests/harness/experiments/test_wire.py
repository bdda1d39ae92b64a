"""The wire's table: figures beside each other, and a cause only where it accounts for what was counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.experiments.trainings.cells import Cell
from harness.experiments.wire.run import headline, markdown, row_of, write
from harness.job.declaration import Job
from harness.publish.experiment_headlines import headline_of

SIZE = 6_400_000
JOB = Job(preset="tiny")


def told(sent: float, payload: dict[str, int], *, idle: float = 0.0, **engine: Any) -> dict[str, Any]:
    """What the worker writes for a cell of two nodes."""
    rank = {"sent_bytes": sent, "received_bytes": sent, "idle_bytes_per_s": idle, "step_s": 0.5, "hostname": "a"}
    shares = {"all_reduce": 1.0, "reduce_scatter": 0.5, "all_gather": 0.5}
    handed = sum(shares[kind] * size for kind, size in payload.items())
    return {
        "ranks": [rank, rank],
        "trainable_elements": SIZE // 4,
        "trainable_bytes": SIZE,
        "gathered_bytes": SIZE,
        "exchange": {"wire_bytes": handed, "payload_bytes": payload, "calls": dict.fromkeys(payload, 1)},
        "engine": {"engine": "ddp", "communication": "gloo", "wire_dtype": "fp32", "accumulation": 1, **engine},
    }


def test_what_agrees_has_no_cause() -> None:
    row = row_of(Cell(backend="ddp", workers=2), told(SIZE * 1.01, {"all_reduce": SIZE}))
    assert row["theory_bytes"] == row["handed_bytes"] == SIZE
    assert row["cause"] == ""


def test_buckets_that_are_all_reduced_whole_are_named() -> None:
    cell = Cell(backend="deepspeed", zero_stage=2, workers=2)
    payload = {"all_reduce": SIZE, "all_gather": SIZE}
    row = row_of(cell, told(1.5 * SIZE, payload, engine="deepspeed", zero_stage=2))
    assert row["handed_bytes"] == 1.5 * row["theory_bytes"]
    assert "use_multi_rank_bucket_allreduce" in row["cause"]
    row = row_of(cell, told(3 * SIZE, {"all_reduce": 3 * SIZE, "all_gather": SIZE}, engine="deepspeed", zero_stage=2))
    assert "3.50 x theory: cause open" in row["cause"], "three times as much has no known cause"


def test_gloos_missing_reduce_scatter_is_named_only_where_the_bytes_show_it() -> None:
    cell = Cell(backend="fsdp2", workers=2)
    payload = {"reduce_scatter": SIZE, "all_gather": 2 * SIZE}
    row = row_of(cell, told(2 * SIZE, payload, engine="fsdp2"))
    assert "gloo has no reduce-scatter" in row["cause"]
    row = row_of(cell, told(1.5 * SIZE, payload, engine="fsdp2"))
    assert row["cause"] == ""
    row = row_of(cell, told(1.5 * SIZE, payload, engine="fsdp2", communication="nccl"))
    assert row["cause"] == ""


def test_what_flows_without_training_is_told_from_the_exchange() -> None:
    cell = Cell(backend="horovod", workers=2)
    row = row_of(cell, told(1.5 * SIZE, {"all_reduce": SIZE}, idle=SIZE, engine="horovod"))
    assert "flow without any training" in row["cause"]
    row = row_of(cell, told(1.5 * SIZE, {"all_reduce": SIZE}, engine="horovod"))
    assert "1.50 x what is handed over: cause open" in row["cause"]


def test_native_half_precision_is_held_to_its_own_bytes() -> None:
    cell = Cell(backend="deepspeed", zero_stage=0, workers=2, precision="bf16", precision_mode="native")
    half = told(SIZE / 2, {"all_reduce": SIZE // 2}, engine="deepspeed", zero_stage=0, wire_dtype="bf16")
    row = row_of(cell, half | {"trainable_bytes": SIZE // 2, "gathered_bytes": SIZE // 2})
    assert row["theory_bytes"] == row["handed_bytes"] == SIZE / 2
    payload = {"reduce_scatter": SIZE, "all_gather": SIZE}
    shards = told(SIZE, payload, engine="fsdp2", gather_dtype="bf16", communication="nccl")
    row = row_of(Cell(backend="fsdp2", workers=2, precision="bf16", precision_mode="native"), shards)
    assert row["theory_bytes"] == row["handed_bytes"] == SIZE
    assert row["cause"] == ""


def test_failed_cells_are_filled_and_the_index_finds_the_table(tmp_path: Path) -> None:
    rows = [
        row_of(Cell(backend="ddp", workers=2), told(SIZE, {"all_reduce": SIZE})),
        row_of(Cell(backend="horovod", workers=2), {"failed": "rank 1 died"}),
    ]
    text = markdown(rows, JOB)
    assert "| horovod | 2 | 1 | - | - | - | - | - | failed [1] |" in text
    assert "- [1] rank 1 died" in text
    write(rows, JOB, tmp_path)
    found = headline_of(tmp_path)
    assert found is not None
    assert found.sentence.startswith(f"{headline(rows)} (")  # ... and where it was measured
    assert headline(rows).startswith("1 of 1 cells send what ring theory says")
