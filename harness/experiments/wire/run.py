"""Bytes on the wire a step, by engine and ZeRO stage, against the ring's 2(n-1)/n x bytes.

Three figures a cell: what theory asks for, what the engine hands to its collectives (counted at its hooks, by ring
theory), and what each node really sent (its network counters, headers included). Where they part, the cause is named:
by what the hooks counted, and by the source of the engine or the transport that does it. Without a hostfile the cells
run on virtual nodes made for it; with one, on its hosts, one worker each.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.checks.traffic import expected_bytes
from harness.common.formatting import trained
from harness.common.text_table import Table
from harness.experiments.noted_table import numbered, page, print_page
from harness.experiments.trainings.cells import Cell
from harness.experiments.trainings.launch import train_cells
from harness.job.declaration import Job
from harness.records.record_files import csv_of, write_json, write_text

ENGINES = "ddp,fsdp2,horovod,deepspeed:0,deepspeed:1,deepspeed:2,deepspeed:3"
MODULE = "harness.experiments.wire.worker"
NEAR = 0.03  # figures this close are called the same
HEADERS = ("engine", "workers", "accum.", "theory MB", "handed over MB", "sent MB", "sent / theory", "idle kB/s", "why")


def measure(base: Job, cells: Sequence[Cell], hosts: Sequence[Any], say: Any = None) -> list[dict[str, Any]]:
    """A row for each cell, trained on the first hosts, one worker each."""
    with tempfile.TemporaryDirectory(prefix="harness-wire-") as temporary:
        out = Path(temporary)
        failures = train_cells(base, cells, out, say=say, module=MODULE, hosts=hosts)
        rows = []
        for cell in cells:
            file = out / f"{cell.name}.json"
            told = json.loads(file.read_text()) if file.exists() else {"failed": failures.get(cell, "no result")}
            rows.append(row_of(cell, told))
        return rows


def row_of(cell: Cell, told: Mapping[str, Any]) -> dict[str, Any]:
    """What the worker told of a cell, beside theory. Bytes are one rank's, a step; sent_bytes: the mean over the nodes
    (sent_most_bytes: of the node that sent most). cause: why they part, "" where they do not."""
    row: dict[str, Any] = {
        "engine": cell.engine,
        "backend": cell.backend,
        "zero_stage": cell.zero_stage,
        "workers": cell.workers,
        "accumulation": cell.accumulation,
        "precision": cell.precision,
        "precision_mode": cell.precision_mode,
    }
    for status in ("failed", "refused"):
        if status in told:
            return {**row, "status": status, "cause": told[status]}
    ranks, engine = told["ranks"], told["engine"]
    size = {"fp32": 4, "bf16": 2, "fp16": 2}
    elements = told["trainable_elements"]
    gathered = told["gathered_bytes"]
    if "gather_dtype" in engine:  # FSDP2 keeps shards in fp32 and gathers what it computes with
        gathered = gathered * size[engine["gather_dtype"]] // 4
    expected = expected_bytes(
        engine,
        world_size=cell.workers,
        gradient_bytes=elements * size[engine.get("wire_dtype") or "fp32"],
        weight_bytes=told["trainable_bytes"],
        gathered_bytes=gathered,
    )
    sent = [rank["sent_bytes"] for rank in ranks]
    row |= {
        "status": "ok",
        "trainable_bytes": told["trainable_bytes"],
        "gathered_bytes": gathered,
        "theory_bytes": expected,
        "handed_bytes": told["exchange"]["wire_bytes"],
        "payload_bytes": told["exchange"]["payload_bytes"],
        "calls": told["exchange"]["calls"],
        "sent_bytes": sum(sent) / len(sent),
        "sent_most_bytes": max(sent),
        "idle_bytes_per_s": sum(rank["idle_bytes_per_s"] for rank in ranks) / len(ranks),
        "step_s": max(rank["step_s"] for rank in ranks),
        "communication": engine.get("communication", ""),
    }
    return {**row, "cause": "; ".join(causes(row, engine))}


def causes(row: Mapping[str, Any], engine: Mapping[str, Any]) -> list[str]:
    """Why a row's figures part: first the engine (hooks against theory), then the transport (counters against hooks).
    A known cause is named only where it accounts for the figure; what none accounts for is said to be open."""
    found: list[str] = []
    share = (row["workers"] - 1) / row["workers"]
    payload = row["payload_bytes"]
    handed, expected, sent = row["handed_bytes"], row["theory_bytes"], row["sent_bytes"]
    if not _near(handed, expected):
        text = _engine_cause(row, engine, share)
        found.append(text or f"the engine hands over {handed / expected:.2f} x theory: cause open")
    scattered = payload.get("reduce_scatter", 0)
    as_all_reduce = handed + share * scattered
    if scattered and row["communication"] == "gloo" and _near(sent, as_all_reduce, 2 * NEAR):
        found.append(
            "gloo has no reduce-scatter: torch sends an all-reduce, twice the bytes, and keeps one part "
            "(ProcessGroupGloo::reduce_scatter_tensor_coalesced, torch/csrc/distributed/c10d/ProcessGroupGloo.cpp)"
        )
        handed = as_all_reduce
    extra = sent - handed
    control = row["idle_bytes_per_s"] * row["step_s"]
    if not _near(sent, handed):
        if abs(extra - control) <= max(2 * NEAR * handed, 0.5 * control):
            found.append(
                f"{control / 1e6:.2f} MB a step are messages that flow without any training (idle rate x step time: "
                "negotiation by the background thread every cycle)"
            )
        elif 0 < extra <= 0.08 * handed:
            found.append(f"{extra / handed:.1%} of TCP/IP headers and acknowledgements")
        else:
            found.append(f"the node sends {sent / handed:.2f} x what is handed over: cause open")
    return found


def _engine_cause(row: Mapping[str, Any], engine: Mapping[str, Any], share: float) -> str:
    """Why an engine hands over other than theory, where the counted collectives show it; "" where they do not."""
    payload, stage = row["payload_bytes"], row["zero_stage"]
    micro = int(engine.get("accumulation", 1))
    reduced = payload.get("all_reduce", 0)
    passes = micro if stage == 2 else 1
    if row["backend"] == "deepspeed" and stage in (1, 2) and _near(reduced, passes * row["trainable_bytes"]):
        return (
            "all-reduces whole buckets where a reduce-scatter would do: use_multi_rank_bucket_allreduce is on by "
            "default (deepspeed/runtime/zero/stage_1_and_2.py)"
        )
    gathered = payload.get("all_gather", 0)
    if row["backend"] == "deepspeed" and stage == 3 and gathered:
        times = gathered / row["gathered_bytes"]
        kept = row["trainable_bytes"] - row["gathered_bytes"]
        text = f"gathers its large weights {times:.1f} times a step where theory says {2 * micro}"
        if times < 2 * micro:
            text += (
                ": what fits into stage3_max_reuse_distance and stage3_prefetch_bucket_size stays gathered from "
                "forward to backward (__params_to_release, deepspeed/runtime/zero/partitioned_param_coordinator.py; "
                "with both at 0 it gathers twice)"
            )
        if kept > 0:
            text += f"; {kept / 1e6:.2f} MB of small ones are never sharded (stage3_param_persistence_threshold)"
        return text
    if row["backend"] == "fsdp2" and gathered:
        times = gathered / row["gathered_bytes"]
        return (
            f"gathers its weights {times:.1f} times a step: the root group stays whole from forward to backward "
            "(fully_shard's reshard_after_forward, torch/distributed/fsdp)"
        )
    return ""


def _near(a: float, b: float, tolerance: float = NEAR) -> bool:
    return abs(a - b) <= tolerance * max(abs(b), 1.0)


def write(rows: Sequence[Mapping[str, Any]], base: Job, folder: Path) -> None:
    """Writes wire.json, wire.csv and wire.md into `folder`."""
    from harness.records.step_metrics import environment

    folder.mkdir(parents=True, exist_ok=True)
    record = {"job": base.to_dict(), "environment": environment(), "rows": [dict(row) for row in rows]}
    write_json(folder / "wire.json", {**record, "headline": headline(rows)})
    write_text(folder / "wire.csv", csv_of(rows))
    write_text(folder / "wire.md", markdown(rows, base))


def markdown(rows: Sequence[Mapping[str, Any]], base: Job) -> str:
    """The table with the words that it needs to be read; causes are numbered below it."""
    causes = numbered(row["cause"] for row in rows)
    size = next((row["trainable_bytes"] for row in rows if row["status"] == "ok"), 0)
    heading = [
        "# Bytes on the wire",
        "",
        headline(rows),
        f"One worker a node, {size / 1e6:.2f} MB of trainable fp32 weights ({trained(base.to_dict())}).",
        "",
        "- theory: bytes one rank must send a step by ring algorithms, 2(n-1)/n x bytes for an all-reduce;",
        "- handed over: what the engine gave to its collectives in one step, counted at its hooks, by the same rule;",
        "- sent: what the network counters of the nodes say, headers included, mean over nodes and 10 steps;",
        "- idle: what a node sends while nothing is trained.",
    ]
    return page(heading, _table(rows, causes), causes)


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: how near the wire is to what the engines hand over."""
    good = [row for row in rows if row["status"] == "ok"]
    if not good:
        return "No cell ran."
    as_theory = sum(_near(row["sent_bytes"], row["theory_bytes"], 2 * NEAR) for row in good)
    open_ = sum("cause open" in row["cause"] for row in good)
    return (
        f"{as_theory} of {len(good)} cells send what ring theory says within {2 * NEAR:.0%}; "
        f"the others have a named cause{f' but for {open_}' if open_ else ''}."
    )


