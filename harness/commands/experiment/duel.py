"""`harness experiment duel`: engines compared block by block on the same devices, until it is decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from harness.analysis.duels.page import page
from harness.analysis.duels.record import NAME
from harness.commands.number_types import COUNT, SEED, TIME, WHOLE
from harness.commands.options import (
    backends_option,
    device_option,
    json_option,
    results_option,
    set_option,
    study_option,
    time_limit_option,
)
from harness.experiments.duels import record as records_
from harness.experiments.duels.pace import Pace
from harness.experiments.duels.run import contenders_of
from harness.experiments.duels.until import Campaign, Goal
from harness.job.declaration import Job
from harness.job.measured_defaults import with_measured
from harness.job.options import apply_settings, model_option, what_to_train
from harness.job.quantities import share
from harness.launch.user_job import check_user_job
from harness.protocol.console import tell
from harness.records.record_files import read_json
from harness.records.run_folder import study_folder


@click.command()
@backends_option(
    "horovod,deepspeed:2",
    "NAME@N: with N workers. The others are compared with the first; the same engine twice is a calibration. Settings "
    "model.KEY=VALUE and compile=true differ in what is trained: single,single:compile=true.",
)
@click.option(
    "--workers", type=COUNT, default=1, show_default=True, help="Workers of engines without @N behind their name."
)
@click.option("--preset", help="As for `harness run` (default: small).")
@model_option
@click.option("--data", help="As for `harness run` (default: textures).")
@click.option(
    "--global-batch",
    type=COUNT,
    default=8,
    show_default=True,
    help="Samples per step; weak scaling: per step and worker.",
)
@click.option(
    "--scaling",
    type=click.Choice(["strong", "weak"]),
    default="strong",
    show_default=True,
    help="What stays the same with more workers: the whole batch, or a worker's.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Arithmetic type.",
)
@click.option(
    "--precision-mode",
    "mode",
    type=click.Choice(["matched", "native"]),
    default="matched",
    show_default=True,
    help="Like-for-like autocast, or the engine's own way.",
)
@device_option
@click.option("--random-weights", is_flag=True, help="Build the preset without pretrained weights.")
@click.option("--steps", type=COUNT, default=3, show_default=True, help="Optimizer steps of a block.")
@click.option("--rounds", type=COUNT, default=10, show_default=True, help="Rounds of a duel: one block of each engine.")
@click.option("--warmup", type=WHOLE, default=5, show_default=True, help="Steps of each engine before the first round.")
@click.option(
    "--until",
    metavar="SHARE",
    default="2%",
    show_default=True,
    help="Duels go on until each difference is known to ±SHARE.",
)
@click.option("--duels", "most", type=COUNT, default=12, show_default=True, help="Largest number of duels.")
@click.option(
    "--budget", type=TIME, default="15m", show_default=True, help="Time of all duels, earlier calls' too: 90s, 10m."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Decides the order of blocks, weights and data.")
@study_option("duel")
@results_option
@time_limit_option
@click.option("--render", is_flag=True, help="Write the report and the differences again from the record; run nothing.")
@json_option
@set_option
def duel(**options: Any) -> None:
    """Compare engines that run at the same time and take turns in blocks of a few steps, in random order.

    Finished duels are kept: the same command goes on from them until --until is reached or --budget is spent.
    """
    folder = study_folder(options["results"], options["study"])
    if options["render"]:
        records_.write(records_.rendered_again(read_json(folder / NAME)), folder)
        _report(folder)
        return
    base = _base(options)
    contenders = contenders_of(
        ",".join(options["backends"]), options["workers"], base, weak=options["scaling"] == "weak", mode=options["mode"]
    )
    pace = Pace(warmup=options["warmup"], steps=options["steps"], rounds=options["rounds"])
    goal = Goal(wanted=share(options["until"]), budget_s=options["budget"], most=options["most"])
    from harness.launch.preflight import check_choices

    for contender in contenders:
        check_choices(contender.cell.job(contender.job(base).with_(steps=pace.total)))
    check_user_job(base)
    campaign = Campaign(base, contenders, pace, folder, goal, seed=options["seed"], say=tell)
    record = campaign.run([tuple(contender.name for contender in contenders)])
    _report(folder)
    if options["as_json"]:
        click.echo(json.dumps(record["differences"], indent=1))
    else:
        click.echo(page(record))
        click.echo(f"{folder / NAME}", err=True)


def _report(folder: Path) -> None:
    """report.html and the interval picture, where the folder holds no trainings (`harness compare` reports those)."""
    from harness.report.duel_files import holds_duels_alone, write_duel_files

    if holds_duels_alone(folder):
        tell(f"report: {write_duel_files(folder)}")


def _base(options: dict[str, Any]) -> Job:
    names = ("global_batch", "scaling", "precision", "random_weights", "seed", "device", "time_limit_s")
    values: dict[str, Any] = {name: options[name] for name in names}
    values |= what_to_train(options, preset="small")
    values |= {"eval_samples": -1, "schedule": "constant", "precision_mode": options["mode"]}
    apply_settings(values, options["settings"])
    return Job.from_dict(with_measured(values))
