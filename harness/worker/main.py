"""One rank of a job, whoever launched it: finds out what to do, does it (`harness.worker.training_run`) and says how it
ended.

A failing rank prints one marker line that its supervisor finds in log.txt, and leaves at once (``os._exit``): a clean
interpreter exit could wait for collectives that the other ranks never join.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from backends.process.exit import leave
from backends.process.placement import placed
from backends.process.rank import ProcessFacts, detect
from core_model.user_job.source import source_of
from harness.common.packed_json import unpack
from harness.job.declaration import Job, JobError
from harness.job.foreign_options import explain
from harness.job.measured_defaults import with_measured
from harness.job.options import job_options, job_values, results_root, share_evenly
from harness.protocol.console import Output
from harness.protocol.failure_marks import is_consequence
from harness.protocol.failure_report import print_failure, write_failure_mark
from harness.protocol.terminated import TerminatedError, as_ended, begin_to_end, on_sigterm
from harness.protocol.turns import CoordinatorGoneError, Turn
from harness.records.locks import release
from harness.worker.training_run import Run
from mpi import private
from mpi.errors import UserError


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@job_options
@click.option("--results", type=click.Path(), help="Results folder (default: the repository's results/).")
@click.option("--job-b64", hidden=True, help="The whole job, from `harness run`.")
@click.option("--run-dir", hidden=True, type=click.Path(), help="Claimed run folder, from `harness run`.")
@click.option("--jobs-file", hidden=True, type=click.Path(), help="Several jobs for the same processes, one by one.")
@click.option("--tune-log", hidden=True, type=click.Path(), help="Only the tuning phase: Horovod's log of it.")
@click.option("--tuned", hidden=True, help="What the tuning phase found, JSON in base64.")
@click.option("--tag", hidden=True, help="Unique text by which a supervisor finds this job's processes.")
@click.option(
    *("--local_rank", "--local-rank"), type=int, hidden=True, help="From deepspeed and torch.distributed.launch."
)
def worker(
    results: str | None,
    job_b64: str | None,
    run_dir: str | None,
    jobs_file: str | None,
    tune_log: str | None,
    tuned: str | None,
    tag: str | None,
    local_rank: int | None,
    **options: Any,
) -> None:
    """Train one job as a worker of horovodrun, mpirun, deepspeed, torchrun or srun (alone: one worker)."""
    facts = detect(local_rank=local_rank)
    # The launcher's own exit codes say nothing of ours: `leave` hands ours over without waiting for anybody.
    if jobs_file:
        listed = json.loads(Path(jobs_file).read_text())
        _bind_cores(Job.from_dict(listed[0]["job"]), facts)
        leave(_one_by_one(listed, facts, results_root(results)))
    if not job_b64:
        leave(_by_hand(options, facts, results))
    job = Job.from_dict(unpack(job_b64))
    _bind_cores(job, facts)
    if tune_log:
        from harness.worker.horovod_autotune import tune_and_leave

        tune_and_leave(job, facts, Path(tune_log))
    output, folder = Output(rank=facts.rank, redirect=False), Path(run_dir) if run_dir else None
    leave(_guarded(job, facts, output, results_root(results), folder, tuned=unpack(tuned) if tuned else None))


def main() -> None:
    """Entry point of harness/run.py."""
    private.take()
    try:
        worker.main(standalone_mode=False)
    except click.ClickException as error:
        explain(error).show()
        sys.exit(2)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        if not isinstance(error, UserError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _bind_cores(job: Job, facts: ProcessFacts) -> None:
    if job.bind_cores:
        from harness.worker.cpu_binding import bind

        bind(facts)


def _by_hand(options: dict[str, Any], facts: ProcessFacts, results: str | None) -> int:
    """Runs the job of a rank that no supervisor has started; returns its exit code."""
    output = Output(rank=facts.rank, redirect=True)
    on_sigterm(lambda error: leave(_end(error, facts, output)))
    try:
        facts = placed(facts)
        job = _job_under_launcher(options, facts)
        _bind_cores(job, facts)
    except BaseException as raised:
        return _fail(raised, facts, output)
    return _guarded(job, facts, output, results_root(results), None)


def _job_under_launcher(options: dict[str, Any], facts: ProcessFacts) -> Job:
    """The job whose nodes and slots are what the launcher really started."""
    values = job_values(options)
    slots = max(1, min(facts.local_size, facts.world_size))
    if facts.world_size % slots:
        slots = 1  # an uneven placement: recorded as one worker a node, the environment record has the truth
    values |= {"nodes": facts.world_size // slots, "slots": slots, "launcher": facts.launcher}
    if os.environ.get("HOROVOD_ELASTIC") == "1":
        from harness.worker.elastic import job_by_hand

        return job_by_hand(values, facts.world_size)
    share_evenly(values, facts.world_size)
    job = Job.from_dict(with_measured(values)).validate()
    if job.time_limit_s:
        raise JobError("--time-limit ends a run from outside: use `harness run`, or the launcher's own limit")
    if job.elastic is not None or job.tune_steps:
        flags = "--min-np and --max-np" if job.elastic else "--autotune"
        raise JobError(f"{flags} decide how processes are started: use `harness run`, or horovodrun's own options")
    return job


def _one_by_one(listed: list[dict[str, Any]], facts: ProcessFacts, results: Path) -> int:
    """Runs several jobs in this process group; the engine joins it once. The first failure ends the process: what comes
    after it could not be trusted to start from a clean state."""
    output = Output(rank=facts.rank, redirect=False)
    for number, item in enumerate(listed):
        job, last = Job.from_dict(item["job"]), number + 1 == len(listed)
        extra: dict[str, Any] = {}
        turn = Turn.from_dict(item["turn"]) if "turn" in item else None
        if turn is not None:
            if number == 0:
                _prepare(job, facts)
                turn.ready(facts.rank)
            try:
                turn.wait()
            except (CoordinatorGoneError, OSError) as error:
                write_failure_mark(facts.rank, _one_line(error), user=False)
                return 1
            extra["waiting_processes"] = turn.waiting
        pids = [turn.conductor] if turn is not None else []
        folder = Path(item["run_dir"])
        code = _guarded(job, facts, output, results, folder, last=last, extra=extra, study_pids=pids)
        if code:
            return code
        _release_memory()
        if turn is not None and facts.rank == 0:
            turn.end()
    return 0


def _prepare(job: Job, facts: ProcessFacts) -> None:
    """What a start spends before there is a job to run: imports, here and in the loader's processes, on a GPU its
    context and libraries, and the start weights where they are kept."""
    import torch

    import backends

    if job.loader_workers:
        from core_model.data.batches import start_server

        start_server()
    for name in ("core_model.training.trainer", "harness.worker.model_and_data", "harness.instruments.step_timing"):
        importlib.import_module(name)
    backends.load(job.backend).availability()
    if torch.cuda.is_available() and job.device != "cpu":
        from core_model.build import draw_ahead

        here = torch.device("cuda", facts.local_rank)
        weights = torch.zeros(64, 64, device=here, requires_grad=True)
        (weights @ weights).sum().backward()
        if source_of(job.preset) is None:
            draw_ahead(job.preset, overrides=dict(job.model), seed=job.seed)


def _release_memory() -> None:
    """Before the next job of this process: its peaks must be its own."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _guarded(
    job: Job,
    facts: ProcessFacts,
    output: Output,
    results: Path,
    run_dir: Path | None,
    *,
    last: bool = True,
    tuned: dict[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    study_pids: Sequence[int] = (),
) -> int:
    """Runs the job; turns whatever goes wrong into a marker line, a failed result and an exit code. last: the process
    group is not needed any more. extra: further parts of its result. study_pids: other processes of the same study."""
    run = _run_of(job)(job, facts, output, results, run_dir)
    on_sigterm(lambda error: leave(_end(error, facts, output, run)))
    run.tuned = tuned
    run.recording.extra |= extra or {}
    run.study_pids = study_pids
    try:
        run.work(leave=last)
    except BaseException as raised:
        return _fail(raised, facts, output, run)
    _close(output, run)
    return 0


