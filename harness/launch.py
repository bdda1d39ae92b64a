"""The launching side of a job: checks it, claims its folder, starts the launcher, watches, and seals the record.

`run_job` never raises for a job that fails while running: whatever happens, the run's folder ends with a result.json
that says ok or failed and why. It raises JobError (and its kin) only for what is wrong before anything is started.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

import mpi.launch
import mpi.network
import mpi.process
from harness import records
from harness.ending import end_lines
from harness.folders import claim_run_folder
from harness.follow import Tail
from harness.hosts import find_hostfile, hosts_of
from harness.job import Job, JobError
from harness.marks import LogPart, first_mark, is_consequence, silent_ranks
from harness.output import Progress
from harness.packed import pack
from harness.preflight import launcher_of, preflight, start_note
from harness.recorded import SHARED_LOG, RecordedRun
from harness.turns import NobodyConductsError, Stop, Turn
from mpi.launchers.base import Launch

ROOT = Path(__file__).resolve().parent.parent
WORKER = ROOT / "harness" / "run.py"
DAY_S = 86400.0
# Held while a job runs and given back for its end: result.json can be written on a disk that has filled up meanwhile.
_ROOM, _ROOM_BYTES = ".room", 1 << 16


def launch_of(job: Job, folder: Path, scratch: Path, launcher_args: Sequence[str] = ()) -> Launch:
    """The launch command of a job whose run folder is `folder`. Pure but for looking up the network."""
    return _launch(job, ["--job-b64", pack(job.to_dict()), "--run-dir", str(folder)], scratch, launcher_args)


def _launch(
    job: Job,
    arguments: Sequence[str],
    scratch: Path,
    launcher_args: Sequence[str] = (),
    network: mpi.network.Network | None = None,
) -> Launch:
    """The command that starts workers with `arguments` as `job` wants them started. network: where it need not be
    looked up."""
    hosts = hosts_of(job)
    launcher = launcher_of(job)
    watched: Path | str = "" if job.elastic is None else find_hostfile(job.hostfile)
    network = network or mpi.network.find([host.name for host in hosts])
    tag = mpi.launch.new_tag()
    environ = dict(os.environ)
    if job.device == "cpu":  # deepspeed would start a worker for each device that is named
        environ.pop("CUDA_VISIBLE_DEVICES", None)
    return mpi.launch.command(
        launcher,
        [sys.executable, str(WORKER), *arguments, "--tag", tag],
        hosts,
        environ=environ,
        scratch=scratch,
        network=network,
        master_port=mpi.network.free_port(network.address),
        cwd=ROOT,
        threads=job.threads,
        extra=launcher_args,
        start_timeout=int(min(120, job.timeout_s)),
        operation_timeout=int(job.timeout_s),
        tag=tag,
        elastic=job.elastic,
        watched=watched,
    )


def describe(job: Job, results: Path, launcher_args: Sequence[str] = ()) -> str:
    """What --dry-run prints: shell text that starts the same job. The hosts need not be known here."""
    folder, scratch = results / job.study / (job.run or job.default_run_name()), Path("/tmp/harness-launch")
    job = preflight(job)
    network = mpi.network.expected([host.name for host in hosts_of(job)])
    note = f"# {network.note}\n" if network.note else ""
    if not job.tune_steps:
        arguments = ["--job-b64", pack(job.to_dict()), "--run-dir", str(folder)]
        return note + mpi.launch.render(_launch(job, arguments, scratch, launcher_args, network))
    from harness import tuning

    arguments = ["--job-b64", pack(job.to_dict()), "--tune-log", str(folder / tuning.LOG)]
    phase = mpi.launch.render(_launch(job, arguments, scratch, launcher_args, network))
    return f"{note}{phase}\n# ... and then the run, fixed to what {folder / tuning.FILE} says"


def run_job(
    job: Job,
    results: Path,
    *,
    launcher_args: Sequence[str] = (),
    show: bool = False,
    limit_s: float = DAY_S,
    on_rows: Callable[[list[dict[str, Any]]], None] | None = None,
    stop: Stop | None = None,
) -> Path:
    """Runs `job` under its launcher and returns the run's folder, whose result.json says how it ended.

    show: progress with the time left on stderr. limit_s: the longest the whole job may take. on_rows: gets new rows of
    steps.jsonl while the job runs. stop: interrupts it when it is given. Raises only for what is wrong before the
    start.
    """
    job = preflight(job)
    with tempfile.TemporaryDirectory(prefix="harness-launch-") as scratch:
        # Everything that can be refused is refused before the folder is claimed: nothing half-written.
        probe = launch_of(job, results, Path(scratch), launcher_args)
        missing = mpi.launch.missing_program(probe)
        if missing:
            raise JobError(missing)
        if show and (note := mpi.launch.unread(probe)):
            click.echo(f"note: {note}", err=True)
        job, folder = claim_run_folder(job, results)
        arguments = ["--job-b64", pack(job.to_dict()), "--run-dir", str(folder)]
        launch = _launch(job, arguments, Path(scratch), launcher_args)
        started = time.time()
        records.write_json(
            folder / records.RESULT, {"status": "running", "started": _iso(started), "launcher": launch.launcher}
        )
        (folder / _ROOM).write_bytes(bytes(_ROOM_BYTES))
        log = LogPart(folder / records.LOG)
        if job.tune_steps:
            outcome, tuned = _tune(job, folder, Path(scratch), launcher_args, limit_s, show, stop)
            if not outcome.ok:
                _seal(job, folder, launch, outcome, started, log)
                return folder
            launch = _launch(job, [*arguments, "--tuned", pack(tuned)], Path(scratch), launcher_args)
        watcher = _Watcher(job, folder, show, on_rows)
        if show and (note := start_note(job)):
            click.echo(note, err=True)

        def poll() -> None:
            if stop is not None:
                stop.interrupt()
            watcher.look()

        outcome = mpi.process.supervise(launch, log_path=folder / records.LOG, timeout=limit_s, on_poll=poll)
        watcher.close()
    _seal(job, folder, launch, outcome, started, log)
    return folder


def _tune(
    job: Job, folder: Path, scratch: Path, launcher_args: Sequence[str], limit_s: float, show: bool, stop: Stop | None
) -> tuple[mpi.process.Outcome, dict[str, Any]]:
    """Runs the job's tuning phase: how it ended, and what it found."""
    from harness import tuning

    if show:
        click.echo(f"tuning Horovod over at most {job.tune_steps} steps", err=True)
    arguments = ["--job-b64", pack(job.to_dict()), "--tune-log", str(folder / tuning.LOG)]
    launch = _launch(job, arguments, scratch, launcher_args)
    poll = None if stop is None else stop.interrupt
    outcome = mpi.process.supervise(launch, log_path=folder / records.LOG, timeout=limit_s, on_poll=poll)
    if not outcome.ok:
        return outcome, {}
    found, text = tuning.found_in(folder)
    if show:
        click.echo(text, err=True)
    return outcome, found


