"""Engines x nodes x link rates on virtual nodes, with computing emulated by a stated wait.

The nodes share this machine's cores, so real computing would slow down with every node; a wait does not. What is
measured is the exchange: step time, its share, bytes on each node's wire, against ring theory. Everything is put into
``results/STUDY/scaling.json``, one row a run, which `harness experiment predict` fits.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness.common.paths import PROJECT
from harness.job.declaration import JobError
from harness.job.engines import ZERO_STAGE, parse_backend
from harness.records.locks import check_free
from harness.records.record_files import RESULT, STEPS, read_json, read_jsonl, write_json
from mpi.names import remove_folder
from mpi.nodes import cluster
from mpi.nodes.link import bytes_per_second
from mpi.nodes.processes import end_entered
from mpi.ring import sent_share

FILE = "scaling.json"
LIMIT_S = 600.0  # of one job
END_S = 20.0  # in which a job that is told to end writes why, and ends its workers on all nodes
FIRST = 4  # steps before the timed ones
ENGINES = {"ddp": [], "horovod": [], **{f"deepspeed-z{stage}": ["--zero-stage", str(stage)] for stage in range(3)}}


def engine_name(text: str) -> str:
    """An engine as the record names it: ``deepspeed-z1`` of ``deepspeed:1``. Raises JobError for what is not measured
    on virtual nodes."""
    found = parse_backend(text)
    settings = {"zero_stage": ZERO_STAGE, **found["engine"]} if found["backend"] == "deepspeed" else found["engine"]
    stage = settings.pop("zero_stage", None)
    name = found["backend"] + ("" if stage is None else f"-z{stage}")
    if settings or name not in ENGINES:
        raise JobError(f"engine '{text}': virtual nodes are measured with ddp, horovod and deepspeed:0 to deepspeed:2")
    return name


def ring_bytes(parameter_bytes: float, ranks: int) -> float:
    """What each rank must send in one step: the gradients' ring all-reduce (`mpi.ring`).

    ZeRO 1 and 2 send as much in a reduce-scatter of gradients and an all-gather of weights (Rajbhandari et al., 2020).
    """
    return sent_share("all_reduce", ranks) * parameter_bytes


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What is run: every combination of its lists, `repeats` times. rates: of the links, as ``1gbit`` or ``unlimited``.
    widths: of the tiny preset's projection."""

    engines: Sequence[str]
    nodes: Sequence[int]
    rates: Sequence[str]
    scalings: Sequence[str]
    widths: Sequence[int]
    repeats: int = 1


