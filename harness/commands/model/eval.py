"""`harness model eval`: weights (or none, with shots) on a data set, with the controls that every AUROC needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from harness.commands.model.options import model_options
from harness.commands.number_types import SEED
from harness.commands.options import json_option
from harness.inference.evaluation import evaluate as evaluation
from harness.inference.evaluation import is_bare
from harness.inference.load_model import BRANCHES, load
from harness.job.declaration import JobError
from harness.records.record_files import finite, write_json

OUT = "eval.json"


@click.command("eval")
@click.argument("sources", nargs=-1, metavar="[RUN|WEIGHTS]...")
@click.option("--data", help="textures, mvtec:DIR, visa:DIR or aebad:DIR (default: what the run was trained on).")
@click.option(
    "--shots", type=click.IntRange(min=0), help="Good pictures per category in the memory (default: the run's)."
)
@click.option("--branch", type=click.Choice(BRANCHES), help="Map to judge (default: memory with shots, else decoder).")
@click.option(
    "--scoring", default="", help="Rule from map to score: top1, max, max_minus_median ... (default: preset's)."
)
@click.option(
    "--split",
    type=click.Choice(["test", "val"]),
    default="test",
    show_default=True,
    help="Split to evaluate; val: pictures held out of training.",
)
@click.option("--samples", type=click.IntRange(min=0), default=0, help="Number of pictures, chosen by --seed; 0 = all.")
@click.option("--seed", type=SEED, help="Decides the shots and the samples (default: the run's).")
@click.option("--no-answers", is_flag=True, help="Ask no questions: maps and scores only.")
@json_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help=f"Folder to write {OUT} to.")
@model_options
def evaluate(
    sources: tuple[str, ...],
    data: str | None,
    shots: int | None,
    branch: str | None,
    scoring: str,
    split: str,
    samples: int,
    seed: int | None,
    no_answers: bool,
    as_json: bool,
    out: Path | None,
    **options: Any,
) -> None:
    """Evaluate weights on a data set: per category and mean, each image AUROC beside its controls.

    \b
    harness model eval results/compare/deepspeed-w2-fp32-s0-r0                the run's own test set
    harness model eval RUN_A RUN_B --data mvtec:DIR                           two side by side
    harness model eval --preset small --data mvtec:DIR --shots 4              no training: k-shot memory alone

    Nothing is written without --out.
    """
    changes = {"data": data, "shots": shots, "seed": seed}
    changes = {name: value for name, value in changes.items() if value is not None}
    if not data and any(is_bare(source) for source in sources or ("",)):
        raise JobError("no run says which data is meant: give --data textures, mvtec:DIR, visa:DIR or aebad:DIR")
    evaluations = []
    for source in sources or (None,):
        trained = load(source, changes=changes, **options)
        evaluations.append(
            evaluation(trained, branch=branch, scoring=scoring, split=split, samples=samples, answers=not no_answers)
        )
    from harness.inference.eval_table import remarks, show

    notes = remarks(evaluations)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / OUT, finite({"evaluations": evaluations, "remarks": notes}))
    if as_json:
        short = [{name: value for name, value in each.items() if name != "samples"} for each in evaluations]
        click.echo(json.dumps(finite({"evaluations": short, "remarks": notes}), indent=1))
        return
    from rich.console import Console

    show(evaluations, notes, Console())
