"""`harness model quality`: trained runs by every branch and number of shots, mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from harness.commands.model.options import model_options
from harness.commands.options import results_option
from harness.inference.load_model import BRANCHES
from harness.inference.quality_plan import JUDGED
from harness.job.declaration import JobError
from harness.job.options import names_in
from harness.records.run_folder import study_folder


@click.command()
@click.argument(
    "runs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="RUN|STUDY|quality.json..."
)
@click.option(
    "--branches",
    default=",".join(BRANCHES),
    show_default=True,
    metavar="LIST",
    help=f"Which maps to judge: {', '.join(JUDGED)}.",
)
@click.option("--shots", default="1,2,4,all", show_default=True, metavar="LIST", help="Good pictures in the memory.")
@click.option(
    "--memory",
    "memories",
    multiple=True,
    metavar="SPEC",
    help="Memory as DISTANCE[:KEY=VALUE...], several for a comparison (default: cosine, the paper's): "
    "l2:blocks=1,2:rotations=0. patchcore and anomalydino are the rules of these detectors on the run's encoder.",
)
@click.option("--data", help="Test on other data than the runs were trained on: mvtec:DIR ...")
@click.option("--no-answers", is_flag=True, help="Leave the questions out.")
@click.option("--study", "name", help="Folder in results/ for the record (default: the first run's study).")
@results_option
@model_options
def quality(
    runs: tuple[Path, ...],
    branches: str,
    shots: str,
    memories: tuple[str, ...],
    data: str | None,
    no_answers: bool,
    name: str | None,
    results: str | None,
    **options: object,
) -> None:
    """Judge trained runs by decoder, memory and both; a row is one engine, branch and number of shots over all seeds.

    \b
    harness model quality results/mtd --shots 1,4,all                 every run of a study
    harness model quality results/mtd --memory cosine --memory l2:blocks=1,2:rotations=0

    Files quality.json that were made in the same way on other machines are merged. Runs that held good pictures out of
    training (--set data_options.holdout=0.2) are also judged at the threshold that nine of ten of these pass: no test
    picture decides it.
    """
    from harness.inference import quality as work
    from harness.inference import quality_plan as plan
    from harness.inference.quality_report import FILE

    files = [path for path in runs if path.suffix == ".json"]
    if files:
        if len(files) < len(runs) or name is None:
            raise JobError("give either quality.json files with a --study, or runs and studies")
        place = study_folder(results, name)
        _keep(work.merge(files), place)
        return
    chosen = plan.Grid(
        branches=tuple(names_in(branches, JUDGED, "branch")),
        shots=plan.shots_in(shots),
        memories=tuple(plan.memory_in(text) for text in memories or ("cosine",)),
        answers=not no_answers,
    )
    folders = work.run_folders(runs)
    if not folders:
        raise JobError(
            f"{', '.join(map(str, runs))}: no run that ended well keeps weights there: train with keep_weights"
        )
    place = study_folder(results, name or folders[0].resolve().parent.name)
    place.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is said before an hour of judging
    _keep(work.measure(folders, chosen, data=data, options=options), place)
    click.echo(f"{place / FILE}")


def _keep(record: Mapping[str, Any], place: Path) -> None:
    from harness.inference.quality_report import markdown, write

    place.mkdir(parents=True, exist_ok=True)
    write(record, place)
    click.echo(markdown(record))