def run_matrix(
    matrix: Matrix, folder: Path, *, emulate_ms: float, steps: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Runs what `folder`/scaling.json does not hold yet, on virtual nodes that live as long; writes it after each run.

    Args:
        emulate_ms: emulated computing of a step, ms a worker (strong scaling: shared by the workers).
        steps: optimizer steps of a run, the first `FIRST` of them not timed.
        say: gets a line for each run.

    Returns:
        The record as it was written: ``rows`` and ``cores``.
    """
    from harness.experiments.virtual_scaling.report import headline

    rows = load_rows(folder) if (folder / FILE).exists() else []
    set_name = f"scaling-{os.getpid()}"
    made = cluster.up(set_name, max(matrix.nodes), cores_per_node=1, tied=True)
    record = {"rows": rows, "cores": os.cpu_count()}
    cells = list(itertools.product(matrix.nodes, matrix.scalings, matrix.engines, matrix.widths))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for repeat, rate in itertools.product(range(matrix.repeats), matrix.rates):
            made = made.set_rate("" if rate == "unlimited" else rate)
            for count, kind, name, width in cells:
                cell = {"engine": name, "nodes": count, "rate": rate, "scaling": kind, "repeat": repeat}
                cell["width"] = width
                if any(all(row[key] == value for key, value in cell.items()) for row in rows):
                    continue
                wait = emulate_ms if kind == "weak" else emulate_ms / count
                row = _run(made, cell, wait, steps, folder)
                say(_line(row))
                rows.append(row)
                write_json(folder / FILE, {**record, "headline": headline(record)})
    finally:
        cluster.down(set_name)
    return record


def load_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a study. Raises RecordError."""
    return list(read_json(folder / FILE)["rows"])


def _run(
    made: cluster.Cluster, cell: dict[str, Any], wait_ms: float, steps: int, folder: Path, limit_s: float = LIMIT_S
) -> dict[str, Any]:
    """One job on the first nodes of the set, of which nothing is left in the nodes.

    A job that fails, or is ended after `limit_s` seconds, gives a row with its reason and no times."""
    run = f"{cell['engine']}-n{cell['nodes']}-{cell['rate']}-{cell['scaling']}-{cell['width']}-r{cell['repeat']}"
    check_free(folder / run, f"run {folder.name}/{run}")
    remove_folder(folder, run, kind="run")  # of a study that was interrupted here: it has no row
    with tempfile.NamedTemporaryFile("w", suffix=".hostfile") as hosts:
        hosts.write(made.hostfile())
        hosts.flush()
        argv = [sys.executable, "-m", "harness", "run", "--backend", cell["engine"].partition("-")[0]]
        argv += [*ENGINES[cell["engine"]], "--nodes", str(cell["nodes"]), "--hostfile", hosts.name, "--slots", "1"]
        argv += ["--preset", "tiny", "--set", f"model.joint={cell['width']}", "--emulate-compute", f"{wait_ms:g}"]
        argv += ["--steps", str(steps), "--timing-warmup", str(FIRST), "--log-every", "1", "--eval-samples", "-1"]
        argv += ["--global-batch", str(4 * cell["nodes"]), "--scaling", cell["scaling"], "--timeout", "60"]
        argv += ["--study", folder.name, "--run-name", run, "--results", str(folder.parent)]
        process = subprocess.Popen(
            made.argv("a", argv, cwd=PROJECT),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            sent = _follow(process, made, folder / run, cell["nodes"], limit_s)
            late = process.poll() is None
        finally:
            # Not nsenter alone, which hands no signal on: a job that lives on would share the next one's links.
            end_entered(process, grace=END_S)
            made.end_processes()
    result = read_json(folder / run / RESULT) if (folder / run / RESULT).exists() else {}
    row = {**cell, "run": run, "wait_s": wait_ms * 1e-3, "link_bytes_per_s": rate_of(cell["rate"])}
    if late:
        return {**row, "failed": f"not finished after {limit_s:g} s"}
    if result.get("status") != "ok":
        return {**row, "failed": result.get("reason", "no record")}
    times = [item["step_s"] for item in read_jsonl(folder / run / STEPS)][FIRST:]
    parameters = 4.0 * result["model"]["trainable_parameters"]
    return {
        **row,
        "step_s": times,
        "parameter_bytes": parameters,
        "sent_bytes_per_step": sent,
        "ring_bytes": ring_bytes(parameters, cell["nodes"]),
    }


def _follow(
    process: subprocess.Popen[bytes], made: cluster.Cluster, run: Path, count: int, limit_s: float
) -> float | None:
    """Bytes a node sent in one step: the most of any node, between the fourth and the last step seen.

    Returns when the job has ended, or after `limit_s` seconds."""
    first: tuple[int, dict[str, tuple[int, int]]] | None = None
    last = first
    deadline = time.monotonic() + limit_s
    seen = -1
    while process.poll() is None and time.monotonic() < deadline:
        path = run / STEPS
        steps = path.read_text().count("\n") if path.exists() else 0
        if steps != seen:
            seen, state = steps, (steps, made.wire_bytes())
            if steps >= FIRST:
                first = first or state
                last = state
        time.sleep(0.01)
    if first is None or last is None or last[0] <= first[0]:
        return None
    sent = [last[1][node.name][1] - first[1][node.name][1] for node in made.nodes[:count]]
    return max(sent) / (last[0] - first[0])


def rate_of(text: str) -> float | None:
    """``1gbit`` in bytes a second; None for ``unlimited``."""
    return None if text == "unlimited" else bytes_per_second(text)


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['run']}: failed: {row['failed']}"
    middle = median(row["step_s"])
    share = 1 - row["wait_s"] / middle
    wire = (row["sent_bytes_per_step"] or 0.0) / row["ring_bytes"] if row["ring_bytes"] else 0.0
    text = f"{row['run']}: {middle * 1e3:.0f} ms a step, {share:.0%} of it not computing"
    return f"{text}, wire {wire:.2f} x ring theory" if wire else text
