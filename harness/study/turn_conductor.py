"""The conducting side of a study whose engines take turns (`harness.protocol.turns`): starts all, gives out the
turns."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.job.declaration import Job
from harness.protocol.turns import CONDUCTOR, POLL_S, START_LIMIT_S, STOP, Stop, Turn
from mpi.process import signals_ignored

_SAY_AFTER_S = 30.0  # of waiting for processes that start


def take_turns(
    jobs: Sequence[Job],
    groups: Sequence[Sequence[Job]],
    results: Path,
    *,
    on_turn: Callable[[int, Job], None],
    on_end: Callable[[Job, Path], None],
    on_wait: Callable[[list[str]], None] | None = None,
) -> None:
    """Runs `jobs` in their order by processes that start once for each of `groups` (jobs with one `process_key`). The
    first begins when all processes have started; those that have not after START_LIMIT_S are ended before, and their
    runs recorded as failed: none is ever timed beside processes that start.

    on_wait: gets the names of the runs whose processes are waited for, once, when that takes long. on_turn: gets each
    job and its number when it begins. on_end: gets each job and its folder when all processes have ended, so that its
    record is final. A run that fails ends the processes of its group; what is left of that group is recorded as failed,
    the other groups go on. After an interrupt all processes are ended, then KeyboardInterrupt is raised.
    """
    processes = sum(group[0].world_size for group in groups)
    interrupted = False
    with TemporaryDirectory(prefix="harness-turns-") as scratch, supervisors(len(groups)) as pool:
        folder = Path(scratch)
        (folder / CONDUCTOR).write_text(str(os.getpid()))
        turns = {job.run: Turn(folder=folder, name=job.run, waiting=processes - job.world_size) for job in jobs}
        started: dict[Future[list[Path]], Sequence[Job]] = {}
        try:
            for group in groups:
                started[pool.submit(_run_group, list(group), results, turns)] = group
            by_job = {job.run: future for future, group in started.items() for job in group}
            starting = [(turns[group[0].run], group[0].world_size, future) for future, group in started.items()]
            until_ready(starting, on_wait)
            for number, job in enumerate(jobs):
                on_turn(number, job)
                _one_turn(turns[job.run], by_job[job.run])
            for future in started:
                future.result()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            with signals_ignored():  # the same Ctrl-C may come twice: to this process, and to its group
                Stop(folder / STOP).give()
                pool.shutdown(cancel_futures=True)  # which, unlike wait(), also ends where a supervisor died starting
    for future, group in started.items():
        if future.cancelled():
            continue
        if not (interrupted and isinstance(future.exception(), BrokenProcessPool)):  # ended while it was starting
            for job, place in zip(group, future.result(), strict=True):
                on_end(job, place)
    if interrupted:
        raise KeyboardInterrupt


def supervisors(count: int) -> ProcessPoolExecutor:
    """Processes that supervise a launch each. A Ctrl-C ends what they supervise, never an idle one of them: the pool
    would take that for a crash and end the others."""
    return ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), max_tasks_per_child=1, initializer=ignore_interrupts
    )


def ignore_interrupts() -> None:
    """For a process whose work handles interrupts itself (`mpi.process.supervise`), outside that work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def until_ready(
    starting: Sequence[tuple[Turn, int, Future[list[Path]]]], on_wait: Callable[[list[str]], None] | None = None
) -> None:
    """Until every group's processes have started, or ended. Those that have not started after START_LIMIT_S are told to
    end, and their end is waited for."""
    began, said = time.monotonic(), on_wait is None
    while late := [(turn, future) for turn, size, future in starting if not (turn.is_ready(size) or future.done())]:
        waited = time.monotonic() - began
        if waited > START_LIMIT_S:
            for turn, _ in late:
                turn.give_up()
            wait([future for _, future in late])  # their supervisors' own waits have limits
            return
        if waited > _SAY_AFTER_S and not said and on_wait is not None:
            said = True
            on_wait([turn.name for turn, _ in late])
        time.sleep(POLL_S)


def _one_turn(turn: Turn, processes: Future[list[Path]]) -> None:
    """Until the run has ended, or its processes have."""
    turn.begin()
    while not turn.is_over and not processes.done():
        time.sleep(POLL_S)


def _run_group(group: list[Job], results: Path, turns: Mapping[str, Turn]) -> list[Path]:
    from harness.launch import run

    return run.run_jobs(group, results, turns=turns)