def _table(rows: Sequence[Mapping[str, Any]], causes: Mapping[str, int], title: str = "") -> Table:
    return Table(id="wire", title=title, columns=HEADERS, rows=[_cells(row, causes) for row in rows])


def _cells(row: Mapping[str, Any], notes: Mapping[str, int]) -> tuple[str, ...]:
    mode = "" if row["precision"] == "fp32" else f" {row['precision']}"
    mode += " native" if row["precision_mode"] == "native" else ""
    head = (row["engine"] + mode, str(row["workers"]), str(row["accumulation"]))
    note = f"[{notes[row['cause']]}]" if row["cause"] else ""
    if row["status"] != "ok":
        return (*head, "-", "-", "-", "-", "-", f"{row['status']} {note}")
    mega = lambda value: f"{value / 1e6:.2f}"  # noqa: E731
    ratio = f"{row['sent_bytes'] / row['theory_bytes']:.2f}" if row["theory_bytes"] else "-"
    figures = (mega(row["theory_bytes"]), mega(row["handed_bytes"]), mega(row["sent_bytes"]), ratio)
    return (*head, *figures, f"{row['idle_bytes_per_s'] / 1e3:.1f}", note)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table and its causes."""
    causes = numbered(row["cause"] for row in rows)
    print_page(_table(rows, causes, "Bytes on the wire: one rank, one step"), causes, last=headline(rows))
