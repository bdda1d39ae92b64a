"""`harness experiment scaling`: engines x nodes x link rates on virtual nodes."""

from __future__ import annotations

import click

from harness.commands.number_types import AMOUNT, COUNT
from harness.commands.options import results_option, study_option
from harness.experiments.virtual_scaling.run import ENGINES, FILE, FIRST, Matrix, rate_of, run_matrix
from harness.job.declaration import JobError
from harness.job.options import names_in
from harness.records.run_folder import study_folder


@click.command()
@study_option("scaling-nodes")
@click.option("--engines", default="horovod,deepspeed-z0,deepspeed-z1,deepspeed-z2", show_default=True)
@click.option("--nodes", "counts", default="1,2,4", show_default=True)
@click.option("--rates", default="unlimited,1gbit,100mbit", show_default=True)
@click.option(
    "--emulate-compute", "emulate_ms", type=AMOUNT, default=100.0, show_default=True, help="ms a step and worker."
)
@click.option("--scalings", default="weak,strong", show_default=True, help="strong: the wait is shared by the workers.")
@click.option("--steps", type=COUNT, default=20, show_default=True)
@click.option("--repeats", type=COUNT, default=1, show_default=True)
@click.option(
    "--width", "widths", default="16384", show_default=True, help="Of the tiny preset's projection: 97 weights each."
)
@results_option
def scaling(
    study: str,
    engines: str,
    counts: str,
    rates: str,
    emulate_ms: float,
    scalings: str,
    steps: int,
    repeats: int,
    widths: str,
    results: str | None,
) -> None:
    """Run a scaling study on virtual nodes (needs root). Rows that are there already are kept, not run again."""
    names = names_in(engines, ENGINES, "engine")
    kinds = names_in(scalings, ("weak", "strong"), "scaling")
    numbers = _numbers("--nodes", counts)
    sizes = _numbers("--width", widths)
    speeds = [rate.strip() for rate in rates.split(",")]
    for rate in speeds:
        rate_of(rate)
    if not (emulate_ms >= 0 and steps > FIRST and repeats > 0):
        raise JobError(f"use --emulate-compute of at least 0, --steps above {FIRST} and --repeats of at least 1")
    folder = study_folder(results, study)
    matrix = Matrix(engines=names, nodes=numbers, rates=speeds, scalings=kinds, widths=sizes, repeats=repeats)
    record = run_matrix(matrix, folder, emulate_ms=emulate_ms, steps=steps, say=click.echo)
    from harness.experiments.virtual_scaling import report

    for path in [folder / FILE, *report.write(record, folder)]:
        click.echo(str(path))


def _numbers(flag: str, text: str) -> list[int]:
    """``1,2,4`` as numbers. Raises JobError for anything else."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise JobError(f"{flag} '{text}': write numbers of at least 1 with commas between them, as 1,2,4")
    return [int(word) for word in words]
