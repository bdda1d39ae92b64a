"""`harness parity`: does every engine compute what a single process computes? Trains, compares weights, tabulates."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from harness.experiments.parity.judge import Verdict, cause_of, judge, row_of
from harness.experiments.trainings.cells import Cell, cells_of, is_told
from harness.experiments.trainings.launch import train_cells
from harness.job.declaration import Job, JobError
from harness.job.number_ranges import COUNT, SEED
from harness.job.options import apply_settings, model_option, time_limit_option, what_to_train
from harness.launch.user_job import check_user_job
from harness.records.record_files import write_text
from harness.records.run_folder import check_writable, study_folder

ENGINES = "ddp,fsdp2,horovod,deepspeed:0,deepspeed:1,deepspeed:2,deepspeed:3"
# What DeepSpeed's stage 3 computes like the others, at the price of memory: shows that its other rounding is the cause.
PLAIN_LINEAR = "deepspeed:3+memory_efficient_linear=false"
JOB_FILE = "job.json"
Say = Callable[[str], None]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--engines",
    default="ddp,horovod,deepspeed:0,deepspeed:1,deepspeed:2",
    show_default=True,
    help="Comma-separated; deepspeed:STAGE, and settings as +KEY=VALUE. --full takes every engine; --loss-scale too, "
    "unless this is given.",
)
@click.option("--workers", default="1,2", show_default=True, help="Worker counts, comma-separated.")
@click.option("--accumulation", default="1", show_default=True, help="Accumulation steps, comma-separated.")
@click.option("--clip", default="on", show_default=True, help="on, off or on,off.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, bf16, fp16, comma-separated.")
@click.option(
    "--precision-mode", default="matched", show_default=True, help="matched, native or both, comma-separated."
)
@click.option(
    "--overflow-at", type=click.IntRange(min=-1), default=-1, help="Plant an fp16 overflow on one rank at this step."
)
@click.option(
    "--full",
    is_flag=True,
    help="Every engine and ZeRO stage x accumulation x clipping x workers in fp32, the same with clipping in bf16 and "
    "fp16, native precision, and --loss-scale.",
)
@click.option("--loss-scale", is_flag=True, help="Only the figure of the fp16 loss scale, with a planted overflow.")
@click.option("--preset", help="As for `harness run` (default: tiny).")
@model_option
@click.option("--data", help="As for `harness run` (default: textures).")
@click.option("--steps", type=COUNT, default=20, show_default=True, help="Optimizer steps of every training.")
@click.option("--global-batch", type=COUNT, default=16, show_default=True, help="Samples a step, over all workers.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Decides weights and data.")
@click.option("--study", default="parity", show_default=True, help="Folder in results/ for the table ('' = none).")
@click.option("--results", type=click.Path(), help="Results folder.")
@time_limit_option
@click.option("--keep", type=click.Path(), help="Keep weights and logs of every cell in this folder.")
@click.option("--resume", is_flag=True, help="Train only what is not in the --keep folder yet.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other job field.")
def parity(**options: Any) -> None:
    """Train the same few steps on every engine and world size and compare the weights with a single process's."""
    values: dict[str, Any] = {name: options[name] for name in ("steps", "global_batch", "seed")}
    values |= what_to_train(options, preset="tiny")
    values |= {"lr": 1e-3, "warmup_steps": 2, "eval_samples": -1, "time_limit_s": options["time_limit_s"]}
    apply_settings(values, options["settings"])
    base = Job.from_dict(values)
    folder = study_folder(options["results"], options["study"]) if options["study"] else None
    say = None if options["as_json"] else (lambda text: click.echo(text, err=True))
    if options["loss_scale"]:
        sys.exit(_loss_scale(base, options, folder, say))
    cells = _cells(options)
    for cell in cells:
        cell.job(base).validate()
    check_user_job(base, deterministic=True)
    if options["resume"] and not options["keep"]:
        raise JobError("--resume needs --keep FOLDER: there it finds what is done")
    if options["keep"]:
        check_writable(Path(options["keep"]).absolute())
    verdicts = run_parity(base, cells, keep=options["keep"], resume=options["resume"], say=say)
    if folder is not None:
        from harness.experiments.parity.report import write_study

        write_study(verdicts, base, folder)
    if options["as_json"]:
        click.echo(json.dumps({"steps": base.steps, "cells": [row_of(verdict) for verdict in verdicts]}, indent=1))
    else:
        from harness.experiments.parity.report import print_table

        print_table(verdicts)
    bad = any(v.status == "failed" or (v.status == "differs" and not v.explained) for v in verdicts)
    if options["full"]:
        bad = bool(_loss_scale(base, options, folder, say)) or bad
    sys.exit(1 if bad else 0)


