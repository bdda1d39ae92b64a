"""`harness eval`: weights (or none, with shots) on a data set, with the controls that every AUROC needs."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from harness.inference.load_model import BRANCHES, Trained, branch_of, load, model_options
from harness.job.declaration import JobError
from harness.job.number_ranges import SEED
from harness.protocol.console import Progress
from harness.records.record_files import finite, is_run, write_json

OUT = "eval.json"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("sources", nargs=-1, metavar="[RUN|WEIGHTS]...")
@click.option("--data", help="textures, mvtec:DIR, visa:DIR or aebad:DIR (default: what the run was trained on).")
@click.option(
    "--shots", type=click.IntRange(min=0), help="Good pictures a category in the memory (default: the run's)."
)
@click.option("--branch", type=click.Choice(BRANCHES), help="Map to judge (default: memory with shots, else decoder).")
@click.option(
    "--scoring", default="", help="Rule from map to score: top1, max, max_minus_median ... (default: preset's)."
)
@click.option("--split", type=click.Choice(["test", "val"]), default="test", show_default=True, help="val: held-out.")
@click.option("--samples", type=click.IntRange(min=0), default=0, help="Pictures to use, by seed; 0 = all.")
@click.option("--seed", type=SEED, help="Decides the shots and the samples (default: the run's).")
@click.option("--no-answers", is_flag=True, help="Leave the questions out: maps and scores only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
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
    harness eval results/compare/deepspeed-w2-fp32-s0-r0                the run's own test set
    harness eval RUN_A RUN_B --data mvtec:DIR                           two side by side
    harness eval --preset small --data mvtec:DIR --shots 4              no training: k-shot memory alone

    Nothing is written without --out.
    """
    changes = {"data": data, "shots": shots, "seed": seed}
    changes = {name: value for name, value in changes.items() if value is not None}
    if not data and any(_is_bare(source) for source in sources or ("",)):
        raise JobError("no run says which data is meant: give --data textures, mvtec:DIR, visa:DIR or aebad:DIR")
    evaluations = []
    for source in sources or (None,):
        trained = load(source, changes=changes, **options)
        evaluations.append(
            _evaluate(trained, branch=branch, scoring=scoring, split=split, samples=samples, answers=not no_answers)
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


def _is_bare(source: str) -> bool:
    """Whether `source` is no run (or a run's weights): nothing beside it says which data it was trained on."""
    path = Path(source)
    return not source or (path.is_file() and not is_run(path.parent))


def _evaluate(
    trained: Trained, *, branch: str | None, scoring: str, split: str, samples: int, answers: bool
) -> dict[str, Any]:
    """One evaluation as it is printed and written: what was evaluated, the figures, and an entry a sample."""
    from core_model.anomalygpt.scoring import RULES
    from core_model.data.splits import subset
    from harness.inference.eval_table import alarms
    from harness.worker.evaluate import evaluate as measure
    from harness.worker.few_shot import bank, good_pictures
    from harness.worker.model_and_data import build_dataset

    job, model = trained.job, trained.model
    if scoring:
        if scoring not in RULES:
            raise JobError(f"unknown scoring rule '{scoring}': choose one of {', '.join(RULES)}")
        model.scoring = scoring
    chosen = branch_of(trained, branch, job.shots > 0)
    warnings = _held_out(trained) if split == "val" else []
    dataset = build_dataset(job, model, split)
    memory, shots = None, 0 if chosen == "decoder" else job.shots
    if shots:
        images, names = good_pictures(model, job)
        for name, count in Counter(names).items():
            if count < shots:
                warnings.append(
                    f"{name} has only {count} good pictures: its figures are {count}-shot, not {shots}-shot"
                )
        memory = bank(model, images, names, trained.device, combination=chosen)
    indices = subset(len(dataset), samples, job.seed)
    warnings += [*dataset.notes, *dataset.lacks(indices)]
    watched = _Watched(dataset, len(indices))
    outcome = measure(
        model, watched, device=trained.device, indices=indices, memory=memory, answers=answers and trained.trained
    )
    watched.close()
    assert outcome is not None  # one process holds everything
    figures, entries = outcome
    kept = [{key: value for key, value in entry.items() if key not in ("map", "mask")} for entry in entries]
    shouted = alarms(figures, kept)
    # the alarm says what the metrics' own warning says, louder
    warnings += [text for text in figures.pop("warnings") if not (shouted and "neither Yes nor No" in text)]
    if trained.initial and trained.initial == trained.digests.get("all"):
        warnings.insert(0, "these weights are those from before training: nothing was learned, or it is the wrong file")
    return {
        "source": trained.name,
        "preset": job.preset,
        "version": job.version,
        "data": job.data,
        "split": split,
        "branch": chosen,
        "shots": shots,
        "seed": job.seed,
        "scoring": model.scoring,
        "weights": dict(trained.digests),
        "alarms": shouted,
        "warnings": warnings,
        "figures": figures,
        "samples": kept,
    }


def _held_out(trained: Trained) -> list[str]:
    """Remarks on judging by the val split, whose pictures training must not have seen."""
    options = trained.job.data_options
    if not (options.get("holdout") or options.get("folds")):
        what = f"'{trained.name}' held no pictures out of training: use --split test, or train with"
        if not trained.trained:
            what = "nothing is held out of the good pictures: use --split test, or add"
        raise JobError(f"{what} --set data_options.holdout=0.2")
    if trained.trained and not trained.initial:
        return ["whether training saw these val pictures cannot be told: a bare weights file does not say"]
    return []


class _Watched:
    """A data set that shows on standard error how far its reader is."""

    def __init__(self, dataset: Any, total: int) -> None:
        self._dataset, self._done = dataset, 0
        self._begin = time.perf_counter()
        self._progress = Progress(sys.stderr, total=total)

    def __len__(self) -> int:
        return len(self._dataset)

    def get(self, index: int, epoch: int) -> Any:
        if self._done:
            self._progress.update(self._done, "pictures", (time.perf_counter() - self._begin) / self._done)
        self._done += 1
        return self._dataset.get(index, epoch)

    def close(self) -> None:
        if self._done:
            self._progress.update(self._done, "pictures", 0.0)
        self._progress.close()
