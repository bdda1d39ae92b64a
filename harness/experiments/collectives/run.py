"""`harness comm`: what the network and each communication library can do, apart from any training.

The same collectives over the same sizes through MPI, gloo, NCCL and each engine; algbw and busbw by nccl-tests'
definition (`mpi.collectives`), every result checked, a table, comm.json (`harness.experiments.collectives.record`) and
a plot against the link's rate.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from harness.common.paths import PROJECT
from harness.experiments.collectives import record
from harness.job.declaration import JobError
from harness.job.hosts import find_hostfile, slots_from_hostfile
from harness.job.number_ranges import COUNT, SECONDS, WHOLE
from harness.job.options import names_in
from harness.records.run_folder import check_writable
from mpi import hostfile
from mpi.launch import command, missing_program, render
from mpi.network import expected, find, free_port
from mpi.nodes.link import bytes_per_second
from mpi.process import supervise
from mpi.transports import TRANSPORTS

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
_ROW = re.compile(r"COMM (\{.*\})")
_SIZE = re.compile(r"(\d+)\s*([kKmMgG]?)i?[bB]?")


@click.command()
@click.option("--via", default="mpi4py,gloo,horovod,deepspeed", show_default=True, help=f"Of {', '.join(TRANSPORTS)}.")
@click.option("--ops", default=",".join(OPERATIONS), show_default=True, help="Operations.")
@click.option("--min", "smallest", default="1k", show_default=True, help="Smallest size (of the larger buffer).")
@click.option("--max", "largest", default="4M", show_default=True, help="Largest size.")
@click.option(
    "--step",
    type=click.IntRange(min=2),
    default=4,
    show_default=True,
    help="Each size is so many times the one before.",
)
@click.option(
    "--budget", type=SECONDS, default=0.2, show_default=True, help="Seconds of repetitions for each operation and size."
)
@click.option("--nodes", type=COUNT, default=1, show_default=True, help="Hosts, from the hostfile in its order.")
@click.option("--slots", type=WHOLE, default=0, help="Workers a host (default: 2 here, the hostfile's slots for more).")
@click.option("--hostfile", "hosts_path", default="", help="Hosts as 'name slots=N' lines.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--rate", default="", help="The link's rate for the plot: 1gbit, 25gbit.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/comm"), show_default=True)
@click.option("--add", is_flag=True, help="Keep what OUT/comm.json holds of other libraries.")
@click.option(
    "--time-limit",
    "--timeout",
    "time_limit",
    type=SECONDS,
    default=300.0,
    show_default=True,
    help="Seconds for each library: not all of them end a wait by themselves.",
)
@click.option("--dry-run", is_flag=True, help="Print the commands only.")
def comm(
    via: str,
    ops: str,
    smallest: str,
    largest: str,
    step: int,
    budget: float,
    nodes: int,
    slots: int,
    hosts_path: str,
    device: str,
    rate: str,
    out: Path,
    add: bool,
    time_limit: float,
    dry_run: bool,
) -> None:
    """Measure collectives through MPI, gloo, NCCL and both engines."""
    names = names_in(via, TRANSPORTS, "library")
    operations = names_in(ops, OPERATIONS, "operation")
    line_rate = bytes_per_second(rate) if rate else 0.0
    if step < 2:
        raise JobError(f"step is {step}: each size must be at least 2 times the one before")
    check_writable(out.absolute())
    hosts = _hosts(nodes, slots, hosts_path)
    worker = ["--operations", ",".join(operations), "--smallest", str(size(smallest)), "--largest", str(size(largest))]
    worker += ["--step", str(step), "--budget", str(budget), "--device", device]
    kept = record.others(out, names, hosts, device) if add else []
    if add and not line_rate:
        line_rate = record.rate_of(out)
    measured: list[dict[str, Any]] = []
    code = 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix="harness-comm-") as scratch:
            result, code = _run(name, hosts, worker, Path(scratch), time_limit, dry_run)
        if result is None:
            continue
        measured.append(result)
        # After each library: what is measured is kept, whatever comes.
        record.write(record.made([*kept, *measured], hosts, line_rate), out)
        _print(result, line_rate)
        if code:
            break
    if dry_run:
        return
    if any(result["rows"] for result in measured):
        click.echo(f"{out}/comm.md, comm.json, comm.png, comm.svg")
    if code:
        sys.exit(code)
    failed = [result["via"] for result in measured if result["reason"]]
    if failed:
        click.echo(f"error: failed: {', '.join(failed)}", err=True)
        sys.exit(1)


def size(text: str) -> int:
    """``4M`` -> 4194304. Raises JobError."""
    match = _SIZE.fullmatch(text.strip())
    if not match or int(match.group(1)) < 1:
        raise JobError(f"'{text}' is not a size: write it like 1k, 64k or 16M")
    return int(match.group(1)) << {"": 0, "k": 10, "m": 20, "g": 30}[match.group(2).lower()]


def _hosts(nodes: int, slots: int, path: str) -> tuple[hostfile.Host, ...]:
    if nodes == 1 and not path:
        return hostfile.local(slots or 2)
    return hostfile.take(hostfile.parse_file(find_hostfile(path)), nodes, slots or slots_from_hostfile(nodes, path))


def _run(
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
        click.echo((f"# {network.note}\n" if network.note else "") + render(launch))
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


def _print(result: dict[str, Any], line_rate: float) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    about = ", ".join(str(value) for value in result["transport"].values())
    if result["reason"]:
        click.echo(f"{result['via']}: {result['reason']}", err=True)
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
