"""Who may speak where: engines and launchers to log.txt, the run's own progress to the screen.

A worker under `harness run` is already redirected by its supervisor. A worker started by hand (horovodrun, mpirun,
torchrun, deepspeed) redirects itself: file descriptors 1 and 2 go to a buffer file until the run folder is known and
to its log.txt from then on, also for output of C++ code; only rank 0 keeps a copy of the terminal.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from harness import words


def write_line(text: str, stream: IO[str]) -> None:
    """Writes one line in one piece.

    Without a buffer (PYTHONUNBUFFERED) print() sends the line's end by itself, and mpirun may put the line of another
    rank before it.
    """
    stream.write(text + "\n")
    stream.flush()


class Output:
    """Redirects this process's output. `screen` is the terminal for rank 0 of a hand-started job, else None."""

    def __init__(self, *, rank: int, redirect: bool) -> None:
        self.screen: IO[str] | None = None
        self._terminal: IO[str] | None = None
        self._buffer: Path | None = None
        if not redirect:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self._terminal = os.fdopen(os.dup(2), "w", buffering=1)
        if rank == 0:
            self.screen = self._terminal
        handle, name = tempfile.mkstemp(prefix="harness-log-")
        self._buffer = Path(name)
        self._redirect(handle)

    def attach(self, log: Path | None) -> None:
        """From now on output goes to `log` (None: nowhere, on a node without the run folder)."""
        if self._buffer is None:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        early = self._buffer.read_bytes()
        self._redirect(os.open(os.devnull if log is None else log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
        os.write(1, early)
        self._buffer.unlink(missing_ok=True)

    def say(self, text: str) -> None:
        """One line to the person at the terminal of a hand-started job; to the log otherwise."""
        write_line(text, self.screen or sys.stderr)

    def complain(self, text: str) -> None:
        """One line that must reach the terminal, from any rank."""
        write_line(text, self._terminal or sys.stderr)

    def close(self) -> None:
        if self._buffer is not None:
            self._buffer.unlink(missing_ok=True)

    @staticmethod
    def _redirect(handle: int) -> None:
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)


class Progress:
    """A line of progress with the time left: rewritten in place on a terminal, one every few seconds elsewhere."""

    def __init__(self, screen: IO[str], *, total: int, every_s: float = 10.0) -> None:
        self._screen, self._total = screen, total
        self._tty = screen.isatty()
        self._every_s = 0.0 if self._tty else every_s
        self._last = -1e9

    def update(self, done: int, text: str, step_s: float) -> None:
        """`done` steps are finished, the last ones took `step_s` seconds each."""
        now = time.monotonic()
        if now - self._last < self._every_s and done < self._total:
            return
        self._last = now
        left = step_s * (self._total - done)
        line = f"step {done}/{self._total}  {text}  {clock(left)} left"
        self._screen.write(f"\r\x1b[2K{line}" if self._tty else line + "\n")
        self._screen.flush()

    def tell(self, row: Mapping[str, Any], samples: int) -> None:
        """The step of `row` (of steps.jsonl) is finished; the global batch has `samples`."""
        rate = words.number(samples / row["step_s"])
        text = f"loss {words.fixed(row['loss'], 4)}  {rate} samples/s"
        self.update(row["step"] + 1, text, row["step_s"])

    def close(self) -> None:
        if self._tty:
            self._screen.write("\n")


def clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    whole = int(seconds + 0.5)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