def process_key(job: Job) -> tuple[Any, ...]:
    """Equal for jobs that can use the same processes one after another. PyTorch's own engines go together; Horovod
    reads its settings once a process, so only jobs with the same ones do, and cores are bound once; an elastic job, and
    one with a tuning phase, starts processes in a way of its own."""
    engine = "torch" if job.backend in ("ddp", "fsdp2") else job.backend
    settings = str((sorted(job.engine.items()), job.timeout_s)) if job.backend == "horovod" else ""
    alone = job.run if job.elastic or job.tune_steps else ""
    return (engine, job.launcher, job.nodes, job.slots, job.hostfile, job.bind_cores, settings, alone)


def run_jobs(
    jobs: Sequence[Job],
    results: Path,
    *,
    show: bool = False,
    limit_s: float = DAY_S,
    turns: Mapping[str, Turn] | None = None,
) -> list[Path]:
    """Runs `jobs`, which can use the same processes (`process_key`), one by one in ONE launch; returns their folders.

    Saves the start of the processes for each but the first. A job that fails ends the processes; those after it are
    recorded as failed and not started. turns: each job's turn (by run name), which it waits for. Raises only for what
    is wrong before the start.
    """
    jobs = [preflight(job) for job in jobs]
    first = jobs[0]
    if first.nodes > 1 or len({process_key(job) for job in jobs}) > 1:
        raise JobError(
            "jobs that share processes need the same engine, settings read at start, launcher and workers, on this "
            "machine, and no elastic run or tuning phase: run them apart"
        )
    with tempfile.TemporaryDirectory(prefix="harness-launch-") as scratch:
        file = Path(scratch) / "jobs.json"
        launch = _launch(first, ["--jobs-file", str(file)], Path(scratch))
        if missing := mpi.launch.missing_program(launch):
            raise JobError(missing)
        claimed = [claim_run_folder(job, results) for job in jobs]
        for _, folder in claimed:  # so that a run which never began, because all of this was killed, is due again
            records.write_json(folder / records.RESULT, {"status": "running"})
        listed = [{"job": job.to_dict(), "run_dir": str(folder)} for job, folder in claimed]
        if turns is not None:
            listed = [item | {"turn": turns[job.run].to_dict()} for item, job in zip(listed, jobs, strict=True)]
        file.write_text(json.dumps(listed))
        started = time.time()
        log = LogPart(claimed[0][1] / records.LOG)
        poll = None if turns is None else turns[first.run].stop.interrupt
        outcome = mpi.process.supervise(launch, log_path=log.path, timeout=limit_s, on_poll=poll)
    for job, folder in claimed:
        if folder != log.path.parent:
            (folder / records.LOG).write_text(f"{SHARED_LOG}../{log.path.parent.name}/{records.LOG}\n")
        # how the launch ended says nothing of a run that others followed
        how = (
            outcome
            if folder == claimed[-1][1] or not RecordedRun(folder).ok
            else replace(outcome, returncode=0, reason="")
        )
        _seal(job, folder, launch, how, started, log)
        if show:
            click.echo("\n".join(end_lines(folder)), err=True)
    return [folder for _, folder in claimed]


