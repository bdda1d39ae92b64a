"""The parity table on the screen and in results/STUDY/: parity.json, parity.csv and parity.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.base import PRECISIONS
from harness.common.formatting import plural, trained
from harness.common.text_table import Table
from harness.experiments.noted_table import numbered, page, print_page
from harness.experiments.parity.judge import Verdict, bound, row_of
from harness.experiments.trainings.cells import Cell
from harness.job.declaration import Job
from harness.records.record_files import csv_of, finite, write_json, write_text

HEADERS = (
    "engine",
    "workers",
    "accum.",
    "clip",
    "precision",
    "max rel. diff",
    "of update",
    "same split",
    "loss diff",
    "bound",
    "verdict",
)


def _cells(verdict: Verdict, note: int | None) -> tuple[str, ...]:
    cell = verdict.cell
    native = cell.precision_mode == "native"
    number = lambda value: "-" if value is None else f"{value:.1e}"  # noqa: E731
    word = verdict.status if not native or verdict.status in ("failed", "refused") else "native"
    return (
        cell.engine,
        str(cell.workers),
        str(cell.accumulation),
        "on" if cell.clip else "off",
        cell.precision + (" native" if native else ""),
        number(verdict.difference),
        number(verdict.of_update),
        number(verdict.same_split),
        number(verdict.loss_difference),
        number(verdict.bound) if not native else "-",
        word + (f" [{note}]" if note else ""),
    )


def _table(verdicts: Sequence[Verdict], causes: Mapping[str, int], title: str = "") -> Table:
    rows = [_cells(verdict, causes.get(verdict.cause)) for verdict in verdicts]
    strong = [place for place, verdict in enumerate(verdicts) if not verdict.explained]
    return Table(id="parity", title=title, columns=HEADERS, rows=rows, strong=strong)


def print_table(verdicts: Sequence[Verdict]) -> None:
    """The table and its causes, on the screen."""
    causes = numbered(verdict.cause for verdict in verdicts)
    print_page(_table(verdicts, causes, "Parity with a single process"), causes)


def write_study(verdicts: Sequence[Verdict], base: Job, folder: Path) -> None:
    """Writes the table in three forms; figures and text only, no weights."""
    from harness.records.step_metrics import environment

    folder.mkdir(parents=True, exist_ok=True)
    cells = [row_of(verdict) for verdict in verdicts]
    record = {"job": base.to_dict(), "environment": environment(), "cells": cells, "headline": headline(cells)}
    write_json(folder / "parity.json", finite(record))
    write_csv(verdicts, folder / "parity.csv")
    write_text(folder / "parity.md", markdown(verdicts, base))


def headline(cells: Sequence[Mapping[str, Any]]) -> str:
    """How many of the judged cells equal the single process, and of how many others the cause is shown."""
    judged = [cell for cell in cells if cell["precision_mode"] == "matched" and cell["status"] in ("equal", "differs")]
    equal = sum(cell["status"] == "equal" for cell in judged)
    odd = [cell for cell in judged if cell["status"] == "differs"]
    known = sum(bool(cell.get("explained")) for cell in odd)
    text = f"{equal} of {len(judged)} judged cells equal the single process"
    text += f"; of the other {len(odd)}, {known} have their cause shown" if odd else ""
    others = len(cells) - len(judged)
    return text + (f"; {plural(others, 'cell')} of native precision or refused" if others else "") + "."


def markdown(verdicts: Sequence[Verdict], base: Job) -> str:
    """The table with the words that it needs to be read."""
    judged = [v for v in verdicts if v.cell.precision_mode == "matched" and v.status in ("equal", "differs")]
    equal = sum(v.status == "equal" for v in judged)
    causes = numbered(verdict.cause for verdict in verdicts)
    limits = {precision: bound(Cell(backend="ddp", precision=precision), base.steps)[1] for precision in PRECISIONS}
    setting = f"{trained(base.to_dict())}, {base.steps} steps of {base.global_batch}, seed {base.seed}"
    heading = [
        "# Parity",
        "",
        f"{setting}: {equal} of {len(judged)} judged cells equal the single process.",
        "",
        "- max rel. diff: largest ||a - b|| / ||b|| of any trainable tensor; elements whose gradient is zero but for",
        "  rounding are left out where a note says so;",
        "- of update: ||a - b|| / ||b - start|| over all tensors together;",
        "- same split: max rel. diff against a single process that splits its batches into as many parts;",
        "- loss diff: largest relative difference of a step's loss.",
        "",
        f"Bounds: fp32 {limits['fp32']:.0e} on max rel. diff; bf16 {limits['bf16']:.1e} and fp16 {limits['fp16']:.1e}",
        "on the update (unit roundoff x sqrt(steps)). Native precision is reported, not judged.",
    ]
    return page(heading, _table(verdicts, causes), causes)


def write_csv(verdicts: Sequence[Verdict], path: Path) -> None:
    """One row a cell, atomically."""
    write_text(path, csv_of([row_of(verdict) for verdict in verdicts]))
