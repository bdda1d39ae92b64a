"""Processes of virtual nodes, seen from the host by /proc: who is in a node, who descends from whom, ending them.

`nsenter` hands no signal on, and what it started lives on when it ends: whoever gives up on a command in a node must
end the command itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path


def start_time(pid: int) -> int:
    """Start of a process in clock ticks since boot; -1 if there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])


def program(pid: int) -> str:
    """The program's name, empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def in_namespace_of(first: int) -> list[int]:
    """Ids of all processes in the process-id namespace of process `first`, itself too."""
    try:
        space = os.readlink(f"/proc/{first}/ns/pid")
    except OSError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/ns/pid") == space:
                    found.append(int(entry))
    return sorted(found)


def entrances(first: int) -> list[int]:
    """Ids of the `nsenter` processes by which commands have entered the namespace of process `first`."""
    inside = in_namespace_of(first)
    return sorted({above for above in map(_parent, inside) if above not in inside and program(above) == "nsenter"})


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def children(pid: int) -> list[int]:
    """Ids of the processes that `pid`'s threads have started and that still are."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Ids of the processes below `pid`, parents before children."""
    found: list[int] = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def send(pids: Iterable[int], number: int) -> None:
    """A signal to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_all(find: Callable[[], list[int]], limit: float = 10.0) -> list[int]:
    """SIGKILL to what `find` finds until it finds nothing more; what it still finds after `limit` seconds."""
    deadline = time.monotonic() + limit
    while left := find():
        if time.monotonic() > deadline:
            break
        send(left, signal.SIGKILL)
        time.sleep(0.01)
    return left


def end_entered(process: subprocess.Popen[bytes] | subprocess.Popen[str], grace: float) -> None:
    """Ends a command that `nsenter` (`process`) has started, and all that descends from it: SIGTERM to the command,
    after `grace` seconds SIGKILL to all. Returns when they and nsenter have ended."""
    seen: dict[int, int] = {}  # id -> start time: what loses its parent is no descendant any more

    def look() -> None:
        for top in [*([process.pid] if process.poll() is None else []), *seen]:
            for pid in descendants(top):
                seen.setdefault(pid, start_time(pid))

    def left() -> list[int]:
        look()
        return [pid for pid, began in seen.items() if began >= 0 and start_time(pid) == began]

    look()
    if process.poll() is None:
        send(children(process.pid), signal.SIGTERM)
    deadline = time.monotonic() + grace
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        look()
    kill_all(left)
    process.kill()
    process.wait()
