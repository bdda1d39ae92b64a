"""`harness parity`: does every engine compute what a single process computes? Trains, compares weights, tabulates."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from harness.job import Job, JobError
from harness.options import apply_settings, results_root
from harness.parity_cells import PARITY_WORKER, Cell, worker_argv

# Largest relative difference ||a - b|| / ||b|| of any trainable tensor that counts as equal. fp32: the acceptance of
# the project. Reduced types: one rounding of a gradient is up to 2^-8 (bf16) or 2^-11 (fp16) of it; Adam's first steps
# have unit size whatever the gradient's, so a flipped rounding moves a weight by up to lr times that share, every step.
# The bound is that share of the whole UPDATE ||b - start||, over sqrt(steps) independent roundings: see `bound`.
FP32_BOUND = 1e-5
UNIT_ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One cell against the single process. difference: ||a-b||/||b||, worst tensor; of_update: ||a-b||/||b-start|| over
    all tensors together; status: equal | differs | refused | failed."""

    cell: Cell
    status: str
    difference: float | None = None
    tensor: str = ""
    of_update: float | None = None
    loss_difference: float | None = None
    bound: float | None = None
    skipped: tuple[int, ...] = ()
    reason: str = ""


def bound(cell: Cell, steps: int) -> tuple[str, float]:
    """(which difference, how large it may be) for a matched cell of this precision."""
    if cell.precision == "fp32":
        return "difference", FP32_BOUND
    return "of_update", UNIT_ROUNDOFF[cell.precision] * math.sqrt(steps)


def cells_of(
    engines: Sequence[str],
    workers: Sequence[int],
    accumulations: Sequence[int],
    clips: Sequence[bool],
    precisions: Sequence[str],
    modes: Sequence[str],
) -> list[Cell]:
    """The matrix. engines: ``ddp``, ``horovod``, ``fsdp2``, ``deepspeed:2`` (with its ZeRO stage)."""
    cells = []
    for engine in engines:
        backend, _, stage = engine.partition(":")
        if backend != "deepspeed" and stage:
            raise JobError(f"engine '{engine}': only deepspeed has a ZeRO stage")
        zero = (int(stage) if stage else 0) if backend == "deepspeed" else None
        for count in workers:
            for accumulation in accumulations:
                for clip in clips:
                    for precision in precisions:
                        for mode in modes if precision != "fp32" else ("matched",):
                            cells.append(
                                Cell(
                                    backend=backend, zero_stage=zero, workers=count, accumulation=accumulation,
                                    clip=clip, precision=precision, precision_mode=mode,
                                )
                            )  # fmt: skip
    return cells


def train_cells(
    base: Job, cells: Sequence[Cell], out: Path, *, limit_s: float, say: Any = None, module: str = PARITY_WORKER
) -> dict[Cell, str]:
    """Runs `module` over `cells`, one launch per engine and worker count, into `out`. Returns why launches failed."""
    import mpi.launch
    import mpi.process
    from harness.launch import ROOT
    from mpi import hostfile

    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.backend, cell.workers), []).append(cell)
    failures: dict[Cell, str] = {}
    for cell in cells:  # of an earlier call with the same folder: never judged as if they were new
        for suffix in (".json", ".safetensors"):
            (out / f"{cell.name}{suffix}").unlink(missing_ok=True)
    for (backend, count), group in groups.items():
        if say is not None:
            say(f"{backend}, {count} worker{'s' if count > 1 else ''}: {len(group)} trainings")
        launcher = mpi.launch.default_launcher(backend)
        with tempfile.TemporaryDirectory(prefix="harness-parity-") as scratch:
            launch = mpi.launch.command(
                launcher,
                worker_argv(module, base, group, out),
                hostfile.local(count),
                scratch=Path(scratch),
                master_port=_free_port(),
                cwd=ROOT,
                threads=base.threads,
                operation_timeout=int(base.timeout_s),
            )
            outcome = mpi.process.supervise(launch, log_path=out / f"{backend}-w{count}.log", timeout=limit_s)
        if not outcome.ok:
            failures |= {cell: outcome.reason for cell in group if not (out / f"{cell.name}.json").exists()}
    return failures


