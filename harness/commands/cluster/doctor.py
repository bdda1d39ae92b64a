"""`harness cluster doctor`: finds what is wrong with a cluster before a job starts."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click

import backends as registered
from harness.cluster.doctor import as_dict, examine, print_report
from harness.cluster.doctor_checks import PACKAGES, Wanted, judge
from harness.commands.list_types import Names
from harness.commands.number_types import WHOLE
from harness.commands.options import json_option, results_option
from harness.common.paths import PROJECT
from harness.job.declaration import JobError
from harness.job.hosts import find_hostfile
from harness.job.options import results_root
from mpi import hostfile, probe
from mpi.launchers.base import JOB_TAG
from mpi.nodes.link import bytes_per_second


@click.command()
@click.option("--hostfile", "path", type=click.Path(path_type=Path), help="Hosts as 'name slots=N' lines (./hostfile).")
@click.option("--hosts", "listed", default="", help="Hosts as a list instead: a:1,b:1.")
@click.option(
    "--data", default="", help="Data folder that must be the same on every node (names and sizes are compared)."
)
@results_option
@click.option(
    "--backends",
    metavar="LIST",
    type=Names(registered.names(), "engine"),
    default=(),
    help="Engines that must be installed everywhere: horovod,ddp.",
)
@click.option(
    "--port",
    "ports",
    type=click.IntRange(1, 65535),
    multiple=True,
    help="Port that must be free on every node; may be repeated.",
)
@click.option(
    "--expect-rate", default="", help="Rate of the links, of which each must reach at least 70 %: 1gbit, 25gbit."
)
@click.option("--min-disk", type=WHOLE, default=1024, show_default=True, help="MiB that must be free for results.")
@click.option("--min-shm", type=WHOLE, default=64, show_default=True, help="MiB that must be free in /dev/shm.")
@click.option("--no-links", is_flag=True, help="Do not measure the links.")
@json_option
def doctor(
    path: Path | None,
    listed: str,
    data: str,
    results: str | None,
    backends: list[str],
    ports: tuple[int, ...],
    expect_rate: str,
    min_disk: int,
    min_shm: int,
    no_links: bool,
    as_json: bool,
) -> None:
    """Find what is wrong with a cluster before a job starts.

    Exit code 0: jobs can start. 1: something would break a job; it is named with its remedy. 2: a wrong option.
    """
    if path and listed:
        raise JobError("--hosts and --hostfile exclude each other: choose one")
    hosts = hostfile.parse_list(listed) if listed else hostfile.parse_file(find_hostfile(str(path or "")))
    began = time.monotonic()
    request: dict[str, Any] = {
        "do": "facts",
        "cwd": str(PROJECT),
        "data": str(Path(data.partition(":")[2] or data).absolute()) if data else "",
        "hosts": [host.name for host in hosts],
        "packages": list(PACKAGES),
        "ports": list(ports),
        "folders": [str(results_root(results)), os.environ.get("TMPDIR", "/tmp")],
        "tag_variable": JOB_TAG,
    }
    wanted = Wanted(
        here=probe.facts(request),
        python=sys.executable,
        cwd=str(PROJECT),
        data=request["data"],
        engines=tuple(backends),
        min_disk_mib=min_disk,
        min_shared_mib=min_shm,
        expect_bytes_per_s=bytes_per_second(expect_rate) if expect_rate else 0.0,
    )
    reports, links = examine(hosts, request, wanted, with_links=not no_links)
    findings = judge(reports, links, wanted)
    seconds = time.monotonic() - began
    failed = any(finding.level == "fail" for finding in findings)
    if as_json:
        click.echo(json.dumps(as_dict(reports, links, findings, seconds), indent=1))
    else:
        print_report(reports, links, findings, seconds, links_measured=not no_links and len(hosts) > 1)
    sys.exit(1 if failed else 0)
