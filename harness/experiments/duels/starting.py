"""How the contenders of a duel are started: all forked from one process where that can be, else each by its engine's
own launcher. Either way the start is supervised in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import mpi.process
from harness.common import packed_json
from harness.experiments.duels.rank_environment import FORKED
from harness.experiments.trainings.cells import Cell
from harness.experiments.trainings.launch import launch_of, train_cells
from harness.job.declaration import Job
from harness.launch.preflight import launcher_of
from mpi import hostfile

FAILED = "failed"  # file of the fork server that names the contender that failed first, by its number
Reasons = dict[int, str]  # number of a contender -> why it failed; -1: the process that forks them


@dataclass(frozen=True, kw_only=True)
class Side:
    """A contender: the job that all sides share but for this one's batch, its cell, the folder of its files."""

    base: Job
    cell: Cell
    folder: Path

    @property
    def job(self) -> Job:
        """The job as this side trains it."""
        return self.cell.job(self.base)


def why_not_forked(jobs: Sequence[Job]) -> str:
    """Why the ranks of `jobs` cannot be forked; "" where they can. Model and data must be those of the first job."""
    import torch

    from core_model.user_job.source import source_of

    first = jobs[0]
    reasons = {
        "they use GPUs": first.device != "cpu" and torch.cuda.is_available(),
        "the job is the user's own": source_of(first.preset) is not None,
        "a launcher was asked for": any(launcher_of(job) not in FORKED for job in jobs),
        "they train different models": len({_what(job) for job in jobs}) > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _what(job: Job) -> str:
    """What the job trains on what: all of it but how it is trained."""
    how = ("backend", "engine", "slots", "global_batch", "accumulation", "clip_norm", "precision_mode")
    return json.dumps({key: value for key, value in job.to_dict().items() if key not in how}, sort_keys=True)


def start(pool: ProcessPoolExecutor, sides: Sequence[Side], scratch: Path, *, forked: bool) -> list[Future[Reasons]]:
    """Starts `sides`; each future is done when the ranks that it supervises have ended."""
    if forked:
        return [pool.submit(_forked, list(sides), scratch)]
    return [pool.submit(_launched, index, side) for index, side in enumerate(sides)]


def _launched(index: int, side: Side) -> Reasons:
    """In a process of its own: one contender's launch to its end."""
    _end_with_parent()
    found = train_cells(side.base, [side.cell], side.folder, module="harness.experiments.duels.worker")
    return dict(zip([index], found.values(), strict=False))


def _forked(sides: Sequence[Side], scratch: Path) -> Reasons:
    """In a process of its own: the fork server to its end."""
    _end_with_parent()
    first = sides[0].base
    job = first.with_(backend="single", engine={}, nodes=1, slots=1, launcher="auto")
    with tempfile.TemporaryDirectory(prefix="harness-fork-") as folder:
        launch = launch_of(job, _argv(sides, scratch), hostfile.local(1), folder)
        limit = first.time_limit_s or None
        outcome = mpi.process.supervise(launch, log_path=scratch / "log.txt", timeout=limit, limit_name="--time-limit")
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.ok:
        return {}
    failed = scratch / FAILED
    return {int(failed.read_text()) if failed.exists() else -1: outcome.reason}


def _argv(sides: Sequence[Side], out: Path) -> list[str]:
    """The command that starts `sides`, and writes OUT/failed where one fails."""
    packed = packed_json.pack(
        [{"base": side.base.to_dict(), "cell": asdict(side.cell), "folder": str(side.folder)} for side in sides]
    )
    return [sys.executable, "-m", "harness.experiments.duels.fork_server", packed, str(out)]


def _end_with_parent() -> None:
    """When the process that began the duel is gone, this one and what it supervises end: nobody would wake stopped
    ranks."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
