"""`harness experiment collectives`: what the network and each communication library can do, apart from any training."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from harness.commands.list_types import Names
from harness.commands.number_types import COUNT, TIME, WHOLE
from harness.commands.options import dry_run_option, results_option, study_option
from harness.experiments.collectives import record
from harness.experiments.collectives.run import OPERATIONS, hosts_of, measure, print_table, size
from harness.records.run_folder import study_folder
from mpi.nodes.link import bytes_per_second
from mpi.transports import TRANSPORTS


@click.command()
@click.option(
    "--via",
    metavar="LIST",
    type=Names(TRANSPORTS, "library"),
    default="mpi4py,gloo,horovod,deepspeed",
    show_default=True,
    help=f"Libraries, of {', '.join(TRANSPORTS)}.",
)
@click.option(
    "--ops",
    metavar="LIST",
    type=Names(OPERATIONS, "operation"),
    default=",".join(OPERATIONS),
    show_default=True,
    help="Operations to measure.",
)
@click.option("--min", "smallest", default="1k", show_default=True, help="Smallest size (of the larger buffer).")
@click.option("--max", "largest", default="4M", show_default=True, help="Largest size.")
@click.option("--step", type=click.IntRange(min=2), default=4, show_default=True, help="Growth factor between sizes.")
@click.option(
    "--budget", type=TIME, default="0.2s", show_default=True, help="Time of repetitions for each operation and size."
)
@click.option("--nodes", type=COUNT, default=1, show_default=True, help="Hosts, from the hostfile in its order.")
@click.option(
    "--slots", type=WHOLE, default=0, help="Workers per host (default: 2 on this machine, else the hostfile's slots)."
)
@click.option("--hostfile", "hosts_path", default="", help="Hosts as 'name slots=N' lines.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where the buffers are."
)
@click.option("--rate", default="", help="Rate of the link, drawn in the plot: 1gbit, 25gbit.")
@study_option("comm")
@results_option
@click.option("--add", is_flag=True, help="Keep what the record in --study holds of other libraries.")
@click.option(
    "--time-limit",
    type=TIME,
    default="5m",
    show_default=True,
    help="Limit of each library, which is then ended: 90s, 5m.",
)
@dry_run_option
def collectives(**options: Any) -> None:
    """Measure collectives through MPI, gloo, NCCL and both engines."""
    line_rate = bytes_per_second(options["rate"]) if options["rate"] else 0.0
    out = study_folder(options["results"], options["study"])
    hosts = hosts_of(options["nodes"], options["slots"], options["hosts_path"])
    worker = _worker_words(options)
    limit_s = options["time_limit"]
    if options["dry_run"]:
        with tempfile.TemporaryDirectory(prefix="harness-comm-") as scratch:
            for name in options["via"]:
                measure(name, hosts, worker, Path(scratch), limit_s, dry_run=True)
        return
    kept = record.others(out, options["via"], hosts, options["device"]) if options["add"] else []
    if options["add"] and not line_rate:
        line_rate = record.rate_of(out)
    measured: list[dict[str, Any]] = []
    code = 0
    for name in options["via"]:
        with tempfile.TemporaryDirectory(prefix="harness-comm-") as scratch:
            result, code = measure(name, hosts, worker, Path(scratch), limit_s, dry_run=False)
        assert result is not None  # it was no dry run
        measured.append(result)
        # After each library: what is measured is kept, whatever comes.
        record.write(record.made([*kept, *measured], hosts, line_rate), out)
        print_table(result, line_rate)
        if code:
            break
    sys.exit(_end(measured, out, code))


def _worker_words(options: Mapping[str, Any]) -> list[str]:
    """The options of `python -m mpi.collectives`, beside the library."""
    words = ["--operations", ",".join(options["ops"]), "--step", str(options["step"]), "--device", options["device"]]
    words += ["--smallest", str(size(options["smallest"])), "--largest", str(size(options["largest"]))]
    return [*words, "--budget", str(options["budget"])]


def _end(measured: Sequence[Mapping[str, Any]], out: Path, code: int) -> int:
    """Says where the record is and which libraries failed; the exit code. code: that of an interrupt, else 0."""
    if any(result["rows"] for result in measured):
        click.echo(f"{out}/comm.md, comm.json, comm.png, comm.svg")
    failed = [result["via"] for result in measured if result["reason"]]
    if code or not failed:
        return code
    click.echo(f"error: failed: {', '.join(failed)}", err=True)
    return 1