def judge(cell: Cell, out: Path, steps: int, failures: dict[Cell, str]) -> Verdict:
    """Compares one cell's weights and losses with its reference's, both in `out`."""
    from safetensors.torch import load_file

    path = out / f"{cell.name}.json"
    if not path.exists():
        return Verdict(cell=cell, status="failed", reason=failures.get(cell, "no result"))
    told = json.loads(path.read_text())
    if "refused" in told:
        return Verdict(cell=cell, status="refused", reason=told["refused"])
    reference = cell.reference()
    mine, theirs = load_file(out / f"{cell.name}.safetensors"), load_file(out / f"{reference.name}.safetensors")
    start = load_file(out / "start.safetensors")
    if set(mine) != set(theirs):
        odd = sorted(set(mine) ^ set(theirs))[0]
        return Verdict(cell=cell, status="differs", reason=f"tensor '{odd}' is in one of the two only")
    per_tensor = {name: _relative(mine[name], theirs[name], theirs[name]) for name in theirs}
    worst = max(per_tensor, key=lambda name: per_tensor[name])
    apart = sum(float((mine[n].double() - theirs[n].double()).square().sum()) for n in theirs)
    moved = sum(float((theirs[n].double() - start[n].double()).square().sum()) for n in theirs)
    rows, reference_rows = told["rows"], json.loads((out / f"{reference.name}.json").read_text())["rows"]
    losses = [
        abs(a["loss"] - b["loss"]) / max(abs(b["loss"]), 1e-12)
        for a, b in zip(rows, reference_rows, strict=True)
        if a["loss"] is not None and b["loss"] is not None and math.isfinite(a["loss"]) and math.isfinite(b["loss"])
    ]
    figures = {"difference": per_tensor[worst], "of_update": math.sqrt(apart / moved) if moved else math.inf}
    which, limit = bound(cell, steps)
    skipped = tuple(row["step"] for row in rows if row["skipped"])
    reference_skipped = tuple(row["step"] for row in reference_rows if row["skipped"])
    reason, equal = "", figures[which] <= limit
    if cell.precision_mode == "matched" and skipped != reference_skipped:
        equal, reason = False, f"skipped steps {list(skipped)}, the single process {list(reference_skipped)}"
    return Verdict(
        cell=cell,
        status="equal" if equal else "differs",
        difference=figures["difference"],
        tensor=worst,
        of_update=figures["of_update"],
        loss_difference=max(losses) if losses else None,
        bound=limit,
        skipped=skipped,
        reason=reason,
    )


def _relative(a: Any, b: Any, scale: Any) -> float:
    """||a - b|| / ||scale|| in double precision; 0 where both are equal and scale is 0."""
    apart = float((a.double() - b.double()).norm())
    size = float(scale.double().norm())
    return apart / size if size else (0.0 if apart == 0 else math.inf)


def _free_port() -> int:
    import mpi.network

    return mpi.network.free_port()


