"""`harness experiment wire`: bytes on the wire a step, by engine and ZeRO stage, against ring theory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import click

from harness.commands.list_types import COUNTS
from harness.commands.number_types import COUNT
from harness.commands.options import (
    backends_option,
    device_option,
    json_option,
    precision_mode_option,
    precision_option,
    results_option,
    set_option,
    study_option,
    time_limit_option,
)
from harness.experiments.trainings.cells import cells_of
from harness.experiments.wire.run import ENGINES, measure, print_table, write
from harness.experiments.wire.worker import TOTAL
from harness.job.declaration import Job, JobError
from harness.job.options import apply_settings, model_option, what_to_train
from harness.launch.user_job import check_user_job
from harness.protocol.console import tell
from harness.records.run_folder import study_folder


@click.command()
@backends_option(ENGINES)
@click.option(
    "--workers", metavar="LIST", type=COUNTS, default="2,4", show_default=True, help="Nodes, one worker each: 2,4."
)
@click.option(
    "--accumulation", metavar="LIST", type=COUNTS, default="1,4", show_default=True, help="Accumulation steps: 1,4."
)
@precision_option
@precision_mode_option
@click.option("--hostfile", type=click.Path(exists=True), help="Hosts to use (default: virtual nodes, needs root).")
@click.option("--preset", help="As for `harness run` (default: tiny).")
@model_option
@click.option("--data", help="As for `harness run` (default: textures).")
@click.option(
    "--width",
    type=COUNT,
    default=16384,
    show_default=True,
    help="Width of the tiny preset's projection, 97 weights per unit.",
)
@click.option("--global-batch", type=COUNT, default=16, show_default=True, help="Samples per step, over all workers.")
@device_option
@study_option("wire", optional=True)
@results_option
@time_limit_option
@json_option
@set_option
def wire(**options: Any) -> None:
    """Measure the bytes that each engine and ZeRO stage sends per step, and compare with ring theory."""
    folder = study_folder(options["results"], options["study"]) if options["study"] else None
    if not options["hostfile"]:
        sys.exit(_on_virtual_nodes(options))
    from mpi import hostfile

    hosts = hostfile.parse_file(options["hostfile"])
    values: dict[str, Any] = {name: options[name] for name in ("global_batch", "device")}
    values |= what_to_train(options, preset="tiny")
    values |= {"steps": TOTAL, "eval_samples": -1, "time_limit_s": options["time_limit_s"]}
    if values["preset"] == "tiny":
        values["model"] = {"joint": options["width"]}
    apply_settings(values, options["settings"])
    base = Job.from_dict(values)
    cells = cells_of(
        options["backends"],
        options["workers"],
        options["accumulation"],
        [True],
        options["precision"],
        options["precision_mode"],
    )
    for cell in cells:
        if not 2 <= cell.workers <= len(hosts):
            raise JobError(f"--workers {cell.workers}: the wire needs 2 to {len(hosts)} nodes, one worker each")
        cell.job(base).validate()
    check_user_job(base)
    say = None if options["as_json"] else tell
    rows = measure(base, cells, hosts, say)
    if folder is not None:
        write(rows, base, folder)
    if options["as_json"]:
        click.echo(json.dumps(rows, indent=1))
    else:
        print_table(rows)
    sys.exit(1 if any(row["status"] == "failed" for row in rows) else 0)


def _on_virtual_nodes(options: Mapping[str, Any]) -> int:
    """The same command inside node a of a set that lives as long as it does; its exit status."""
    from mpi.nodes import cluster

    count = max(options["workers"])
    made = cluster.up(f"wire-{os.getpid()}", count, tied=True)
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".hostfile") as hosts:
            hosts.write(made.hostfile())
            hosts.flush()
            argv = [sys.executable, "-m", "harness", *sys.argv[1:], "--hostfile", hosts.name]
            return subprocess.run(made.argv("a", argv), stdin=subprocess.DEVNULL, check=False).returncode
    finally:
        cluster.down(made.name)
