"""`harness experiment predict`: a model of each engine's step, fitted to a scaling study."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from harness.commands.number_types import AMOUNT, COUNT
from harness.commands.options import json_option, results_option
from harness.common.text_table import markdown
from harness.experiments.prediction.run import LARGEST, build_report, headline, print_report, tables_of
from harness.job.declaration import JobError
from harness.records.record_files import runs_of, write_json, write_text
from harness.records.run_folder import study_folder


@click.command()
@click.option(
    "--study",
    default="scaling-nodes",
    show_default=True,
    help="Study of `harness experiment scaling` or `harness compare`.",
)
@click.option(
    "--to", "largest", type=COUNT, default=LARGEST, show_default=True, help="Largest number of nodes in the plot."
)
@click.option("--rate", default="1gbit", show_default=True, help="Link rate in the plot: 1gbit, unlimited.")
@click.option(
    "--compute-ms",
    type=AMOUNT,
    default=0.0,
    help="Compute time per step in the plot (default: the study's weak runs').",
)
@click.option(
    "--parameters", type=AMOUNT, default=0.0, help="Trained fp32 parameters in the plot (default: the study's)."
)
@click.option("--rounds", type=COUNT, default=50, show_default=True, help="Bootstrap resamplings for the uncertainty.")
@results_option
@json_option
def predict(
    study: str,
    largest: int,
    rate: str,
    compute_ms: float,
    parameters: float,
    rounds: int,
    results: str | None,
    as_json: bool,
) -> None:
    """Fit a model of the step time to a scaling study, state its error, extrapolate it to more nodes.

    A study of `harness experiment scaling` gets an alpha-beta model. Of a study of `harness compare`, the runs with 1
    and 2 workers are fitted and extrapolated; runs with more workers are compared with the prediction.
    """
    from mpi.nodes.link import bytes_per_second

    if largest < 2:
        raise JobError(f"--to is {largest}: it must be at least 2")
    folder = study_folder(results, study)
    if not (folder / "scaling.json").exists() and folder.is_dir() and runs_of(folder):
        _refuse_of_links(study)
        _from_runs(folder, largest, as_json)
        return
    link = None if rate == "unlimited" else bytes_per_second(rate)
    report = build_report(folder, largest, link, compute_ms * 1e-3, parameters * 4.0, rounds)
    write_json(folder / "prediction.json", {**report, "headline": headline(report)})
    from harness.experiments.prediction.plot import plot

    plot(report, folder / "prediction")
    write_text(folder / "prediction.md", "\n".join(markdown(each) for each in tables_of(report)))
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        print_report(report)
        click.echo(f"{folder}/prediction.json, prediction.md, prediction.png, prediction.svg")
    sys.exit(0)


def _refuse_of_links(study: str) -> None:
    """Raises JobError for a typed option that only a study of link rates can answer."""
    context = click.get_current_context()
    for name in ("rate", "compute_ms", "parameters", "rounds"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise JobError(
                f"--{name.replace('_', '-')} is for a study of `harness experiment scaling`; {study} is one of "
                "`harness compare`: leave it out"
            )


def _from_runs(folder: Path, largest: int, as_json: bool) -> None:
    """The curve of a comparison study."""
    from harness.analysis.comparison import summarize_study
    from harness.experiments.prediction.from_study import build
    from harness.experiments.prediction.from_study_report import table, write

    report = build(summarize_study(folder), largest=largest)
    paths = write(report, folder)
    click.echo(json.dumps(report, indent=1) if as_json else markdown(table(report)))
    if not as_json:
        click.echo(", ".join(map(str, paths)))