def _cells(options: dict[str, Any]) -> list[Cell]:
    """The cells that the options ask for."""
    if options["full"]:
        counts, accumulations, clips = [1, 2, 4], [1, 4], [True, False]
        engines = ENGINES.split(",")
        half = ["bf16", "fp16"]
        cells = cells_of(engines, counts, accumulations, clips, ["fp32"], ["matched"])
        cells += cells_of([*engines, PLAIN_LINEAR], counts, accumulations, [True], half, ["matched"])
        return cells + cells_of(engines, counts, [1], [True], half, ["native"])
    cells = cells_of(
        options["engines"].split(","),
        [int(text) for text in options["workers"].split(",")],
        [int(text) for text in options["accumulation"].split(",")],
        [text == "on" for text in options["clip"].split(",")],
        options["precision"].split(","),
        options["precision_mode"].split(","),
    )
    return [replace(cell, overflow_at=options["overflow_at"]) for cell in cells]


def _loss_scale(base: Job, options: dict[str, Any], folder: Path | None, say: Say | None) -> int:
    """Trains for the figure of the loss scale, writes it; 0 where all engines moved their scale alike."""
    from harness.experiments.parity import loss_scale

    workers = max(int(text) for text in options["workers"].split(","))
    given = click.get_current_context().get_parameter_source("engines") is not ParameterSource.DEFAULT
    engines = options["engines"].split(",") if given and not options["full"] else loss_scale.ENGINES
    curves = loss_scale.measure(base, workers=workers, at=max(0, options["overflow_at"]), engines=engines, say=say)
    if folder is not None:
        for path in loss_scale.write(curves, folder):
            if say is not None:
                say(str(path))
    sentence, alike = loss_scale.sentence(curves)
    if say is not None:
        say(sentence)
    return 0 if alike else 1


def run_parity(
    base: Job,
    cells: Sequence[Cell],
    *,
    keep: str | None = None,
    resume: bool = False,
    say: Say | None = None,
) -> list[Verdict]:
    """Trains the references and all cells, judges each and names the cause where one is not equal. keep: folder for
    weights and logs. resume: what is in it is not trained again. Raises JobError where a reference fails."""
    wanted = {cell.reference() for cell in cells} | {
        cell.same_split() for cell in cells if cell.precision_mode == "matched"
    }
    references = sorted(wanted, key=lambda cell: cell.name)
    with tempfile.TemporaryDirectory(prefix="harness-parity-out-") as temporary:
        out = Path(keep) if keep else Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        done = _kept(base, out) if resume else set()
        write_text(out / JOB_FILE, json.dumps(base.to_dict()))
        todo = [cell for cell in [*references, *cells] if cell.name not in done]
        failures = train_cells(base, todo, out, say=say)
        for reference in references:
            if reference in failures:
                raise JobError(
                    f"the single-process reference failed: {failures[reference]}: see {out} (use --keep FOLDER)"
                )
        return _explained([judge(cell, out, base.steps, failures) for cell in cells], base, out, say)


def _kept(base: Job, out: Path) -> set[str]:
    """Names of the cells that an earlier call has trained into `out`. Raises JobError where it was another job."""
    file = out / JOB_FILE
    if file.exists() and Job.load(file).with_(time_limit_s=base.time_limit_s) != base:
        raise JobError(f"{out}: holds cells of another job: choose another --keep folder, or leave --resume out")
    return {path.stem for path in out.glob("*.json") if path.name != JOB_FILE and is_told(path)}


def _explained(verdicts: list[Verdict], base: Job, out: Path, say: Say | None) -> list[Verdict]:
    """The verdicts with their causes. fp32 cells that differ are explained by controls, one a way to split."""
    odd = {(v.cell.parts, v.cell.clip) for v in verdicts if v.status == "differs" and v.cell.precision == "fp32"}
    controls = {}
    for parts, clip in sorted(odd):
        if parts > 1:
            from harness.experiments.parity.cause import split_control

            if say is not None:
                say(f"control in one process: batches in {parts} parts, fp32 and fp64")
            controls[parts, clip] = split_control(base.with_(clip_norm=base.clip_norm if clip else None), parts)
    explained = []
    for verdict in verdicts:
        cell = verdict.cell
        control = controls.get((cell.parts, cell.clip)) if cell.precision == "fp32" else None
        cause, known = cause_of(verdict, out, control)
        explained.append(replace(verdict, cause=cause, explained=known))
    return explained
