"""Running a `Launch` to its end: one log, every wait limited, nothing left behind on any node.

`supervise` starts a guard on every node, then the launch's command(s) in sessions of their own, copies their output
to the log, and ends the job as soon as a command fails, a node is lost, the time is up or the user interrupts. What is
then still alive is ended: the launcher first by a signal (they know how to end their workers), then by the guards
through the job's tag.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mpi.failures import explain
from mpi.guard import end_tagged, tagged
from mpi.guards import READY_S, Guard, start_guards
from mpi.launch import environment_of
from mpi.launchers.base import Launch, remove_files, write_files
from mpi.private import mask_bytes

_TAIL_LINES = 400
_POLL_S = 0.1
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)  # the terminal was closed, Ctrl-C, a polite kill
INTERRUPTS = tuple(128 + number for number in ENDING)  # exit codes, as a shell gives them
CTRL_C = 128 + signal.SIGINT
# After a launcher has said that a node failed: time for the others to end by themselves and say why.
_FAILURE_GRACE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    returncode: 0, or the first failing command's exit status (negative: signal), 124 for a time-out, 130 for Ctrl-C,
    143 for a SIGTERM, 129 for a SIGHUP, 255 for a lost node. reason: empty if all went well, else one line. tail: last
    lines printed. orphans: processes that the guards had to end after the launcher had ended. seconds: from start to
    clean end. decided: it was ended from here, by a limit or `on_poll`: what its processes say of that is no cause.
    """

    returncode: int
    reason: str = ""
    tail: tuple[str, ...] = ()
    orphans: int = 0
    seconds: float = 0.0
    decided: bool = False

    @property
    def ok(self) -> bool:
        return self.returncode == 0

    @property
    def interrupted(self) -> bool:
        """Whether a signal to the supervisor ended the job."""
        return self.returncode in INTERRUPTS


