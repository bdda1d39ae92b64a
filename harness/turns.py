"""Engines that take turns: the processes of every engine and worker count of a study start once, all at the same time,
and wait; each run begins when it is its turn.

A start costs 20 to 40 s on a GPU machine, a run of a speed study 5 s. Started anew for each run, three repeats of seven
engines at two worker counts spend twelve minutes starting; taking turns, one. The order of the runs stays the study's
(interleaved, turning from repeat to repeat), and one run is under way at a time. What the others keep meanwhile is
memory (a CUDA context, a process group) and Horovod's background thread, which looks for work every millisecond; the
result says how many processes waited beside a run.

The two sides speak by files in one folder on this machine: ``ready-NAME-RANK`` is made by each process that has
imported what its first run needs, so that no start runs beside a run that is timed; ``begin-NAME`` by the conductor,
``end-NAME`` by the run's rank 0, ``late-NAME`` by a conductor that waits no longer for a start, ``stop`` by an
interrupted one; ``conductor`` holds the process id without which
nobody need wait.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.job import Job
from mpi.process import signals_ignored

POLL_S = 0.02
START_LIMIT_S = 900.0  # after which processes that have not started are ended: no run is timed beside a start
_SAY_AFTER_S = 30.0  # of waiting for them
_CONDUCTOR, _STOP = "conductor", "stop"


class NobodyConductsError(RuntimeError):
    """The process that gives out the turns is gone."""


@dataclass(frozen=True)
class Stop:
    """The word, by a file, that supervisors in other processes shall end what they run and begin nothing more."""

    file: Path

    def give(self) -> None:
        self.file.touch()

    @property
    def is_given(self) -> bool:
        return self.file.exists()

    def interrupt(self) -> None:
        """Ctrl-C to this process where it is given."""
        if self.is_given:
            os.kill(os.getpid(), signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One run's place in the order. waiting: the other processes that wait meanwhile."""

    folder: Path
    name: str
    waiting: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Turn:
        return cls(folder=Path(values["folder"]), name=str(values["name"]), waiting=int(values["waiting"]))

    def to_dict(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "name": self.name, "waiting": self.waiting}

    @property
    def stop(self) -> Stop:
        """The conductor's word to all of the study's supervisors."""
        return Stop(self.folder / _STOP)

    def give_up(self) -> None:
        """The conductor's word that this run's processes have taken too long to start: they are to be ended."""
        self._given_up.touch()

    @property
    def is_given_up(self) -> bool:
        return self._given_up.exists()

    @property
    def _given_up(self) -> Path:
        return self.folder / f"late-{self.name}"

    @property
    def _begins(self) -> Path:
        return self.folder / f"begin-{self.name}"

    @property
    def _ended(self) -> Path:
        return self.folder / f"end-{self.name}"

    def ready(self, rank: int) -> None:
        """This rank's word that it has started and can begin."""
        (self.folder / f"ready-{self.name}-{rank}").touch()

    def is_ready(self, processes: int) -> bool:
        """Whether all ranks of 0 .. processes - 1 can begin."""
        return all((self.folder / f"ready-{self.name}-{rank}").exists() for rank in range(processes))

    def wait(self) -> None:
        """Returns when it is this run's turn. Raises NobodyConductsError where it never will be."""
        conductor = int((self.folder / _CONDUCTOR).read_text())
        while not self._begins.exists():
            if not _alive(conductor):
                raise NobodyConductsError(f"the process that started this study is gone, {self.name} had not begun")
            time.sleep(POLL_S)

    def begin(self) -> None:
        """The conductor's word that the run may begin."""
        self._begins.touch()

    def end(self) -> None:
        """The run's word that the next one may begin."""
        self._ended.touch()

    @property
    def is_over(self) -> bool:
        return self._ended.exists()


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
        (folder / _CONDUCTOR).write_text(str(os.getpid()))
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
                Stop(folder / _STOP).give()
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
    from harness import launch

    return launch.run_jobs(group, results, turns=turns)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