def report_end(folder: Path) -> int:
    """Says how the run ended and returns the exit code: 0 ok, 1 failed, 2 the user's mistake, 130 interrupted."""
    result = records.read_json(folder / records.RESULT)
    failed = result["status"] != "ok"
    click.echo("\n".join(end_lines(folder)), err=failed)
    return int(result.get("exit_code", 1)) if failed else 0


class _Watcher:
    """Follows steps.jsonl of a running job."""

    def __init__(
        self, job: Job, folder: Path, show: bool, on_rows: Callable[[list[dict[str, Any]]], None] | None
    ) -> None:
        self._job, self._steps, self._on_rows = job, Tail(folder / records.STEPS), on_rows
        self._progress = Progress(sys.stderr, total=job.steps) if show else None

    def look(self) -> None:
        """Hands on what was recorded since the last call."""
        rows = self._steps.read()
        if rows and self._on_rows is not None:
            self._on_rows(rows)
        if rows and self._progress is not None:
            self._progress.tell(rows[-1], self._job.global_batch)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()


def _seal(job: Job, folder: Path, launch: Launch, outcome: mpi.process.Outcome, started: float, log: LogPart) -> None:
    """`_tell_the_truth`, then the log without this machine's folders: records are published."""
    _tell_the_truth(job, folder, launch, outcome, started, log)
    records.hide_machine(folder / records.LOG, folder.parent.parent)


def _tell_the_truth(
    job: Job, folder: Path, launch: Launch, outcome: mpi.process.Outcome, started: float, log: LogPart
) -> None:
    """Makes sure that result.json tells the truth about a job that did not end by itself and well."""
    (folder / _ROOM).unlink(missing_ok=True)
    try:
        result = records.read_json(folder / records.RESULT)
    except records.RecordError:
        result = {"status": "running"}
    result.pop("schema", None)
    if result["status"] == "ok" and outcome.ok:
        return
    mark = first_mark(log.lines())
    if result["status"] == "ok":  # every rank had finished; only the launcher's end went wrong
        result.setdefault("warnings", []).append(f"the launcher ended with {outcome.returncode}: {outcome.reason}")
        records.write_json(folder / records.RESULT, result)
        return
    interrupted = outcome.interrupted
    if mark is not None and not interrupted:
        rank, user, text = mark
        reason, code = f"rank {rank}: {text}", 2 if user else 1
        if text.startswith(NobodyConductsError.__name__):  # it had not begun: no fault of this run's
            code = mpi.process.CTRL_C
    else:
        reason, code = outcome.reason or "the job ended without a result", outcome.returncode if interrupted else 1
        silent = [] if interrupted else silent_ranks(log.lines(), job.world_size)
        if silent and "SIG" not in reason and is_consequence(reason):
            names = ", ".join(map(str, silent))
            reason = f"rank {names} died without a message (killed, or out of memory?); the others noticed: {reason}"
    records.write_json(
        folder / records.RESULT,
        {
            **result,
            "status": "failed",
            "reason": reason,
            "exit_code": code,
            "launcher_exit": outcome.returncode,
            "started": _iso(started),
            "ended": _iso(time.time()),
            "wall_s": time.time() - started,
            "world_size": job.world_size,
            "launcher": launch.launcher,
            "orphans": outcome.orphans,
            "tail": list(outcome.tail)[-10:],
        },
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