def row_of(verdict: Verdict) -> dict[str, Any]:
    """A flat row for JSON, CSV and the table."""
    cell = asdict(verdict.cell)
    return {"engine": verdict.cell.engine, **cell, **{k: v for k, v in asdict(verdict).items() if k != "cell"}}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--engines",
    default="ddp,horovod,deepspeed:0,deepspeed:1,deepspeed:2",
    show_default=True,
    help="Comma-separated; deepspeed:STAGE.",
)
@click.option("--workers", default="1,2", show_default=True, help="Worker counts, comma-separated.")
@click.option("--accumulation", default="1", show_default=True, help="Accumulation steps, comma-separated.")
@click.option("--clip", default="on", show_default=True, help="on, off or on,off.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, bf16, fp16, comma-separated.")
@click.option(
    "--precision-mode", default="matched", show_default=True, help="matched, native or both, comma-separated."
)
@click.option("--overflow-at", type=int, default=-1, help="Plant an fp16 overflow at this step.")
@click.option(
    "--full",
    is_flag=True,
    help="Every engine and ZeRO stage x accumulation x clipping x workers x precision.",
)
@click.option("--preset", default="tiny", show_default=True)
@click.option("--data", default="textures", show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--global-batch", default=16, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--study", default="parity", show_default=True, help="Folder in results/ for the table ('' = none).")
@click.option("--results", type=click.Path(), help="Results folder.")
@click.option("--limit", "limit_s", default=600.0, show_default=True, help="Seconds that one launch may take.")
@click.option("--keep", type=click.Path(), help="Keep weights and logs of every cell in this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other job field.")
def parity(**options: Any) -> None:
    """Train the same few steps on every engine and world size and compare the weights with a single process's."""
    if options["full"]:
        options |= {
            "engines": "ddp,fsdp2,horovod,deepspeed:0,deepspeed:1,deepspeed:2,deepspeed:3",
            "workers": "1,2,4",
            "accumulation": "1,4",
            "clip": "on,off",
            "precision": "fp32,bf16,fp16",
            "precision_mode": "matched,native",
        }
    values: dict[str, Any] = {name: options[name] for name in ("preset", "data", "steps", "global_batch", "seed")}
    values |= {"lr": 1e-3, "warmup_steps": 2, "eval_samples": -1}
    apply_settings(values, options["settings"])
    base = Job.from_dict(values)
    cells = cells_of(
        options["engines"].split(","),
        [int(text) for text in options["workers"].split(",")],
        [int(text) for text in options["accumulation"].split(",")],
        [text == "on" for text in options["clip"].split(",")],
        options["precision"].split(","),
        options["precision_mode"].split(","),
    )
    if options["overflow_at"] >= 0:
        cells = [Cell(**{**asdict(cell), "overflow_at": options["overflow_at"]}) for cell in cells]
    for cell in cells:
        cell.job(base).validate()
    verdicts = run_parity(base, cells, limit_s=options["limit_s"], keep=options["keep"], quiet=options["as_json"])
    if options["study"]:
        from harness.parity_report import write_study

        write_study(verdicts, base, results_root(options["results"]) / options["study"])
    if options["as_json"]:
        click.echo(json.dumps({"steps": base.steps, "cells": [row_of(verdict) for verdict in verdicts]}, indent=1))
    else:
        from harness.parity_report import print_table

        print_table(verdicts)
    # Native precision departs by design and is reported, not judged.
    bad = [
        v for v in verdicts if v.status == "failed" or (v.status == "differs" and v.cell.precision_mode == "matched")
    ]
    sys.exit(1 if bad else 0)


def run_parity(
    base: Job, cells: Sequence[Cell], *, limit_s: float = 600.0, keep: str | None = None, quiet: bool = False
) -> list[Verdict]:
    """Trains the references and all cells, and judges each."""
    references = sorted({cell.reference() for cell in cells}, key=lambda cell: cell.name)
    with tempfile.TemporaryDirectory(prefix="harness-parity-out-") as temporary:
        out = Path(keep) if keep else Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        say = None if quiet else (lambda text: click.echo(text, err=True))
        failures = train_cells(base, [*references, *cells], out, limit_s=limit_s, say=say)
        for reference in references:
            if reference in failures:
                raise JobError(
                    f"the single-process reference failed: {failures[reference]}: see {out} (use --keep FOLDER)"
                )
        return [judge(cell, out, base.steps, failures) for cell in cells]


def write_csv(verdicts: Sequence[Verdict], path: Path) -> None:
    """One row a cell, atomically."""
    rows = [row_of(verdict) for verdict in verdicts]
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)