class _InterruptedError(Exception):
    """A signal that ends the job."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def reason(self) -> str:
        """One line for the record."""
        if self.number == signal.SIGINT:
            return "interrupted (Ctrl-C)"
        return f"ended by {signal.Signals(self.number).name}"


class _NotInstalledError(Exception):
    """A command of the launch is not there. Its own class: callbacks may miss files too."""


@contextlib.contextmanager
def _programs_needed() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise _NotInstalledError(error.filename) from None


def supervise(
    launch: Launch,
    *,
    log_path: Path,
    timeout: float | None = None,
    limit_name: str = "the limit",
    on_line: Callable[[str], None] | None = None,
    on_poll: Callable[[], str | None] | None = None,
    grace: float = 5.0,
) -> Outcome:
    """Runs `launch`, appends its output to `log_path` and returns when every process of it has ended.

    timeout: seconds until the job is ended from here, None = never. limit_name: the option that sets it. on_line: gets
    each line of output. on_poll: called about ten times a second; a string that it returns ends the job for that
    reason. grace: seconds between the polite signal and SIGKILL. Ctrl-C, SIGTERM and SIGHUP end the job (main thread
    only) and are reported in the Outcome. Raises OSError where the log cannot be written.
    """
    started = time.monotonic()
    guards: list[Guard] = []
    running: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []
    code, reason = 0, ""
    with log_path.open("ab", buffering=0) as log, signals_raise(_InterruptedError, *ENDING):
        output = _JobOutput(launch, log, log_path, on_line)
        limits = _Limits(output, started, timeout, limit_name, on_poll)
        try:
            code, reason = 255, _begin(launch, guards, running, readers, output.lines)
            if not reason:
                code, reason = _watch(launch, running, guards, output.drain, limits.passed)
        except _InterruptedError as interrupt:
            code, reason = 128 + interrupt.number, interrupt.reason
        except _NotInstalledError as error:
            code, reason = 127, f"cannot start '{error}': it is not installed"
        finally:
            # A second Ctrl-C must not stop the cleaning: it takes seconds at most.
            with signals_ignored():
                _stop(running, signal.SIGINT if code == CTRL_C else signal.SIGTERM, grace)
                orphans = _clean(guards, launch.tag, grace)
                for reader in readers:
                    reader.join(timeout=2.0)
                output.drain()
                remove_files(launch)
    return Outcome(
        returncode=code,
        reason=reason or (explain(output.tail, code) if code else ""),
        tail=tuple(output.tail)[-30:],
        orphans=orphans,
        seconds=time.monotonic() - started,
        decided=limits.decided,
    )


def _begin(
    launch: Launch,
    guards: list[Guard],
    running: list[subprocess.Popen[bytes]],
    readers: list[threading.Thread],
    lines: queue.SimpleQueue[bytes],
) -> str:
    """Starts the guards, then the commands with a reader each. Each is put into its list as soon as it has started, so
    that it is ended whatever comes. Returns the empty string, or one line where a guard does not answer."""
    write_files(launch)
    with _programs_needed():
        start_guards(guards, launch, sys.executable)
    if reason := _wait_ready(guards):
        return reason
    for argv in launch.commands:
        process, reader = _start(launch, argv, lines)
        running.append(process)
        readers.append(reader)
    return ""


class _JobOutput:
    """What the job's commands print: copied to the log, its secrets masked. `lines`: read, not yet copied. `tail`: the
    last lines. `unwritten`: why the log cannot be written any more. `failed_at`: when a line first said that a node
    failed, None while none has."""

    def __init__(self, launch: Launch, log: IO[bytes], path: Path, on_line: Callable[[str], None] | None) -> None:
        self.path = path
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.unwritten = ""
        self.failed_at: float | None = None
        self._log, self._secrets, self._on_line = log, launch.secrets, on_line
        self._failure = re.compile(launch.failure_line) if launch.failure_line else None

    def drain(self) -> None:
        """Copies what has been read."""
        while not self.lines.empty():
            line = self.lines.get()
            masked = mask_bytes(line, self._secrets)
            self._write(masked)
            text = masked.decode(errors="replace").rstrip("\r\n")
            self.tail.append(text)
            if self._failure is not None and self._failure.search(text) and self.failed_at is None:
                self.failed_at = time.monotonic()
            if self._on_line is not None:  # figures, not for a record as they are: nothing in them is masked
                self._on_line(line.decode(errors="replace").rstrip("\r\n"))

    def _write(self, line: bytes) -> None:
        if self.unwritten:
            return
        try:
            self._log.write(line)
        except OSError as error:  # a full disk must not keep the job from being ended and judged
            self.unwritten = error.strerror or str(error)


class _Limits:
    """What ends a job from here. `decided`: a limit or `on_poll` has ended it, not its own output."""

    def __init__(
        self,
        output: _JobOutput,
        started: float,
        timeout: float | None,
        limit_name: str,
        on_poll: Callable[[], str | None] | None,
    ) -> None:
        self._output, self._on_poll = output, on_poll
        self._started, self._timeout, self._limit_name = started, timeout, limit_name
        self.decided = False

    def passed(self) -> tuple[int, str] | None:
        """(exit code, reason) if the job is to be ended now."""
        output = self._output
        if output.unwritten:
            return 1, explain([f"{output.path}: {output.unwritten}"], 1)
        if output.failed_at is not None and time.monotonic() > output.failed_at + _FAILURE_GRACE_S:
            return 1, explain(output.tail, 1)
        if asked := self._on_poll() if self._on_poll is not None else None:
            self.decided = True
            return 1, asked
        if self._timeout is not None and time.monotonic() >= self._started + self._timeout:
            self.decided = True
            return 124, f"not finished after {self._timeout:g} s: raise {self._limit_name} if it needs longer"
        return None


def _watch(
    launch: Launch,
    running: list[subprocess.Popen[bytes]],
    guards: list[Guard],
    drain: Callable[[], None],
    poll: Callable[[], tuple[int, str] | None],
) -> tuple[int, str]:
    """(exit code, reason) as soon as one command fails or all have ended; no reason where the output tells it."""
    while True:
        drain()
        codes = [process.poll() for process in running]
        failed = next((code for code in codes if code), 0)
        if failed or None not in codes:
            return failed, ""
        for guard in [guard for guard in guards if guard.ended]:
            if not (launch.elastic and guard.node):
                return 255, guard.problem()
            # The launcher goes on without the node, as soon as it learns that the connections to it are gone.
            guards.remove(guard)
            _end_connections(launch.tag, guard.node)
        if ended := poll():
            return ended
        time.sleep(_POLL_S)


def _wait_ready(guards: list[Guard]) -> str:
    """One line naming the first node that did not answer, or the empty string."""
    deadline = time.monotonic() + READY_S
    late = False
    while not late:
        late = time.monotonic() > deadline  # before the look: this process may have been stopped meanwhile
        if reason := next(filter(None, (guard.problem() for guard in guards)), ""):
            return reason
        if sum(guard.ready for guard in guards) == len(guards):
            return _other_python(guards)
        time.sleep(0.02)
    silent = [guard.node or "this node" for guard in guards if not guard.ready]
    return f"node {', '.join(silent)}: no answer over ssh within {READY_S:g} s: run 'harness cluster doctor'"


def _other_python(guards: list[Guard]) -> str:
    """One line naming the first node whose Python is of another version than this one."""
    here = platform.python_version()
    for guard in guards:
        if guard.version != here:
            return (
                f"node {guard.node}: {sys.executable} is Python {guard.version} there and {here} here: install the same"
            )
    return ""


def _start(
    launch: Launch, argv: tuple[str, ...], lines: queue.SimpleQueue[bytes]
) -> tuple[subprocess.Popen[bytes], threading.Thread]:
    with _programs_needed():
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment_of(launch, os.environ),
            cwd=launch.cwd,
            start_new_session=True,
        )

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.put(line)

    # A daemon: a grandchild that keeps the pipe open must not keep this program.
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return process, reader


def _end_connections(tag: str, node: str) -> None:
    """Ends the job's ssh clients here that lead to `node`."""
    for pid in tagged(tag):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0].rpartition(b"/")[2] == b"ssh" and node.encode() in words:
                os.kill(pid, signal.SIGKILL)


def _stop(running: list[subprocess.Popen[bytes]], number: int, grace: float) -> None:
    """Ends the commands' process groups: `number`, after `grace` seconds SIGKILL."""
    for process in running:
        if process.poll() is None:
            _signal_group(process.pid, number)
    deadline = time.monotonic() + grace
    for process in running:
        try:
            process.wait(max(0.01, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _clean(guards: list[Guard], tag: str, grace: float) -> int:
    for guard in guards:
        guard.close()
    deadline = time.monotonic() + grace + 5.0
    orphans = sum(guard.wait(deadline) or 0 for guard in guards)
    return orphans + end_tagged(tag)


@contextlib.contextmanager
def signals_raise(error_of: Callable[[int], BaseException], *numbers: int) -> Iterator[None]:
    """The signals `numbers` raise ``error_of(number)`` in the main thread; elsewhere they are left alone, and so is a
    SIGHUP that is ignored: whoever starts a job with nohup wants it to outlive the terminal."""

    def end(number: int, _frame: object) -> None:
        raise error_of(number)

    kept = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    with _handled(end, set(numbers) - kept):
        yield


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """While an end is under way that must not be cut short: what asks for it may ask twice. Nothing in other threads,
    which get no signals."""
    with _handled(signal.SIG_IGN, ENDING):
        yield


@contextlib.contextmanager
def _handled(handler: object, numbers: Iterable[int]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
