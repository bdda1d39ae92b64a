"""`harness results watch`: a running job in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness.records.record_files import RecordError, is_run


@click.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
def watch(run: Path) -> None:
    """Follow a running job in the terminal: progress, speed, loss, lag of the ranks, GPUs.

    It reads the records that the run writes anyway, which costs the run no time. Ctrl-C ends watching, not the run.
    `harness results export` sends the figures elsewhere when the run has ended.
    """
    from harness.tracking.live_view import watch as follow

    if not is_run(run):
        raise RecordError(f"{run}: not a run folder: name one in results/STUDY/")
    try:
        result = follow(run)
    except KeyboardInterrupt:
        click.echo("stopped watching; the run goes on", err=True)
        return
    sys.exit(0 if result.get("status") == "ok" else 1)
