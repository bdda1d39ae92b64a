"""Virtual nodes at the terminal: their state as a table, and commands inside them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping

from mpi.nodes import processes


def print_set(one: Mapping[str, object]) -> None:
    """One set as a table."""
    from rich.console import Console
    from rich.table import Table

    if one["nodes"] == []:
        print(one["problem"])
        return
    shared = ", cores shared" if one["shared_cores"] else ""
    table = Table(title=f"set '{one['name']}': links {one['rate'] or 'unlimited'}{shared}", title_justify="left")
    for heading in ("node", "address", "state", "sshd", "cores", "processes", "received MB", "sent MB"):
        table.add_column(heading, justify="right" if heading[-2:] == "MB" or heading == "processes" else "left")
    for row in one["nodes"]:  # type: ignore[attr-defined]
        table.add_row(
            row["node"],
            row["address"],
            "up" if row["alive"] else "off",
            "up" if row["sshd"] else "down",
            ",".join(map(str, row["cores"])),
            str(row["processes"]),
            f"{row['received_bytes'] / 1e6:.2f}",
            f"{row['sent_bytes'] / 1e6:.2f}",
        )
    Console().print(table)


def run_inside(argv: list[str], environ: Mapping[str, str]) -> int:
    """Runs `argv`, hands SIGTERM and SIGHUP on to what it started inside the node, returns its exit status.

    Ctrl-C reaches the whole foreground group by itself; nsenter hands nothing on.
    """
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # signals that came while it was being started

    def hand_on(number: int, _frame: object) -> None:
        if process is None:
            early.append(number)
            return
        while not (inside := processes.children(process.pid)) and processes.start_time(process.pid) >= 0:
            time.sleep(0.01)  # it has not entered yet
        processes.send(inside, number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hand_on)
    process = subprocess.Popen(argv, env=environ)
    for came in early:
        hand_on(came, None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = process.wait()
    return code if code >= 0 else 128 - code
