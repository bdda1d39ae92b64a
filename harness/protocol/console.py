"""Who may speak where: engines and launchers to log.txt, the run's own progress to the screen.

A worker under `harness run` is already redirected by its supervisor. A worker started by hand (horovodrun, mpirun,
torchrun, deepspeed) redirects itself: file descriptors 1 and 2 go to a buffer file until the run folder is known and
to its log.txt from then on, also for output of C++ code; only rank 0 keeps a copy of the terminal.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from harness.common.formatting import fixed, number
from harness.protocol.early_output import EarlyWatch, last_lines
from harness.protocol.failure_marks import LogPart, first_mark

_WINDOW = 50  # steps whose throughput the progress shows


def write_line(text: str, stream: IO[str]) -> None:
    """Writes one line in one piece.

    Without a buffer (PYTHONUNBUFFERED) print() sends the line's end by itself, and mpirun may put the line of another
    rank before it.
    """
    stream.write(text + "\n")
    stream.flush()


def tell(text: str, *, err: bool = True) -> None:
    """`text` for the person at the terminal, where that still listens: a job does not end because its reader has."""
    with contextlib.suppress(OSError):
        write_line(text, sys.stderr if err else sys.stdout)


class Output:
    """Redirects this process's output. `screen` is the terminal for rank 0 of a hand-started job, else None; `log` the
    file that the output goes to, None while there is none."""

    def __init__(self, *, rank: int, redirect: bool) -> None:
        """redirect: the rank was started by hand. Then make this before any thread: a child process watches."""
        self.screen: IO[str] | None = None
        self.log: Path | None = None
        self._part: LogPart | None = None
        self._terminal: IO[str] | None = None
        self._buffer: Path | None = None
        self._watch: EarlyWatch | None = None
        if not redirect:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self._terminal = os.fdopen(os.dup(2), "w", buffering=1)
        if rank == 0:
            self.screen = self._terminal
        handle, name = tempfile.mkstemp(prefix="harness-log-")
        self._buffer = Path(name)
        self._watch = EarlyWatch(self._buffer, self._terminal.fileno(), rank)
        self._redirect(handle)

    @property
    def by_hand(self) -> bool:
        """Whether a person, not a supervisor, is to be told."""
        return self._terminal is not None

    def attach(self, log: Path | None) -> None:
        """From now on output goes to `log`. None: this node has no run folder, the buffer is kept, and what its end
        says if the rank fails."""
        if self._buffer is None or log is None:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        early = self._buffer.read_bytes()
        self.log, self._part = log, LogPart(log)
        self._redirect(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
        os.write(1, early)
        self.close()

    def first_cause(self) -> tuple[int, bool, str] | None:
        """(rank, whether it is the user's mistake, text) of the rank whose failure brought the others down, where the
        log says it."""
        return None if self._part is None else first_mark(self._part.lines())

    def early_lines(self) -> list[str]:
        """The last lines of the output that no log has."""
        return [] if self._buffer is None else last_lines(self._buffer)

    def say(self, text: str) -> None:
        """One line to the person at the terminal of a hand-started job; to the log otherwise."""
        with contextlib.suppress(OSError):
            write_line(text, self.screen or sys.stderr)

    def complain(self, text: str) -> None:
        """One line that must reach the terminal, from any rank, where there still is one."""
        with contextlib.suppress(OSError):
            write_line(text, self._terminal or sys.stderr)

    def close(self) -> None:
        """The buffer is not needed any more."""
        if self._watch is not None:
            self._watch.dismiss()
            self._watch = None
        if self._buffer is not None:
            self._buffer.unlink(missing_ok=True)
            self._buffer = None

    @staticmethod
    def _redirect(handle: int) -> None:
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)


class Progress:
    """A line of progress with the time left: rewritten in place on a terminal, one every few seconds elsewhere. It
    falls silent where nobody reads it any more (a closed pipe): the job goes on."""

    def __init__(self, screen: IO[str], *, total: int, every_s: float = 10.0) -> None:
        self._screen, self._total = screen, total
        self._tty = screen.isatty()
        self._every_s = 0.0 if self._tty else every_s
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=_WINDOW)
        self._last = -1e9
        self._silent = False

    def update(self, done: int, text: str, step_s: float) -> None:
        """`done` steps are finished, the last ones took `step_s` seconds each."""
        now = time.monotonic()
        if now - self._last < self._every_s and done < self._total:
            return
        self._last = now
        left = step_s * (self._total - done)
        line = f"step {done}/{self._total}  {text}  {clock(left)} left"
        self._write(f"\r\x1b[2K{line}" if self._tty else line + "\n")

    def tell(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The steps of `rows` (of steps.jsonl) are finished. Throughput: of the last `_WINDOW` steps together."""
        from harness.records.step_metrics import window_rate  # numpy: not for `harness --help`

        self._rows.extend(rows)
        last, rate = rows[-1], window_rate(self._rows)
        text = f"loss {fixed(last['loss'], 4)}  {number(rate)} samples/s"
        self.update(last["step"] + 1, text, last["samples"] / rate if rate else last["step_s"])

    def close(self) -> None:
        if self._tty:
            self._write("\n")

    def _write(self, text: str) -> None:
        if self._silent:
            return
        try:
            self._screen.write(text)
            self._screen.flush()
        except OSError:
            self._silent = True


def clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    whole = int(seconds + 0.5)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
