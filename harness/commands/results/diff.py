"""`harness results diff`: in words, what differs between two runs."""

from __future__ import annotations

from pathlib import Path

import click

from harness.analysis.diff import describe_difference
from harness.records.record_files import RecordError
from harness.records.run_record import load_runs, whole_run


@click.command()
@click.argument("first", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("second", type=click.Path(path_type=Path), metavar="RUN")
def diff(first: Path, second: Path) -> None:
    """Say in words what differs between two runs."""
    runs = [load_runs([path]) for path in (first, second)]
    for path, found in zip((first, second), runs, strict=True):
        if len(found) != 1:
            raise RecordError(f"{path}: a study with {len(found)} runs: name one of its runs")
    a, b = whole_run(runs[0][0]), whole_run(runs[1][0])
    click.echo(f"{a.study}/{a.name} -> {b.study}/{b.name}")
    for heading, sentences in describe_difference(a, b):
        click.echo(f"\n{heading}")
        for sentence in sentences:
            click.echo(f"  {sentence}")
