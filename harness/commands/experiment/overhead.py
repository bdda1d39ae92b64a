"""`harness experiment overhead`: what the harness adds to a step that its user could have written by hand."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from harness.commands.number_types import COUNT
from harness.commands.options import json_option, results_option, set_option, study_option, time_limit_option
from harness.experiments.overhead import record
from harness.experiments.overhead.run import ENGINES, Overhead, measure, print_table, row_of
from harness.experiments.trainings.cells import Cell
from harness.job.declaration import Job, JobError
from harness.job.options import apply_settings
from harness.protocol.console import tell
from harness.records.run_folder import study_folder


@click.command()
@click.option("--engines", default="single,ddp,horovod,deepspeed:0,deepspeed:2", show_default=True)
@click.option("--workers", default="1,2", show_default=True, help="Worker counts, comma-separated.")
@click.option("--preset", default="tiny", show_default=True)
@click.option("--data", default="textures", show_default=True)
@click.option("--steps", type=COUNT, default=200, show_default=True, help="Timed steps of each loop.")
@click.option("--global-batch", type=COUNT, default=16, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@study_option("overhead", optional=True)
@results_option
@time_limit_option
@json_option
@set_option
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
        found += measure(base, group, say=None if options["as_json"] else tell)
        rows = [row_of(item) for item in found]
        if folder is not None:  # after each: what is measured is kept, whatever comes
            record.write(rows, base, folder)
    if options["as_json"]:
        click.echo(json.dumps(rows, indent=1))
    else:
        print_table(found)
    sys.exit(1 if any(item.low > record.LIMIT for item in found) else 0)
