"""`harness results check`: a study held against its own records."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness.analysis.check import check_runs, notes_on, records_in
from harness.analysis.known_faults import marks
from harness.common.formatting import plural
from harness.records.record_files import is_run, runs_of
from harness.records.run_record import load_runs


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN_OR_STUDY...")
@click.option(
    "--mark", is_flag=True, help=f"Write {marks.NAME} into studies whose figures only a new measurement can correct."
)
def check(paths: tuple[Path, ...], mark: bool) -> None:
    """Check records, rules and figures of runs, studies or all of results/ again. Exit code 1 if something fails."""
    found = records_in(paths)
    if mark:
        for study in [path for path in found if not is_run(path)]:
            marks.write_mark(study, sorted(other for other in study.parent.iterdir() if other.is_dir()))
    problems = check_runs(found)
    for problem in problems:
        click.echo(f"{problem.where}: {problem.text}")
    for note in notes_on(found):
        click.echo(f"note: {note}")
    runs = plural(len(load_runs([path for path in found if is_run(path) or runs_of(path)])), "run")
    if problems:
        click.echo(f"{plural(len(problems), 'problem')} in {runs}")
        sys.exit(1)
    click.echo(f"{runs} checked: every record and every figure holds")
