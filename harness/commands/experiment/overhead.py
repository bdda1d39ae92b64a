"""`harness experiment overhead`: what the harness adds to a step that its user could have written by hand."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from harness.commands.number_types import COUNT
from harness.commands.options import (
    backends_option,
    device_option,
    json_option,
    results_option,
    set_option,
    study_option,
    time_limit_option,
    workers_option,
)
from harness.experiments.overhead import record
from harness.experiments.overhead.run import ENGINES, Overhead, measure, print_table, row_of
from harness.experiments.trainings.cells import Cell, parse_engine
from harness.job.declaration import Job, JobError
from harness.job.options import apply_settings, model_option, what_to_train
from harness.launch.user_job import check_user_job
from harness.protocol.console import tell
from harness.records.run_folder import study_folder


@click.command()
@backends_option("single,ddp,horovod,deepspeed:0,deepspeed:2")
@workers_option
@click.option("--preset", help="As for `harness run` (default: tiny).")
@model_option
@click.option("--data", help="As for `harness run` (default: textures).")
@click.option("--steps", type=COUNT, default=200, show_default=True, help="Timed steps of each loop.")
@click.option("--global-batch", type=COUNT, default=16, show_default=True, help="Samples per step, over all workers.")
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Arithmetic type."
)
@device_option
@study_option("overhead", optional=True)
@results_option
@time_limit_option
@json_option
@set_option
def overhead(**options: Any) -> None:
    """Time the harness's step against a hand-written loop on the same engine and model, interleaved in one run."""
    values: dict[str, Any] = {name: options[name] for name in ("steps", "global_batch", "precision", "device")}
    values |= what_to_train(options, preset="tiny")
    values |= {"eval_samples": -1, "schedule": "constant", "time_limit_s": options["time_limit_s"]}
    apply_settings(values, options["settings"])
    base = Job.from_dict(values)
    cells = []
    for text in options["backends"]:
        engine = parse_engine(text)
        if engine["backend"] not in ENGINES:
            raise JobError(f"no hand-written loop for engine '{engine['backend']}': choose of {', '.join(ENGINES)}")
        if engine["settings"] or engine["changes"]:
            raise JobError(f"engine '{text}': the hand-written loops have no settings but DeepSpeed's ZeRO stage")
        for count in options["workers"]:
            if engine["backend"] != "single" or count == 1:
                cells.append(Cell(**engine, workers=count, precision=options["precision"]))
    folder = study_folder(options["results"], options["study"]) if options["study"] else None
    for cell in cells:
        cell.job(base).validate()
    check_user_job(base)
    from harness.experiments.trainings.launch import groups

    found: list[Overhead] = []
    rows: list[dict[str, Any]] = []
    for group in groups(cells):
        found += measure(base, group, say=None if options["as_json"] else tell)
        rows = [row_of(item) for item in found]
        if folder is not None:  # after each: what is measured is kept, whatever comes
            record.write(rows, base, folder)
    if options["as_json"]:
        click.echo(json.dumps(rows, indent=1))
    else:
        print_table(found)
    sys.exit(1 if any(item.low > record.LIMIT for item in found) else 0)
