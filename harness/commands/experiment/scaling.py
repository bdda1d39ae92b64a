"""`harness experiment scaling`: engines x nodes x link rates on virtual nodes."""

from __future__ import annotations

import click

from harness.commands.list_types import COUNTS, Names
from harness.commands.number_types import AMOUNT, COUNT
from harness.commands.options import backends_option, results_option, study_option
from harness.experiments.virtual_scaling.run import FILE, FIRST, Matrix, engine_name, rate_of, run_matrix
from harness.job.declaration import JobError
from harness.records.record_files import read_json, write_json
from harness.records.run_folder import study_folder

SCALINGS = Names(("weak", "strong"), "scaling")


@click.command()
@study_option("scaling-nodes")
@backends_option("horovod,deepspeed:0,deepspeed:1,deepspeed:2")
@click.option(
    "--nodes", "counts", metavar="LIST", type=COUNTS, default="1,2,4", show_default=True, help="Numbers of nodes."
)
@click.option(
    "--rates", metavar="LIST", default="unlimited,1gbit,100mbit", show_default=True, help="Rates of the links."
)
@click.option(
    "--emulate-compute",
    "emulate_ms",
    type=AMOUNT,
    default=100.0,
    show_default=True,
    help="Wait per step and worker in ms, in place of computing.",
)
@click.option(
    "--scalings",
    metavar="LIST",
    type=SCALINGS,
    default="weak,strong",
    show_default=True,
    help="Of weak, strong; strong: the workers share the wait.",
)
@click.option("--steps", type=COUNT, default=20, show_default=True, help="Optimizer steps of a run.")
@click.option("--repeats", type=COUNT, default=1, show_default=True, help="Runs of every combination.")
@click.option(
    "--width",
    "widths",
    metavar="LIST",
    type=COUNTS,
    default="16384",
    show_default=True,
    help="Widths of the tiny preset's projection, 97 weights per unit.",
)
@results_option
@click.option("--render", is_flag=True, help="Write the table, the figure and the headline anew; run nothing.")
def scaling(
    study: str,
    backends: list[str],
    counts: list[int],
    rates: str,
    emulate_ms: float,
    scalings: list[str],
    steps: int,
    repeats: int,
    widths: list[int],
    results: str | None,
    render: bool,
) -> None:
    """Run a scaling study on virtual nodes (needs root). Rows that are recorded already are not run again."""
    from harness.experiments.virtual_scaling import report

    if render:
        folder = study_folder(results, study)
        record = read_json(folder / FILE)
        write_json(folder / FILE, {**record, "headline": report.headline(record)})
        for path in report.write(record, folder):
            click.echo(str(path))
        return
    names = [engine_name(text) for text in backends]
    speeds = [rate.strip() for rate in rates.split(",")]
    for rate in speeds:
        rate_of(rate)
    if not (emulate_ms >= 0 and steps > FIRST and repeats > 0):
        raise JobError(f"use --emulate-compute of at least 0, --steps above {FIRST} and --repeats of at least 1")
    folder = study_folder(results, study)
    matrix = Matrix(engines=names, nodes=counts, rates=speeds, scalings=scalings, widths=widths, repeats=repeats)
    record = run_matrix(matrix, folder, emulate_ms=emulate_ms, steps=steps, say=click.echo)
    for path in [folder / FILE, *report.write(record, folder)]:
        click.echo(str(path))
