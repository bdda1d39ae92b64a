"""A guard: one small process on each node of a job that ends the job's processes there when the job is over.

It runs this file's text as ``python -I -S -c TEXT TAG ...``, over ssh on other nodes, standard library only. It says
``ready HOSTNAME PYTHON`` when it has read and kept the job's secrets, the first line of its standard input, then waits
for the end of that. Then (the job is over, the launcher was killed) it ends every process of its user whose environment
holds the job's tag, says ``cleaned N`` and leaves. So no node keeps orphans, whatever became of the launcher.

A node that is cut off sees no end: ``TAG listen SECONDS`` takes so long a silence for one. The words against it come
from the launching node's own guard, ``TAG beat SECONDS FD...``, which writes to these pipes as long as the launcher is
there. Not from the launcher: it may be stopped (Ctrl-Z) or wait for a file system for minutes, and the job goes on.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

VARIABLE = "HARNESS_JOB_TAG"


def secrets_file(tag: str) -> str:
    """Where a job's secrets are kept on each node: in memory where there is such a folder."""
    folder = "/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"
    return f"{folder}/harness-{os.geteuid()}-{tag}"


def keep_secrets(tag: str, silence_s: float | None) -> str:
    """Reads the first line of standard input, an object of variables, and keeps it in a file of mode 600. Returns the
    file's path, empty where there is nothing to keep (or, on nodes that share a machine, another guard has kept it).

    silence_s: how long it waits for it. None, for the launching node's own guard, which is given the most: without a
    limit, and in place of what another guard has kept."""
    line = b""
    while not line.endswith(b"\n"):
        # Byte by byte: what follows the line is the heart-beat.
        data = os.read(0, 1) if select.select([0], [], [], silence_s)[0] else b""
        if not data:
            return ""
        line += data
    if line == b"{}\n":
        return ""
    path = secrets_file(tag)
    own = path if silence_s is not None else f"{path}.own"
    try:
        handle = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return ""
    with open(handle, "wb") as file:
        file.write(line)
    try:
        os.replace(own, path)
    except OSError:  # another user's file stands there: nobody reads it
        os.unlink(own)
        return ""
    return path


def tagged(tag: str) -> list[int]:
    """Ids of the processes that carry the tag, but for this one."""
    needle = f"{VARIABLE}={tag}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if needle in file.read().split(b"\0"):
                        found.append(int(entry))
            except OSError:  # it has ended, or is another user's
                continue
    return found


def end_tagged(tag: str, grace_s: float = 2.0, settle_s: float = 1.0) -> int:
    """Ends them: SIGTERM, after `grace_s` seconds SIGKILL until none is left (10 s at most). Returns their number.

    Those that end by themselves within `settle_s` are neither signalled nor counted: when a launcher has ended well,
    the shells and ssh sessions under it are on their way out, but may need some milliseconds more.
    """
    deadline = time.monotonic() + settle_s
    while (first := tagged(tag)) and time.monotonic() < deadline:
        time.sleep(0.02)
    _send(first, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and tagged(tag):
        time.sleep(0.05)
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline and (rest := tagged(tag)):
        _send(rest, signal.SIGKILL)
        time.sleep(0.05)
    return len(first)


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            continue


def main() -> None:
    """The guard itself: argv is TAG, then ``listen SECONDS`` or ``beat SECONDS FD...``."""
    tag, role, seconds, *pipes = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    kept = keep_secrets(tag, None if role == "beat" else float(seconds))
    os.write(1, f"ready {os.uname().nodename} {sys.version.split()[0]}\n".encode())
    if role == "beat":
        _beat([int(pipe) for pipe in pipes], float(seconds))
    else:
        while select.select([0], [], [], float(seconds))[0] and os.read(0, 4096):
            pass
    if kept:
        with contextlib.suppress(OSError):
            os.unlink(kept)
    ended = end_tagged(tag)
    with contextlib.suppress(OSError):
        os.write(1, f"cleaned {ended}\n".encode())


def _beat(pipes: list[int], every_s: float) -> None:
    """Writes to `pipes` every `every_s` seconds until standard input ends, or the launcher has; then closes them."""
    launcher = os.getppid()
    while os.getppid() == launcher:
        if select.select([0], [], [], every_s)[0] and not os.read(0, 4096):
            break
        for pipe in pipes:
            with contextlib.suppress(OSError):  # it is full (a stalled connection) or closed: its guard's end tells
                os.write(pipe, b"\n")
    for pipe in pipes:
        os.close(pipe)


if __name__ == "__main__":
    main()