def _fail(raised: BaseException, facts: ProcessFacts, output: Output, run: Run | None = None) -> int:
    """Says and records what ended this rank, unless another thread does; returns its exit code."""
    if not begin_to_end():
        time.sleep(60)  # the other thread ends this process
    return _end(as_ended(raised), facts, output, run)


def _end(error: BaseException, facts: ProcessFacts, output: Output, run: Run | None = None) -> int:
    user = isinstance(error, UserError)
    text = _one_line(error)
    if not user and not isinstance(error, (KeyboardInterrupt, TerminatedError)):
        import traceback

        traceback.print_exception(error)
    write_failure_mark(facts.rank, text, user=user)
    recorded = _exit_code(error)
    if run is not None:
        other = output.first_cause() if is_consequence(text) else None
        # Nobody supervises a rank that was started by hand: the record is to say who failed first.
        run.recording.fail(*((text, recorded) if other is None else (other[2], 2 if other[1] else 1, other[0])))
    print_failure(output, facts, text, user=user)
    _close(output, run)
    return 1 if isinstance(error, TerminatedError) else recorded


def _close(output: Output, run: Run | None) -> None:
    if run is not None and run.recording.folder is not None:
        release(run.recording.folder)  # where no supervisor holds it
    output.close()
    sys.stdout.flush()
    sys.stderr.flush()


def _run_of(job: Job) -> type[Run]:
    """The class that runs the job: an elastic one trains otherwise."""
    if job.elastic is None:
        return Run
    from harness.worker.elastic import ElasticRun

    return ElasticRun


def _exit_code(error: BaseException) -> int:
    """For the record of a run that nobody supervises any more: one that was ended from outside is due again."""
    if isinstance(error, UserError):
        return 2
    return 130 if isinstance(error, KeyboardInterrupt) else 143 if isinstance(error, TerminatedError) else 1


def _one_line(error: BaseException) -> str:
    text = private.mask(" ".join(str(error).split())) or "no message"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:500]}"
