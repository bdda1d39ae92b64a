"""Who works on a folder of results at present: a lock that ends with its process, on this machine or another.

`hold` locks FOLDER/.lock (flock) and writes who holds it. A killed process leaves the file, but not the lock, so what
it left never blocks. Where a file system does not carry locks from one machine to another, nobody can see from here
whether a process there lives: its sign of life is then the file's time, which the holder renews every `BEAT_S` seconds,
and only after `SILENT_S` seconds without one does it count as dead. Times are compared as the file system gives them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from harness.job.declaration import JobError

LOCK = ".lock"
BEAT_S = 10.0
SILENT_S = 120.0  # a network file system may show a file's time a minute late
_PATIENCE_S = 1.0  # somebody who only looks (`holder_of`) has the lock for a moment


class HeldError(JobError):
    """The folder is in use. One line that names who uses it and what to do."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process, told apart from all others: on `host` in its life `boot`, in the process namespace `space`, the one
    with id `pid` that began at `start` (clock ticks since that boot). since: when it took the folder, ISO 8601."""

    host: str
    boot: str
    space: str
    pid: int
    start: int
    since: str

    @classmethod
    def me(cls) -> Holder:
        pid = os.getpid()
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(host=platform.node(), boot=_boot(), space=_space(), pid=pid, start=_start_of(pid) or 0, since=now)

    @classmethod
    def from_dict(cls, values: Any) -> Holder | None:
        """None where `values` does not describe one."""
        try:
            host, boot, space, since = (str(values[name]) for name in ("host", "boot", "space", "since"))
            pid, start = int(values["pid"]), int(values["start"])
            return cls(host=host, boot=boot, space=space, pid=pid, start=start, since=since)
        except (KeyError, TypeError, ValueError):
            return None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_alive(self) -> bool | None:
        """None where it cannot be seen from here: on another machine, or in another container."""
        if (self.host, self.boot, self.space) != (platform.node(), _boot(), _space()):
            return None
        return _start_of(self.pid) == self.start

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


class _Held:
    """A lock that this process has, with its sign of life."""

    def __init__(self, handle: int, path: Path) -> None:
        self.handle, self.path = handle, path
        self._over = threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="harness-lock").start()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.handle)

    def release(self) -> None:
        self._over.set()
        if _is_at(self.handle, self.path):
            self.path.unlink(missing_ok=True)
        os.close(self.handle)


_held: dict[Path, _Held] = {}


def hold(folder: Path, what: str = "") -> None:
    """Keeps `folder` for this process until `release` or its end; again for one that it holds already: nothing.

    what: how the folder is called in a message. Raises HeldError where another process works on it, OSError where its
    lock cannot be written.
    """
    path = _path(folder)
    if path in _held:
        return
    what = what or str(folder)
    end = time.monotonic() + _PATIENCE_S
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _lock(handle, fcntl.LOCK_EX):
                if time.monotonic() < end:
                    os.close(handle)
                    time.sleep(0.05)
                    continue
                raise HeldError(_refusal(what, _read(handle)))
            if not _is_at(handle, path):  # its holder has just released it
                os.close(handle)
                continue
            _refuse_the_living(handle, path, what)
            os.ftruncate(handle, 0)
            os.pwrite(handle, (json.dumps(Holder.me().to_dict()) + "\n").encode(), 0)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(handle)
            raise
        _held[path] = _Held(handle, path)
        return


def release(folder: Path) -> None:
    """Gives up a folder that this process holds; nothing where it does not."""
    held = _held.pop(_path(folder), None)
    if held is not None:
        held.release()


@contextlib.contextmanager
def holding(folder: Path, what: str = "") -> Any:
    """`hold` for the length of a block."""
    mine = _path(folder) not in _held
    hold(folder, what)
    try:
        yield
    finally:
        if mine:
            release(folder)


def check_free(folder: Path, what: str = "") -> None:
    """Raises HeldError where another process works on `folder`."""
    holder = holder_of(folder)
    if holder is not None and _path(folder) not in _held:
        raise HeldError(_refusal(what or str(folder), holder))


def holder_of(folder: Path) -> Holder | None:
    """Who works on `folder`, None where nobody does, or no more."""
    path = folder / LOCK
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        if not _lock(handle, fcntl.LOCK_SH):
            return _read(handle) or _NOBODY_KNOWN
        found = _read(handle)
        if found is None or found.is_alive is False:
            return None
        # It lives here where locks do not work, or cannot be seen from here.
        return found if found.is_alive or _silence_s(handle, path.parent) < SILENT_S else None
    finally:
        os.close(handle)


_NOBODY_KNOWN = Holder(host="this machine or another", boot="", space="", pid=0, start=0, since="unknown")


def recorded_holder(folder: Path) -> dict[str, Any] | None:
    """Who took `folder`, for its result.json, whether it lives or not; None where nobody did."""
    try:
        found = Holder.from_dict(json.loads((folder / LOCK).read_text()))
    except (OSError, ValueError):
        return None
    return None if found is None else found.to_dict()


def has_lost_its_writer(folder: Path, result: Mapping[str, Any]) -> bool:
    """Whether a record says that its run is under way, but nobody works on its folder."""
    return result.get("status") == "running" and holder_of(folder) is None


def gone_text(result: Mapping[str, Any]) -> str:
    """For a record that `has_lost_its_writer`, one line."""
    holder = Holder.from_dict(result.get("holder"))
    return f"{holder or 'the process that ran it'} is gone and has not ended the record: it was killed"


def _refuse_the_living(handle: int, path: Path, what: str) -> None:
    """The lock was free: raises HeldError where its last holder may be at work all the same."""
    last = _read(handle)
    if last is None or last.is_alive is False:
        return
    if last.is_alive:  # the file system has no locks
        raise HeldError(_refusal(what, last))
    silence = _silence_s(handle, path.parent)
    if silence < SILENT_S:
        raise HeldError(
            f"{_refusal(what, last)}; if it was killed, its last sign of life ({silence:.0f} s ago) counts for "
            f"{SILENT_S - silence:.0f} s more"
        )


def _refusal(what: str, holder: Holder | None) -> str:
    who = str(holder) if holder is not None and holder.pid else "another process"
    return f"{what} is in use by {who}: wait until it has ended, or choose another name"


def _path(folder: Path) -> Path:
    return folder.resolve() / LOCK


def _lock(handle: int, kind: int) -> bool:
    """False where another process has it. A file system without locks gives it to everybody."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether the file that is open is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read(handle: int) -> Holder | None:
    try:
        return Holder.from_dict(json.loads(os.pread(handle, 4096, 0)))
    except (OSError, ValueError):
        return None


def _silence_s(handle: int, folder: Path) -> float:
    """Seconds since the file's last sign of life, by the clock of its file system; without end where that has none."""
    try:
        with tempfile.TemporaryFile(dir=folder) as fresh:
            fresh.write(b".")
            fresh.flush()
            now = os.fstat(fresh.fileno()).st_mtime
    except OSError:  # only to be read from here
        now = time.time()
    return max(0.0, now - os.fstat(handle).st_mtime)


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@cache
def _space() -> str:
    return os.readlink("/proc/self/ns/pid")


def _start_of(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None where there is none."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in ("Z", "X") else int(fields[18])
