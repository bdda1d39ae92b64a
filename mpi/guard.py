"""A guard: one small process on each node of a job that ends the job's processes there when the job is over.

It runs this file's text as ``python -I -S -c TEXT TAG``, over ssh on other nodes, standard library only. It says
``ready HOSTNAME PYTHON`` at once, then reads its standard input, where the launching node writes every few seconds.
When that ends or falls silent (the job is over, the launcher was killed, the node was cut off), the guard ends every
process of its user whose environment holds the job's tag, says ``cleaned N`` and leaves. So no node keeps orphans,
whatever became of the launcher.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

VARIABLE = "HARNESS_JOB_TAG"
SILENCE_S = 20.0


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
    """The guard itself: argv is TAG."""
    tag = sys.argv[1]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, f"ready {os.uname().nodename} {sys.version.split()[0]}\n".encode())
    while select.select([0], [], [], SILENCE_S)[0] and os.read(0, 4096):
        pass
    ended = end_tagged(tag)
    with contextlib.suppress(OSError):
        os.write(1, f"cleaned {ended}\n".encode())


if __name__ == "__main__":
    main()
