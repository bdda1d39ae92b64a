"""`harness report`: runs or studies as HTML, Markdown, CSV, JSON or LaTeX."""

from __future__ import annotations

from pathlib import Path

import click

from harness.analysis.cost import Prices
from harness.records.record_files import is_run
from harness.report.duel_files import holds_duels_alone, render_duels, write_duel_files
from harness.report.formats import FORMATS, SUFFIX, comparison_of, render, write_page, write_report
from harness.report.study_files import write_study_files


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN_OR_STUDY...")
@click.option(
    "--format", "format_", type=click.Choice(FORMATS), default="html", show_default=True, help="What to write."
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write; '-' = the terminal.")
@click.option("--prices", type=click.Path(path_type=Path), help="Price file (TOML) for the cost table.")
def report(paths: tuple[Path, ...], format_: str, out: Path | None, prices: Path | None) -> None:
    """Render runs or studies as HTML, Markdown, CSV, JSON or LaTeX.

    Without --out, HTML goes to report.html in the study's (or run's) folder, everything else to the terminal. Of a
    single study comparison.csv and the plots are written too, so that they say the same.
    """
    if len(paths) == 1 and holds_duels_alone(paths[0]):
        _duels(paths[0], format_, out)
        return
    comparison = comparison_of(paths)
    price_list = Prices.load(prices)
    if (out is None and format_ != "html") or str(out) == "-":
        click.echo(render(comparison, price_list, format_), nl=False)
        return
    if out is None and len(paths) == 1 and not is_run(paths[0]):
        click.echo(str(write_study_files(comparison, paths[0], prices=price_list)))
        return
    target = out or paths[0] / f"report.{SUFFIX[format_]}"
    click.echo(str(write_report(comparison, target, prices=price_list, format=format_)))


def _duels(folder: Path, format_: str, out: Path | None) -> None:
    """The same for a folder that holds duels and no trainings."""
    if str(out) == "-" or (out is None and format_ != "html"):
        click.echo(render_duels(folder, format_), nl=False)
        return
    if out is None:
        click.echo(str(write_duel_files(folder)))
        return
    click.echo(str(write_page(render_duels(folder, format_), out)))
