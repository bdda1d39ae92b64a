"""`harness run`: one job on one engine, launched on one machine or over the hostfile's nodes."""

from __future__ import annotations

import sys
from typing import Any

import click

from harness.commands.options import results_option
from harness.job.options import job_options, make_job, results_root


@click.command()
@job_options
@results_option
@click.option("--dry-run", is_flag=True, help="Print the launch command, its environment and files; start nothing.")
@click.argument("launcher_args", nargs=-1, type=click.UNPROCESSED)
def run(results: str | None, dry_run: bool, launcher_args: tuple[str, ...], **options: Any) -> None:
    """Train one job on one engine and record it under results/STUDY/RUN.

    \b
    harness run --backend deepspeed --nodes 2                  two hosts of ./hostfile
    harness run --backend horovod --slots 2 --preset tiny      two workers here
    harness run --backend ddp --slots 2 -- --rdzv-conf ...     arguments after -- go to the launcher
    """
    from harness.launch import run as launch

    job = make_job(options)
    root = results_root(results)
    if dry_run:
        click.echo(launch.describe(job, root, launcher_args))
        return
    folder = launch.run_job(job, root, launcher_args=launcher_args, show=True)
    code = launch.report_end(folder)
    sys.exit(code)
