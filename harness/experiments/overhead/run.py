"""What the harness adds to a step that its user could have written by hand."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.experiments.trainings.cells import Cell
from harness.job.declaration import Job, JobError

Say = Callable[[str], None]
ENGINES = ("single", "ddp", "horovod", "deepspeed")  # with a loop in harness/experiments/overhead/handwritten_loops.py


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Step times of both loops in seconds (medians over blocks) and their ratio with its bootstrap 95 % interval."""

    cell: Cell
    harness_s: float
    handwritten_s: float
    ratio: float
    low: float
    high: float
    blocks: int


def ratio_of(cell: Cell, harness: list[float], handwritten: list[float], seed: int = 0) -> Overhead:
    """Blocks are paired in time: the ratio is the median of the pairs' ratios, its interval a bootstrap over pairs."""
    ratios = np.array(harness) / np.array(handwritten)
    draws = np.random.default_rng(seed).choice(ratios, size=(2000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return Overhead(
        cell=cell,
        harness_s=float(np.median(harness)),
        handwritten_s=float(np.median(handwritten)),
        ratio=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        blocks=len(ratios),
    )


def measure(base: Job, cells: list[Cell], *, say: Say | None = None) -> list[Overhead]:
    """Runs the cells under their launchers. Raises JobError where one fails."""
    from harness.experiments.trainings.launch import train_cells

    with tempfile.TemporaryDirectory(prefix="harness-overhead-") as temporary:
        out = Path(temporary)
        failures = train_cells(base, cells, out, say=say, module="harness.experiments.overhead.worker")
        for cell, reason in failures.items():
            raise JobError(f"{cell.engine} on {cell.workers} workers failed: {reason}")
        found = []
        for cell in cells:
            told = json.loads((out / f"{cell.name}.json").read_text())
            found.append(ratio_of(cell, told["harness"], told["handwritten"]))
    return found


def row_of(item: Overhead) -> dict[str, Any]:
    """A flat row."""
    return {
        "engine": item.cell.engine,
        "workers": item.cell.workers,
        "precision": item.cell.precision,
        "harness_ms": item.harness_s * 1e3,
        "handwritten_ms": item.handwritten_s * 1e3,
        "ratio": item.ratio,
        "ratio_low": item.low,
        "ratio_high": item.high,
        "blocks": item.blocks,
    }


def print_table(found: list[Overhead]) -> None:
    """The figures as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="The harness's step / a hand-written loop (median of paired blocks, 95 % interval)")
    for header in ("engine", "workers", "harness ms", "by hand ms", "ratio", "95 %"):
        table.add_column(header, justify="left" if header == "engine" else "right")
    for item in found:
        table.add_row(
            item.cell.engine,
            str(item.cell.workers),
            f"{item.harness_s * 1e3:.2f}",
            f"{item.handwritten_s * 1e3:.2f}",
            f"{item.ratio:.4f}",
            f"{item.low:.3f}-{item.high:.3f}",
        )
    Console().print(table)
