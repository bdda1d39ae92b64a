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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_S = 0.02
START_LIMIT_S = 900.0  # after which processes that have not started are ended: no run is timed beside a start
CONDUCTOR, STOP = "conductor", "stop"


class CoordinatorGoneError(RuntimeError):
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
        return Stop(self.folder / STOP)

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

    @property
    def conductor(self) -> int:
        """Process id of the one that gives out the turns."""
        return int((self.folder / CONDUCTOR).read_text())

    def wait(self) -> None:
        """Returns when it is this run's turn. Raises CoordinatorGoneError where it never will be."""
        conductor = self.conductor
        while not self._begins.exists():
            if not _alive(conductor):
                raise CoordinatorGoneError(f"the process that started this study is gone, {self.name} had not begun")
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


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
