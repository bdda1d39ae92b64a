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
from math import ceil
from pathlib import Path
from typing import Any

import mpi.launch
import mpi.network
import mpi.process
from harness.common.packed_json import pack
from harness.common.paths import PROJECT
from harness.job.declaration import Job, JobError
from harness.job.hosts import find_hostfile, hosts_of
from harness.launch.preflight import launcher_of, preflight, start_note
from harness.launch.run_limit import RunLimit, RunningLimit
from harness.launch.sealing import OpenRecord, signals_end
from harness.protocol.console import Progress, tell
from harness.protocol.run_summary import end_lines
from harness.protocol.turns import START_LIMIT_S, Stop, Turn
from harness.records.record_files import LOG, RESULT, STEPS, read_json
from harness.records.run_folder import claim_run_folder, claim_run_folders
from harness.records.tail import Tail
from mpi.launchers.base import Launch

WORKER = PROJECT / "harness" / "run.py"


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
        cwd=PROJECT,
        threads=job.threads,
        extra=launcher_args,
        start_timeout=ceil(min(120, job.timeout_s)),
        operation_timeout=ceil(job.timeout_s),
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
    from harness.worker import horovod_autotune

    arguments = ["--job-b64", pack(job.to_dict()), "--tune-log", str(folder / horovod_autotune.LOG)]
    phase = mpi.launch.render(_launch(job, arguments, scratch, launcher_args, network))
    return f"{note}{phase}\n# ... and then the run, fixed to what {folder / horovod_autotune.FILE} says"


def run_job(
    job: Job,
    results: Path,
    *,
    launcher_args: Sequence[str] = (),
    show: bool = False,
    on_rows: Callable[[list[dict[str, Any]]], None] | None = None,
    stop: Stop | None = None,
) -> Path:
    """Runs `job` under its launcher and returns the run's folder, whose result.json says how it ended.

    show: progress with the time left on stderr. on_rows: gets new rows of steps.jsonl while the job runs; an error of
    its own ends the job and is raised when the record says so. stop: interrupts it when it is given. Raises else only
    for what is wrong before the start.
    """
    job = preflight(job)
    with tempfile.TemporaryDirectory(prefix="harness-launch-") as scratch, signals_end():
        # Everything that can be refused is refused before the folder is claimed: nothing half-written.
        probe = launch_of(job, results, Path(scratch), launcher_args)
        missing = mpi.launch.missing_program(probe)
        if missing:
            raise JobError(missing)
        if show and (note := mpi.launch.unread(probe)):
            tell(f"note: {note}")
        job, folder = claim_run_folder(job, results)
        record = OpenRecord([(job, folder)], probe.launcher)
        with record.closing():
            record.open()
            record.outcome = _supervised(job, folder, Path(scratch), launcher_args, show, on_rows, stop)
    return folder


def _supervised(
    job: Job,
    folder: Path,
    scratch: Path,
    launcher_args: Sequence[str],
    show: bool,
    on_rows: Callable[[list[dict[str, Any]]], None] | None,
    stop: Stop | None,
) -> mpi.process.Outcome:
    """The tuning phase of a job that has one, then its run: how that ended."""
    began = time.monotonic()
    arguments = ["--job-b64", pack(job.to_dict()), "--run-dir", str(folder)]
    if job.tune_steps:
        outcome, tuned = _tune(job, folder, scratch, launcher_args, show, stop)
        if not outcome.ok:
            return outcome
        arguments += ["--tuned", pack(tuned)]
    launch = _launch(job, arguments, scratch, launcher_args)
    if show and (note := start_note(job)):
        tell(note)
    watcher = _Watcher(job, folder, show, on_rows)
    limit = RunLimit(job, began)

    def poll() -> str | None:
        if stop is not None:
            stop.interrupt()
        watcher.look()
        return limit.passed()

    try:
        return mpi.process.supervise(launch, log_path=folder / LOG, on_poll=poll)
    finally:
        watcher.close()


def _tune(
    job: Job, folder: Path, scratch: Path, launcher_args: Sequence[str], show: bool, stop: Stop | None
) -> tuple[mpi.process.Outcome, dict[str, Any]]:
    """Runs the job's tuning phase: how it ended, and what it found."""
    from harness.worker import horovod_autotune

    if show:
        tell(f"tuning Horovod over at most {job.tune_steps} steps")
    arguments = ["--job-b64", pack(job.to_dict()), "--tune-log", str(folder / horovod_autotune.LOG)]
    launch = _launch(job, arguments, scratch, launcher_args)
    limit = RunLimit(job, time.monotonic())

    def poll() -> str | None:
        if stop is not None:
            stop.interrupt()
        return limit.passed()

    outcome = mpi.process.supervise(launch, log_path=folder / LOG, on_poll=poll)
    if not outcome.ok:
        return outcome, {}
    found, text = horovod_autotune.found_in(folder)
    if show:
        tell(text)
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
    jobs: Sequence[Job], results: Path, *, show: bool = False, turns: Mapping[str, Turn] | None = None
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
    with tempfile.TemporaryDirectory(prefix="harness-launch-") as scratch, signals_end():
        file = Path(scratch) / "jobs.json"
        launch = _launch(first, ["--jobs-file", str(file)], Path(scratch))
        if missing := mpi.launch.missing_program(launch):
            raise JobError(missing)
        claimed = claim_run_folders(jobs, results)
        record = OpenRecord(claimed, launch.launcher)
        with record.closing():
            record.open(begun=False)
            listed = [{"job": job.to_dict(), "run_dir": str(folder)} for job, folder in claimed]
            if turns is not None:
                listed = [item | {"turn": turns[job.run].to_dict()} for item, job in zip(listed, jobs, strict=True)]
            file.write_text(json.dumps(listed))
            limit = RunningLimit(claimed)

            def poll() -> str | None:
                if turns is not None:
                    turns[first.run].stop.interrupt()
                    if turns[first.run].is_given_up:
                        return (
                            f"its processes had not started after {START_LIMIT_S:.0f} s: no run is timed beside a start"
                        )
                return limit.passed()

            record.outcome = mpi.process.supervise(launch, log_path=record.log.path, on_poll=poll)
    for _, folder in claimed:
        if show:
            tell("\n".join(end_lines(folder)))
    return [folder for _, folder in claimed]


def report_end(folder: Path) -> int:
    """Says how the run ended and returns the exit code: 0 ok, 1 failed, 2 the user's mistake, 130 interrupted."""
    result = read_json(folder / RESULT)
    failed = result["status"] != "ok"
    tell("\n".join(end_lines(folder)), err=failed)
    return int(result.get("exit_code", 1)) if failed else 0


class _Watcher:
    """Follows steps.jsonl of a running job."""

    def __init__(
        self, job: Job, folder: Path, show: bool, on_rows: Callable[[list[dict[str, Any]]], None] | None
    ) -> None:
        self._job, self._steps, self._on_rows = job, Tail(folder / STEPS), on_rows
        self._progress = Progress(sys.stderr, total=job.steps) if show else None

    def look(self) -> None:
        """Hands on what was recorded since the last call."""
        rows = self._steps.read()
        if rows and self._on_rows is not None:
            self._on_rows(rows)
        if rows and self._progress is not None:
            self._progress.tell(rows)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
