"""What the network and each communication library can do, apart from any training.

The same collectives over the same sizes through MPI, gloo, NCCL and each engine; algbw and busbw by nccl-tests'
definition (`mpi.collectives`), every result checked, a table, comm.json (`harness.experiments.collectives.record`) and
a plot against the link's rate.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.common.paths import PROJECT
from harness.job.declaration import JobError
from harness.job.hosts import find_hostfile, slots_from_hostfile
from harness.protocol.console import tell
from mpi import hostfile
from mpi.launch import command, missing_program, render
from mpi.network import expected, find, free_port
from mpi.process import supervise
from mpi.transports import TRANSPORTS

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
_ROW = re.compile(r"COMM (\{.*\})")
_SIZE = re.compile(r"(\d+)\s*([kKmMgG]?)i?[bB]?")


def size(text: str) -> int:
    """``4M`` -> 4194304. Raises JobError."""
    match = _SIZE.fullmatch(text.strip())
    if not match or int(match.group(1)) < 1:
        raise JobError(f"'{text}' is not a size: write it like 1k, 64k or 16M")
    return int(match.group(1)) << {"": 0, "k": 10, "m": 20, "g": 30}[match.group(2).lower()]


def hosts_of(nodes: int, slots: int, path: str) -> tuple[hostfile.Host, ...]:
    """The hosts that are measured: two workers here, or the first `nodes` of the hostfile."""
    if nodes == 1 and not path:
        return hostfile.local(slots or 2)
    return hostfile.take(hostfile.parse_file(find_hostfile(path)), nodes, slots or slots_from_hostfile(nodes, path))


def measure(
    name: str, hosts: Sequence[hostfile.Host], worker: Sequence[str], scratch: Path, limit_s: float, dry_run: bool
) -> tuple[dict[str, Any] | None, int]:
    """One library's rows (None for a dry run), and the exit code of an interrupt, else 0; ``reason`` says in one line
    why there are no rows, or fewer."""
    network = (expected if dry_run else find)([host.name for host in hosts])
    argv = [sys.executable, "-m", "mpi.collectives", "--via", name, *worker]
    launch = command(
        TRANSPORTS[name][1],
        argv,
        hosts,
        scratch=scratch / "job",
        network=network,
        master_port=free_port(network.address),
        cwd=PROJECT,
        env={"PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))},
        operation_timeout=60,
    )
    if dry_run:
        tell((f"# {network.note}\n" if network.note else "") + render(launch), err=False)
        return None, 0
    if missing := missing_program(launch):
        return {"via": name, "reason": missing, "rows": [], "transport": {}}, 0
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}

    def take(line: str) -> None:
        if match := _ROW.search(line):
            row = json.loads(match.group(1))
            (about.update(row["transport"]) if "transport" in row else rows.append(row))

    outcome = supervise(launch, log_path=scratch / "log.txt", timeout=limit_s, limit_name="--time-limit", on_line=take)
    reason = outcome.reason
    rows.sort(key=lambda row: (OPERATIONS.index(row["operation"]), row["bytes"]))
    wrong = [row["operation"] for row in rows if row.get("correct") is False]
    if wrong:
        reason = f"wrong results: {', '.join(sorted(set(wrong)))}"
    found = {"via": name, "reason": reason, "rows": rows, "transport": about, "launcher": launch.launcher}
    return found, outcome.returncode if outcome.interrupted else 0


def print_table(result: dict[str, Any], line_rate: float) -> None:
    """One library's rows as a table; why there are none, or fewer, on stderr."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    about = ", ".join(str(value) for value in result["transport"].values())
    if result["reason"]:
        tell(f"{result['via']}: {result['reason']}")
    if not result["rows"]:
        return
    table = Table(title=f"{result['via']} ({about}; {result['launcher']})", title_justify="left")
    for heading in ("operation", "bytes", "us", "IQR, us", "algbw", "busbw", "of link", "right"):
        left = heading in ("operation", "right")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True, min_width=len(heading))
    table.caption = "algbw and busbw in Gbit/s, by nccl-tests' definition; mean of the repetitions, slowest rank"
    for row in result["rows"]:
        if "unsupported" in row:
            table.add_row(row["operation"], "", "", "", "", "", "", row["unsupported"])
            continue
        share = f"{row['busbw'] / line_rate:.0%}" if line_rate else ""
        table.add_row(
            row["operation"],
            f"{row['bytes']:,}",
            f"{row['seconds'] * 1e6:,.0f}",
            f"{(row['seconds_q3'] - row['seconds_q1']) * 1e6:,.0f}",
            f"{row['algbw'] * 8e-9:.3f}",
            f"{row['busbw'] * 8e-9:.3f}",
            share,
            "yes" if row["correct"] else "WRONG",
        )
    console.print(table)
