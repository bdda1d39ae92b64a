"""`harness tune`: the fastest settings of each engine for a job, found by measuring."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.list_types import COUNTS
from harness.commands.number_types import COUNT, TIME, WHOLE
from harness.commands.options import backends_option, dry_run_option, json_option, results_option, study_option
from harness.job.declaration import Job
from harness.job.engines import parse_backend
from harness.job.measured_defaults import with_measured
from harness.job.options import OF_THE_STUDY, check_no_engine_settings, job_options_without, job_values
from harness.protocol.console import tell

if TYPE_CHECKING:
    from harness.experiments.tuning.tune import Effort

# What tuning decides itself, or what no duel asks about: it trains on this machine, for as many steps as a duel takes,
# with a constant learning rate, and evaluates and keeps nothing.
_NOT_OF_TUNING = (
    "nodes", "hostfile", "steps", "schedule", "warmup_steps", "timing_warmup", "log_every", "eval_samples", "shots",
    "keep_weights", "checkpoint_every", "profile",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One engine with the settings that are kept, at one number of workers. job: with the batch of all these workers.
    name: as it is printed."""

    job: Job
    backend: str
    given: Mapping[str, Any]
    workers: int
    name: str


@click.command()
@backends_option("horovod,deepspeed:2", "Settings behind a name are kept.")
@click.option(
    "--workers", metavar="LIST", type=COUNTS, default="2", show_default=True, help="Numbers of workers: 1,2,4."
)
@click.option("--trials", type=COUNT, default=12, show_default=True, help="Candidates that each engine may try.")
@click.option(
    "--budget",
    type=TIME,
    default="10m",
    show_default=True,
    help="Time for each engine and number of workers: 90s, 10m.",
)
@click.option(
    "--block-steps", type=COUNT, default=3, show_default=True, help="Steps of a block, at least half a second."
)
@click.option("--rounds", type=COUNT, default=10, show_default=True, help="Rounds of each of the four last duels.")
@click.option("--warmup", type=WHOLE, default=5, show_default=True, help="Steps before the first round of a duel.")
@click.option("--side-by-side", type=COUNT, default=3, show_default=True, help="Candidates in one duel, by memory.")
@click.option("--other-rounding", is_flag=True, help="Also try settings that round elsewhere (fsdp2: bf16 gathers).")
@job_options_without(*OF_THE_STUDY, *_NOT_OF_TUNING)
@study_option("tuned")
@results_option
@dry_run_option
@json_option
def tune(**options: Any) -> None:
    """Find the fastest settings of each engine by short duels against the engine's defaults.

    Settings behind an engine's name are kept, such as deepspeed:zero_stage=1. Writes tuned.toml, which
    `harness compare --tuned` takes, tuning.json and tuning.md into results/STUDY. See docs/tuning.md.
    """
    from harness.experiments.tuning import record as records
    from harness.experiments.tuning.tune import check
    from harness.launch.user_job import check_user_job
    from harness.records.run_folder import study_folder

    effort = _effort(options)
    results, study, dry, as_json = (options.pop(name) for name in ("results", "study", "dry_run", "as_json"))
    base, tasks = _tasks(options)
    for task in tasks:
        check(task.job, task.backend, task.given, task.workers)
    check_user_job(base, deterministic=True)
    folder = study_folder(results, study)
    record = records.begin(folder, base.to_dict())
    if dry:
        for task in tasks:
            click.echo(f"{task.name}: {effort.trials} trials within {effort.budget_s:.0f} s, into {folder}")
        return
    _tune_all(tasks, effort, record, folder, as_json=as_json)


def _effort(options: dict[str, Any]) -> Effort:
    """What every engine is given alike; its options are taken out of `options`."""
    from harness.experiments.duels.pace import Pace
    from harness.experiments.tuning.tune import Effort

    return Effort(
        trials=options.pop("trials"),
        budget_s=options.pop("budget"),
        pace=Pace(warmup=options.pop("warmup"), steps=options.pop("block_steps"), rounds=options.pop("rounds")),
        side_by_side=options.pop("side_by_side"),
        other_rounding=options.pop("other_rounding"),
        seed=options.get("seed") or 0,
    )


def _tasks(options: dict[str, Any]) -> tuple[Job, list[_Task]]:
    """The job that the options describe, and the engines x workers that they name. Raises JobError."""
    from harness.experiments.tuning import record as records

    engines = [parse_backend(text) for text in options.pop("backends")]
    counts = options.pop("workers")
    check_no_engine_settings(options.get("settings") or ())
    values = job_values(options)
    base = Job.from_dict({**with_measured(values), "eval_samples": -1, "schedule": "constant", "warmup_steps": 0})
    return base, [
        _Task(
            job=_for_workers(base, count),
            backend=engine["backend"],
            given=engine["engine"],
            workers=count,
            name=records.name_of({"backend": engine["backend"], "given": engine["engine"], "workers": count}),
        )
        for engine in engines
        for count in counts
    ]


def _tune_all(tasks: Sequence[_Task], effort: Effort, record: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    """Tunes one after another; `record` is written after each, so that what is measured is kept, whatever comes."""
    from harness.experiments.tuning import record as records
    from harness.experiments.tuning.tune import record_of
    from harness.experiments.tuning.tune import tune as tune_engine
    from harness.study.tuned_file import as_plain

    for task in tasks:
        say = partial(_say, task.name)
        found = tune_engine(task.job, task.backend, task.given, task.workers, effort, say=say)
        records.put(record, record_of(found))
        records.write_all(record, folder)
        click.echo(records.sentence(record["engines"][-1]), err=as_json)
    if as_json:
        click.echo(json.dumps([as_plain(entry) for entry in records.tuned_file(record).engine], indent=1))
    else:
        click.echo(f"{folder / records.TUNED}", err=True)


def _say(name: str, text: str) -> None:
    """Says a line of progress of one engine."""
    tell(f"{name}: {text}")


def _for_workers(base: Job, workers: int) -> Job:
    """`base` with the batch of all workers; a weak job's batch is one worker's."""
    batch = base.global_batch * (workers if base.scaling == "weak" else 1)
    return base.with_(global_batch=batch)
