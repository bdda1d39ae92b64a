"""`harness experiment collectives`: what the network and each communication library can do, apart from any training."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from harness.commands.list_types import Names
from harness.commands.number_types import COUNT, SECONDS, WHOLE
from harness.experiments.collectives import record
from harness.experiments.collectives.run import OPERATIONS, hosts_of, measure, print_table, size
from harness.job.declaration import JobError
from harness.records.run_folder import check_writable
from mpi.nodes.link import bytes_per_second
from mpi.transports import TRANSPORTS


@click.command()
@click.option(
    "--via",
    metavar="LIST",
    type=Names(TRANSPORTS, "library"),
    default="mpi4py,gloo,horovod,deepspeed",
    show_default=True,
    help=f"Of {', '.join(TRANSPORTS)}.",
)
@click.option(
    "--ops",
    metavar="LIST",
    type=Names(OPERATIONS, "operation"),
    default=",".join(OPERATIONS),
    show_default=True,
    help="Operations.",
)
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
def collectives(
    via: list[str],
    ops: list[str],
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
    line_rate = bytes_per_second(rate) if rate else 0.0
    if step < 2:
        raise JobError(f"step is {step}: each size must be at least 2 times the one before")
    check_writable(out.absolute())
    hosts = hosts_of(nodes, slots, hosts_path)
    worker = ["--operations", ",".join(ops), "--smallest", str(size(smallest)), "--largest", str(size(largest))]
    worker += ["--step", str(step), "--budget", str(budget), "--device", device]
    kept = record.others(out, via, hosts, device) if add else []
    if add and not line_rate:
        line_rate = record.rate_of(out)
    measured: list[dict[str, Any]] = []
    code = 0
    for name in via:
        with tempfile.TemporaryDirectory(prefix="harness-comm-") as scratch:
            result, code = measure(name, hosts, worker, Path(scratch), time_limit, dry_run)
        if result is None:
            continue
        measured.append(result)
        # After each library: what is measured is kept, whatever comes.
        record.write(record.made([*kept, *measured], hosts, line_rate), out)
        print_table(result, line_rate)
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
