"""`harness overhead`: what the harness adds to a step that its user could have written by hand."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from harness.experiments.overhead import record
from harness.experiments.trainings.cells import Cell
from harness.job.declaration import Job, JobError
from harness.job.number_ranges import COUNT
from harness.job.options import apply_settings, time_limit_option
from harness.records.run_folder import study_folder

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


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--engines", default="single,ddp,horovod,deepspeed:0,deepspeed:2", show_default=True)
@click.option("--workers", default="1,2", show_default=True, help="Worker counts, comma-separated.")
@click.option("--preset", default="tiny", show_default=True)
@click.option("--data", default="textures", show_default=True)
@click.option("--steps", type=COUNT, default=200, show_default=True, help="Timed steps of each loop.")
@click.option("--global-batch", type=COUNT, default=16, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--study", default="overhead", show_default=True, help="Folder in results/ ('' = none).")
@click.option("--results", type=click.Path(), help="Results folder.")
@time_limit_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other job field.")
def overhead(**options: Any) -> None:
    """Time the harness's step against a hand-written loop on the same engine and model, interleaved in one run."""
    values: dict[str, Any] = {name: options[name] for name in ("preset", "data", "steps", "global_batch", "precision")}
    values |= {"eval_samples": -1, "schedule": "constant", "time_limit_s": options["time_limit_s"]}
    apply_settings(values, options["settings"])
    base = Job.from_dict(values)
    cells = []
    for engine in options["engines"].split(","):
        backend, _, stage = engine.partition(":")
        if backend not in ENGINES:
            raise JobError(f"no hand-written loop for engine '{backend}': choose of {', '.join(ENGINES)}")
        for count in (int(text) for text in options["workers"].split(",")):
            if backend == "single" and count > 1:
                continue
            zero = int(stage or 0) if backend == "deepspeed" else None
            cells.append(Cell(backend=backend, zero_stage=zero, workers=count, precision=options["precision"]))
    folder = study_folder(options["results"], options["study"]) if options["study"] else None
    from harness.experiments.trainings.launch import groups

    found: list[Overhead] = []
    rows: list[dict[str, Any]] = []
    for group in groups(cells):
        found += measure(base, group, quiet=options["as_json"])
        rows = [row_of(item) for item in found]
        if folder is not None:  # after each: what is measured is kept, whatever comes
            record.write(rows, base, folder)
    if options["as_json"]:
        click.echo(json.dumps(rows, indent=1))
    else:
        _print(found)
    sys.exit(1 if any(item.low > record.LIMIT for item in found) else 0)


def measure(base: Job, cells: list[Cell], *, quiet: bool = True) -> list[Overhead]:
    """Runs the cells under their launchers. Raises JobError where one fails."""
    from harness.experiments.trainings.launch import train_cells

    with tempfile.TemporaryDirectory(prefix="harness-overhead-") as temporary:
        out = Path(temporary)
        say = None if quiet else (lambda text: click.echo(text, err=True))
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


def _print(found: list[Overhead]) -> None:
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
