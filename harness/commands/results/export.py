"""`harness results export`: finished runs to TensorBoard, MLflow or Weights & Biases."""

from __future__ import annotations

from pathlib import Path

import click

from harness.common.formatting import plural
from harness.records.run_record import load_runs, sound_runs
from harness.tracking.trackers import open_sink, send


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN_OR_STUDY...")
@click.option(
    "--to", "target", required=True, metavar="KIND[:WHERE]", help="tensorboard:DIR, mlflow:URI or wandb:PROJECT."
)
def export(paths: tuple[Path, ...], target: str) -> None:
    """Send finished runs to TensorBoard, MLflow or Weights & Biases."""
    runs, left_out = sound_runs(load_runs(list(paths)))
    for text in left_out:
        click.echo(text, err=True)
    for run in runs:
        send(run, open_sink(target))
    click.echo(f"{plural(len(runs), 'run')} sent to {target}")
