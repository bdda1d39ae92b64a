"""`harness recommend`: which engine and settings for a job, on this machine or on GPUs that are only named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from harness.commands.list_types import ENGINES
from harness.commands.number_types import COUNT, TIME_OR_NONE
from harness.commands.options import json_option, results_option
from harness.job.declaration import Job, JobError
from harness.job.options import OF_THE_STUDY, job_options_without, job_values, results_root, share_evenly
from harness.protocol.console import tell

# What a recommendation decides itself, or what it does not depend on: one host, no evaluation, as many steps as a duel.
_NOT_ASKED = (
    "nodes", "hostfile", "launcher", "device", "oversubscribe", "bind_cores", "steps", "schedule", "warmup_steps",
    "timing_warmup", "log_every", "eval_samples", "shots", "keep_weights", "checkpoint_every", "profile",
    "time_limit_s", "emulate_compute_ms",
)  # fmt: skip


@click.command()
@job_options_without(*OF_THE_STUDY, *_NOT_ASKED)
@click.option("--gpus", metavar="COUNTxKIND", help="GPUs that are not here: 8x80GB, 4xH200. Nothing is measured then.")
@click.option("--workers", type=COUNT, help="Workers on this machine's kind of device (default: one a GPU; 2 cores).")
@click.option("--backends", metavar="LIST", type=ENGINES, help="Engines with settings (default: all, as they come).")
@click.option(
    "--budget",
    type=TIME_OR_NONE,
    default="5m",
    show_default=True,
    help="Time of duels on this machine: 90s, 5m; 0 = none.",
)
@click.option("--score", is_flag=True, help="Score every recorded study, write docs/recommend.md, and end.")
@results_option
@json_option
def recommend(**options: Any) -> None:
    """Say which engines fit a job, how fast each would be, and which three are the fastest.

    Memory is by arithmetic, speed by records and by short duels on this machine. Each figure says whether it was
    measured, predicted or extrapolated, with an interval: how far off such figures were. See docs/recommend.md.
    """
    results = results_root(options.pop("results"))
    as_json = options.pop("as_json")
    if options.pop("score"):
        _score(results)
        return
    from harness.experiments.recommend import page
    from harness.experiments.recommend.recommend import Question, canonical
    from harness.experiments.recommend.recommend import recommend as answer_of
    from harness.experiments.recommend.sizing import sized
    from harness.launch.user_job import check_user_job

    gpus, workers, engines, budget_s = (options.pop(name) for name in ("gpus", "workers", "backends", "budget"))
    if gpus is not None and workers is not None:
        raise JobError("--gpus and --workers exclude each other: --gpus 8x80GB says how many workers there are")
    machine = _machine(gpus, workers, results)
    job = _job(options, machine.workers)
    asked = [canonical(engine) for engine in engines or ()]
    if machine.workers > 1 and "single" in asked:
        raise JobError("engine 'single' runs one worker: leave it out of --backends, or use --workers 1")
    folder = _folder(results, job, machine.workers) if budget_s and machine.here else None
    check_user_job(job)
    if not as_json:
        tell("sizes of the model: one pass without memory")
    question = Question(job=job, machine=machine, engines=asked, budget_s=budget_s)
    answer = answer_of(question, sized(job), results, folder, say=tell)
    click.echo(json.dumps(answer, indent=1) if as_json else page.text(answer), nl=as_json)


def _machine(gpus: str | None, workers: int | None, results: Path) -> Any:
    from harness.experiments.recommend.evidence import read_evidence
    from harness.experiments.recommend.machine import machine_here, machine_named

    return machine_here(workers) if gpus is None else machine_named(gpus, read_evidence(results))


def _job(options: Mapping[str, Any], workers: int) -> Job:
    """The job of the options, its global batch that of all workers. Raises JobError."""
    values = job_values(options)
    weak = values.pop("scaling", "strong") == "weak"
    if weak and "global_batch" in values:
        values["global_batch"] *= workers
    share_evenly(values, workers)
    # Any engine of several workers: the job is only described, not started.
    job = Job.from_dict({**values, "backend": "ddp" if workers > 1 else "single", "slots": workers, "eval_samples": -1})
    return job.validate()


def _folder(results: Path, job: Job, workers: int) -> Path:
    """Where duels of this question are recorded: a folder of its own. Raises JobError where nothing can be written."""
    from core_model.user_job.source import label_of
    from harness.records.run_folder import check_writable

    told = json.dumps(job.with_(study="scratch", run="").to_dict(), sort_keys=True)
    name = re.sub(r"[^a-z0-9]+", "-", label_of(job.preset).lower()).strip("-")
    folder = results / f"recommend-{name}-w{workers}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"
    check_writable(folder)
    return folder


def _score(results: Path) -> None:
    from harness.experiments.recommend.scores_record import FOLDER, NAME, write_scores
    from harness.publish.recommend_block import fill

    write_scores(results, tell)
    click.echo(str(results / FOLDER / NAME))
    page = results.parent / "docs" / "recommend.md"
    if page.is_file() and fill(page, results):
        click.echo(str(page))
