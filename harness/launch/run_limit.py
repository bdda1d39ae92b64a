"""The time limit of a run (`Job.time_limit_s`), which is not the limit of one wait (`Job.timeout_s`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from harness.job.declaration import Job
from harness.records.record_files import RESULT, RecordError, read_json

_LOOK_S = 0.2  # between two looks into the record of the run that is under way


class RunLimit:
    """The limit of a run that began at `began` (time.monotonic)."""

    def __init__(self, job: Job, began: float) -> None:
        self._limit_s, self._began = job.time_limit_s, began

    def passed(self) -> str | None:
        """Why the run is to be ended now, one line; None before that."""
        if not self._limit_s or time.monotonic() - self._began < self._limit_s:
            return None
        return f"not finished after {self._limit_s:g} s: raise --time-limit, or leave it out, if it needs longer"


class RunningLimit:
    """The limits of runs that use the same processes one after another. Each counts from its own beginning, which its
    rank 0 records; waiting for its turn is none of its time."""

    def __init__(self, claimed: Sequence[tuple[Job, Path]]) -> None:
        self._left = [item for item in claimed if item[0].time_limit_s]
        self._current: RunLimit | None = None
        self._looked = float("-inf")

    def passed(self) -> str | None:
        if not self._left:
            return None
        if time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            self._look()
        return self._current.passed() if self._current is not None else None

    def _look(self) -> None:
        """Whether the next run has begun, and the one under way has ended."""
        job, folder = self._left[0]
        try:
            result = read_json(folder / RESULT)
        except RecordError:
            return
        if result.get("status") != "running":
            del self._left[0]
            self._current = None
        elif "started" in result and self._current is None:
            self._current = RunLimit(job, time.monotonic())
