"""`harness tune`: the fastest settings of each engine for a job, found by measuring."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import click

from harness.commands.number_types import COUNT, WHOLE
from harness.commands.options import dry_run_option, json_option, results_option
from harness.job.declaration import Job, JobError
from harness.job.engines import parse_backend, split_engines
from harness.job.options import job_options, job_values
from harness.protocol.console import tell

DEFAULT = "horovod,deepspeed:2"


@click.command()
@click.option("--backends", metavar="LIST", help=f"Engines, with settings that are kept (default {DEFAULT}).")
@click.option("--workers", default="2", show_default=True, metavar="LIST", help="Workers on this machine: 1,2,4.")
@click.option("--trials", type=COUNT, default=12, show_default=True, help="Candidates that each engine may try.")
@click.option("--budget", default="10m", show_default=True, help="Time for each engine and number of workers.")
@click.option(
    "--block-steps", type=COUNT, default=3, show_default=True, help="Steps of a block, at least half a second."
)
@click.option("--rounds", type=COUNT, default=10, show_default=True, help="Rounds of each of the four last duels.")
@click.option("--warmup", type=WHOLE, default=5, show_default=True, help="Steps before the first round of a duel.")
@click.option("--side-by-side", type=COUNT, default=3, show_default=True, help="Candidates in one duel, by memory.")
@click.option("--other-rounding", is_flag=True, help="Also try settings that round elsewhere (fsdp2: bf16 gathers).")
@job_options
@results_option
@dry_run_option
@json_option
def tune(**options: Any) -> None:
    """Find the fastest settings of each engine by short duels against the engine as it comes.

    Settings behind an engine's name are kept, such as deepspeed:zero_stage=1. Writes tuned.toml, which
    `harness compare --tuned` takes, tuning.json and tuning.md into results/STUDY (default: tuned). See docs/tuning.md.
    """
    from harness.experiments.duels.pace import Pace
    from harness.experiments.tuning import record as records
    from harness.experiments.tuning.tune import Effort, check, record_of
    from harness.experiments.tuning.tune import tune as tune_engine
    from harness.job.quantities import seconds
    from harness.launch.user_job import check_user_job
    from harness.records.run_folder import study_folder
    from harness.study.tuned_file import as_plain

    effort = Effort(
        trials=options.pop("trials"),
        budget_s=seconds(options.pop("budget")),
        pace=Pace(warmup=options.pop("warmup"), steps=options.pop("block_steps"), rounds=options.pop("rounds")),
        side_by_side=options.pop("side_by_side"),
        other_rounding=options.pop("other_rounding"),
        seed=options.get("seed") or 0,
    )
    results, dry, as_json = (options.pop(name) for name in ("results", "dry_run", "as_json"))
    workers = _counts(options.pop("workers"))
    base, engines = _asked(options)
    jobs = [
        (_for_workers(base, count), engine["backend"], engine["engine"], count)
        for engine in engines
        for count in workers
    ]
    for asked in jobs:
        check(*asked)
    check_user_job(base, deterministic=True)
    folder = study_folder(results, base.study)
    record = records.begin(folder, base.to_dict())
    if dry:
        for _, backend, given, count in jobs:
            name = records.name_of({"backend": backend, "given": given, "workers": count})
            click.echo(f"{name}: {effort.trials} trials within {effort.budget_s:.0f} s, into {folder}")
        return
    for asked in jobs:
        name = records.name_of({"backend": asked[1], "given": asked[2], "workers": asked[3]})
        found = tune_engine(*asked, effort, say=_teller(name))
        records.put(record, record_of(found))
        records.write_all(record, folder)  # after each: what is measured is kept, whatever comes
        click.echo(records.sentence(record["engines"][-1]), err=as_json)
    if as_json:
        click.echo(json.dumps([as_plain(entry) for entry in records.tuned_file(record).engine], indent=1))
    else:
        click.echo(f"{folder / records.TUNED}", err=True)


def _teller(name: str) -> Callable[[str], None]:
    """Says lines of progress of one engine."""
    return lambda text: tell(f"{name}: {text}")


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise JobError(f"--workers '{text}': write whole numbers with commas between them, as 1,2,4")
    return counts


def _asked(options: Mapping[str, Any]) -> tuple[Job, list[dict[str, Any]]]:
    """The job and the engines that the options name. Raises JobError for what tuning does not take."""
    options = dict(options)
    listed = options.pop("backends")
    for flag, remedy in (("slots", "--workers"), ("run", "--study")):
        if options.get(flag) is not None:
            raise JobError(f"--{flag.replace('run', 'run-name')} belongs to `harness run`: use {remedy} here")
    if (options.get("nodes") or 1) > 1:
        raise JobError("--nodes: tuning runs on this machine alone: leave it out")
    values = job_values({**options, "backend": None})
    given = values.pop("engine", {})
    engines = [parse_backend(text) for text in split_engines(listed or options.get("backend") or DEFAULT)]
    for engine in engines:
        engine["engine"] = {**given, **engine["engine"]}
    values.setdefault("study", "tuned")
    base = Job.from_dict({**values, "eval_samples": -1, "schedule": "constant", "warmup_steps": 0})
    return base, engines


def _for_workers(base: Job, workers: int) -> Job:
    """`base` with the batch of all workers; a weak job's batch is one worker's."""
    batch = base.global_batch * (workers if base.scaling == "weak" else 1)
    return base.with_(global_batch=batch)
