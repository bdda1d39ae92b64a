"""`harness experiment parity`: does every engine compute what a single process computes?"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from backends.tuning import spelled
from harness.commands.list_types import Names
from harness.commands.number_types import COUNT, SEED
from harness.commands.options import (
    accumulation_option,
    backends_option,
    device_option,
    json_option,
    precision_mode_option,
    precision_option,
    results_option,
    set_option,
    study_option,
    time_limit_option,
    workers_option,
)
from harness.experiments.parity.judge import row_of
from harness.experiments.parity.run import Say, run_parity
from harness.experiments.trainings.cells import Cell, cells_of
from harness.job.declaration import Job, JobError
from harness.job.options import apply_settings, model_option, what_to_train
from harness.launch.user_job import check_user_job
from harness.protocol.console import tell
from harness.records.run_folder import check_writable, study_folder
from harness.study.tuned_file import read

CLIPS = Names(("on", "off"), "clipping")
ENGINES = "ddp,fsdp2,horovod,deepspeed:0,deepspeed:1,deepspeed:2,deepspeed:3"


# What DeepSpeed's stage 3 computes like the others, at the price of memory: shows that its other rounding is the cause.
PLAIN_LINEAR = "deepspeed:3+memory_efficient_linear=false"


@click.command()
@backends_option(
    "ddp,horovod,deepspeed:0,deepspeed:1,deepspeed:2", "--full takes every one; --loss-scale too, unless this is given."
)
@click.option(
    "--tuned",
    type=click.Path(),
    help="tuned.toml of `harness tune`: its engines with their tuned settings, instead of --backends and --workers.",
)
@workers_option
@accumulation_option
@click.option("--clip", metavar="LIST", type=CLIPS, default="on", show_default=True, help="Clipping: on, off or both.")
@precision_option
@precision_mode_option
@click.option(
    "--overflow-at",
    type=click.IntRange(min=-1),
    default=-1,
    help="Plant an fp16 overflow on one rank at this step; -1 = none.",
)
@click.option(
    "--full",
    is_flag=True,
    help="Every engine and ZeRO stage x accumulation x clipping x workers in fp32, the same with clipping in bf16 and "
    "fp16, native precision, and --loss-scale.",
)
@click.option(
    "--loss-scale", is_flag=True, help="Draw only the figure of the fp16 loss scale, with a planted overflow."
)
@click.option("--preset", help="As for `harness run` (default: tiny).")
@model_option
@click.option("--data", help="As for `harness run` (default: textures).")
@click.option("--steps", type=COUNT, default=20, show_default=True, help="Optimizer steps of every training.")
@click.option("--global-batch", type=COUNT, default=16, show_default=True, help="Samples per step, over all workers.")
@device_option
@click.option("--seed", type=SEED, default=0, show_default=True, help="Decides weights and data.")
@study_option("parity", optional=True)
@results_option
@time_limit_option
@click.option("--keep", type=click.Path(), help="Keep weights and logs of every cell in this folder.")
@click.option("--resume", is_flag=True, help="Train only what is not in the --keep folder yet.")
@json_option
@set_option
def parity(**options: Any) -> None:
    """Train the same few steps on every engine and world size and compare the weights with a single process's."""
    values: dict[str, Any] = {name: options[name] for name in ("steps", "global_batch", "seed", "device")}
    values |= what_to_train(options, preset="tiny")
    values |= {"lr": 1e-3, "warmup_steps": 2, "eval_samples": -1, "time_limit_s": options["time_limit_s"]}
    apply_settings(values, options["settings"])
    base = Job.from_dict(values)
    folder = study_folder(options["results"], options["study"]) if options["study"] else None
    say = None if options["as_json"] else tell
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
    if options["tuned"]:
        if any(_is_given(name) for name in ("backends", "workers")):
            raise JobError("--tuned names engines and workers itself: leave --backends and --workers out")
        asked = tuned_engines(Path(options["tuned"]))
    else:
        asked = [(name, workers) for name in options["backends"] for workers in options["workers"]]
    cells = [cell for name, workers in asked for cell in _matrix(name, workers, options)]
    return [replace(cell, overflow_at=options["overflow_at"]) for cell in cells]


def _is_given(name: str) -> bool:
    """Whether the option was typed."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def tuned_engines(file: Path) -> list[tuple[str, int]]:
    """The engines of a tuned.toml with the settings that were found, as --backends spells them, and their workers.

    Raises JobError where no entry of the file has tuned settings.
    """
    found = []
    for entry in read(file).engine:
        if entry.settings:
            settings = spelled({**entry.given, **entry.settings})
            found.append((f"{entry.backend}:{settings}", entry.workers))
    if not found:
        raise JobError(f"{file}: no engine in it has tuned settings: all stay as they come")
    return found


def _matrix(engine: str, workers: int, options: dict[str, Any]) -> list[Cell]:
    """The cells of one engine."""
    return cells_of(
        [engine],
        [workers],
        options["accumulation"],
        [text == "on" for text in options["clip"]],
        options["precision"],
        options["precision_mode"],
    )


def _loss_scale(base: Job, options: dict[str, Any], folder: Path | None, say: Say | None) -> int:
    """Trains for the figure of the loss scale, writes it; 0 where all engines moved their scale alike."""
    from harness.experiments.parity import loss_scale

    workers = max(options["workers"])
    engines = options["backends"] if _is_given("backends") and not options["full"] else loss_scale.ENGINES
    curves = loss_scale.measure(base, workers=workers, at=max(0, options["overflow_at"]), engines=engines, say=say)
    if folder is not None:
        for path in loss_scale.write(curves, folder):
            if say is not None:
                say(str(path))
    sentence, alike = loss_scale.sentence(curves)
    if say is not None:
        say(sentence)
    return 0 if alike else 1
