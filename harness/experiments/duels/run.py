"""`harness duel`: engines side by side on the same devices, block by block, until the difference is known."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click

from harness.analysis.duels.estimate import FIRST_STAGE, duel_ratios, duels_needed
from harness.analysis.duels.page import page
from harness.analysis.duels.record import NAME, asked_pairs, sentence
from harness.experiments.duels import record as records_
from harness.experiments.duels.fight import Contender, Duel, Pace, fight
from harness.experiments.trainings.cells import Cell, parse_engine
from harness.job.declaration import Job, JobError
from harness.job.number_ranges import COUNT, SEED, WHOLE
from harness.job.options import apply_settings, model_option, time_limit_option, what_to_train
from harness.launch.user_job import check_user_job
from harness.records.record_files import read_json
from harness.records.run_folder import study_folder


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--engines",
    default="horovod,deepspeed:2",
    show_default=True,
    help="Comma-separated: NAME, deepspeed:STAGE, +KEY=VALUE for settings, @N for workers. The others are told against "
    "the first. The same engine twice is a calibration.",
)
@click.option("--workers", type=COUNT, default=1, show_default=True, help="Workers of engines without @N.")
@click.option("--preset", help="As for `harness run` (default: small).")
@model_option
@click.option("--data", help="As for `harness run` (default: textures).")
@click.option(
    "--global-batch", type=COUNT, default=8, show_default=True, help="Samples a step; weak scaling: a step and worker."
)
@click.option("--scaling", type=click.Choice(["strong", "weak"]), default="strong", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--mode", type=click.Choice(["matched", "native"]), default="matched", show_default=True)
@click.option("--random-weights", is_flag=True, help="Build the preset without pretrained weights.")
@click.option("--steps", type=COUNT, default=3, show_default=True, help="Optimizer steps of a block.")
@click.option("--rounds", type=COUNT, default=10, show_default=True, help="Rounds of a duel: one block of each engine.")
@click.option("--warmup", type=WHOLE, default=5, show_default=True, help="Steps of each engine before the first round.")
@click.option("--until", "until", default="2%", show_default=True, help="Half of the interval that is asked for.")
@click.option("--duels", "most", type=COUNT, default=12, show_default=True, help="Duels at most.")
@click.option("--budget", default="15m", show_default=True, help="Time after which no further duel begins.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the order of blocks, and of the job.")
@click.option("--study", default="duel", show_default=True, help="Folder in results/.")
@click.option("--results", type=click.Path(), help="Results folder.")
@time_limit_option
@click.option("--render", is_flag=True, help="Write duel.md and the differences anew from the record; run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other job field.")
def duel(**options: Any) -> None:
    """Set engines beside each other: all live at once and take turns in blocks of a few steps, in random order."""
    folder = study_folder(options["results"], options["study"])
    if options["render"]:
        records_.write(records_.rendered_again(read_json(folder / NAME)), folder)
        return
    base = _base(options)
    contenders = contenders_of(
        options["engines"], options["workers"], base, weak=options["scaling"] == "weak", mode=options["mode"]
    )
    pace = Pace(warmup=options["warmup"], steps=options["steps"], rounds=options["rounds"])
    wanted, budget = share(options["until"]), seconds(options["budget"])
    for contender in contenders:
        contender.cell.job(contender.job(base).with_(steps=pace.total)).validate()
    check_user_job(base)
    pairs = asked_pairs([records_.side(contender) for contender in contenders])

    def say(text: str) -> None:
        click.echo(text, err=True)

    fought: list[Duel] = []
    record: dict[str, Any] = {}
    began = time.monotonic()
    while _next(fought, pairs, wanted=wanted, most=options["most"], budget_left=budget - (time.monotonic() - began)):
        fought.append(fight(base, contenders, pace, number=len(fought), seed=options["seed"], say=say))
        record = records_.record_of(base, contenders, pace, fought, pairs)
        records_.write(record, folder)  # after each: what is measured is kept, whatever comes
        for item in record["differences"]:
            say(f"  {sentence(item)}")
    if options["as_json"]:
        click.echo(json.dumps(record["differences"], indent=1))
    else:
        click.echo(page(record))
        click.echo(f"{folder / NAME}", err=True)


def _next(
    fought: Sequence[Duel], pairs: Sequence[tuple[str, str]], *, wanted: float, most: int, budget_left: float
) -> bool:
    """Whether another duel is to be fought: always one, then up to the first stage, then as many as Stein's rule asks
    for, within `most` and the budget (a duel that would not end in it is not begun)."""
    if not fought:
        return True
    longest = max(duel.start_s + duel.fight_s for duel in fought)
    if len(fought) >= most or longest > budget_left:
        return False
    if len(fought) < FIRST_STAGE:
        return True
    blocks = [block for duel in fought for block in duel.blocks]
    for a, b in pairs:
        ratios = duel_ratios(blocks, a, b)
        if len(fought) < duels_needed([ratios[number] for number in sorted(ratios)][:FIRST_STAGE], wanted):
            return True
    return False


def _base(options: dict[str, Any]) -> Job:
    names = ("global_batch", "scaling", "precision", "random_weights", "seed", "time_limit_s")
    values: dict[str, Any] = {name: options[name] for name in names}
    values |= what_to_train(options, preset="small")
    values |= {"eval_samples": -1, "schedule": "constant", "precision_mode": options["mode"]}
    apply_settings(values, options["settings"])
    return Job.from_dict(values)


def contenders_of(text: str, workers: int, base: Job, *, weak: bool, mode: str) -> list[Contender]:
    """``single@1,ddp@2,deepspeed:1@2`` as contenders. Raises JobError."""
    found: list[Contender] = []
    seen: Counter[str] = Counter()
    for part in text.split(","):
        engine, at, count = part.strip().partition("@")
        if at and not (count.isdigit() and int(count) > 0):
            raise JobError(f"engine '{part.strip()}': write the number of workers behind @, such as {engine}@2")
        number = int(count) if at else workers
        cell = Cell(
            **parse_engine(engine),
            workers=number,
            accumulation=base.accumulation,
            precision=base.precision,
            precision_mode=mode if base.precision != "fp32" else "matched",
        )
        batch = base.global_batch * (number if weak else 1)
        name = f"{cell.engine}@{number}"
        seen[name] += 1
        name += f" #{seen[name]}" if seen[name] > 1 else ""
        found.append(Contender(name=name, cell=cell, global_batch=batch))
    if len(found) < 2:
        raise JobError(f"engines '{text}': a duel needs two or more, such as horovod,deepspeed:2")
    return found


def share(text: str) -> float:
    """``2%`` or ``0.02`` as 0.02. Raises JobError."""
    try:
        value = float(text.rstrip("% ")) / (100 if "%" in text else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise JobError(f"--until '{text}': write a share of the throughput, such as 2%")
    return value


def seconds(text: str) -> float:
    """``90``, ``90s``, ``10m`` or ``1.5h`` in seconds. Raises JobError."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    unit = units.get(text[-1:], 0.0)
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise JobError(f"--budget '{text}': write a time such as 90s, 10m or 1h")
    return value
