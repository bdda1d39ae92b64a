"""`harness detect`: single pictures, with trained weights or with a few good pictures of the same object."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.inference.load_model import BRANCHES, load, model_options
from harness.job.declaration import JobError

if TYPE_CHECKING:
    import numpy as np

    from harness.inference.load_model import Trained
    from harness.inference.session import Look, Session


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|FOLDER...")
@click.option("--weights", help="Run folder, or weights file (with --preset); left out: no training, few-shot only.")
@click.option("--normal", multiple=True, metavar="IMAGE|FOLDER", help="Good pictures to compare with; repeatable.")
@click.option("--shots", type=click.IntRange(min=1), help="How many of them; without --normal, of the run's data.")
@click.option("--branch", type=click.Choice(BRANCHES), help="Which map (default: memory with good pictures).")
@click.option("--category", default="", help="What the pictures show (default: the run's, or by their folders).")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the map overlays (PNG).")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a line a picture.")
@model_options
def detect(
    images: tuple[str, ...],
    weights: str | None,
    normal: tuple[str, ...],
    shots: int | None,
    branch: str | None,
    category: str,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score, localize and judge pictures: a line each, and an overlay of the map in --out.

    \b
    harness detect tile.png --weights results/STUDY/RUN --out maps
    harness detect test/*.png --preset small --normal train/good --shots 4     no training

    The pictures are checked first: one that is missing or damaged is named, and nothing is looked at.
    """
    from harness.inference.session import Session, picture_paths, read_pictures

    paths = picture_paths(images)
    normal_paths = picture_paths(normal)
    if normal and shots is not None:
        if shots > len(normal_paths):
            raise JobError(f"--shots {shots} asks for more good pictures than --normal gives ({len(normal_paths)})")
        normal_paths = normal_paths[:shots]
    trained = load(weights, **options)
    pictures = read_pictures(paths, trained, beside=normal_paths)
    if shots and not normal:
        good = _good_of_run(trained, shots, category)
    else:
        good = read_pictures(normal_paths, trained, beside=paths)
    session = Session(trained, normal=good, branch=branch)
    categories = [session.category_of(path, category) for path in paths]
    looks = session.look(pictures, [str(path) for path in paths], categories)
    overlays = _write_overlays(session, looks, out) if out is not None else [None] * len(looks)
    if as_json:
        found = [_as_json(session, look, overlay) for look, overlay in zip(looks, overlays, strict=True)]
        click.echo(json.dumps(found, indent=1))
        return
    for look, overlay in zip(looks, overlays, strict=True):
        click.echo(line(look) + (f"  {overlay}" if overlay else ""))


def line(look: Look) -> str:
    """One line: name, score, judgement, places."""
    return f"{look.name}  score {look.score:.4f}  {judgement(look)}  map highest at the {look.peak}"


def judgement(look: Look) -> str:
    """``Yes (top left)``, ``No``, or why there is neither."""
    if look.answer is None:
        return "not asked (untrained)"
    if look.verdict == "unusable":
        text = " ".join(look.answer.split())[:40]
        return f"neither Yes nor No ('{text}')"
    return str(look.verdict).capitalize() + (f" ({', '.join(look.said)})" if look.said else "")


def _good_of_run(trained: Trained, shots: int, category: str) -> list[np.ndarray]:
    """Good pictures (S, S, 3) of one category out of the run's own train/good. Raises JobError where the run does not
    say which category, or none of its data."""
    from harness.worker.model_and_data import build_dataset

    if not trained.categories and trained.job.data == "textures":
        raise JobError("--shots without --normal takes the good pictures of a run's data: give --normal IMAGE|FOLDER")
    dataset = build_dataset(trained.job, trained.model, "train")
    name = category or (dataset.categories[0] if len(dataset.categories) == 1 else "")
    if name not in dataset.categories:
        known = ", ".join(dataset.categories)
        raise JobError(f"--shots {shots}: good pictures of which category? give --category, one of {known}")
    images = dataset.good_images(name, shots, seed=trained.job.seed)
    if len(images) < shots:
        raise JobError(f"--shots {shots}: {name} has {len(images)} good pictures only")
    return list((images * 255).round().byte().permute(0, 2, 3, 1).numpy())


def _write_overlays(session: Session, looks: Sequence[Look], out: Path) -> list[Path]:
    """OUT/NAME_map.png for each; all on one colour scale. Pictures of the same name get their folder's in front."""
    from harness.inference.overlay import overlay
    from harness.worker.example_images import file_stem

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"{out}: cannot write overlays there ({error.strerror}): use another --out") from None
    scale = session.scale(looks)
    stems = Counter(Path(look.name).stem for look in looks)
    written: list[Path] = []
    for look in looks:
        path = Path(look.name)
        stem = path.stem if stems[path.stem] == 1 else file_stem("_".join([*path.parent.parts[-2:], path.stem]))
        target = out / f"{file_stem(stem)}_map.png"
        number = 2
        while target in written:
            target = out / f"{file_stem(stem)}-{number}_map.png"
            number += 1
        caption = f"{path.name}: score {look.score:.3f}, {judgement(look)}"
        overlay(look.picture, look.grid, scale, caption=caption).save(target, optimize=True)
        written.append(target)
    return written


def _as_json(session: Session, look: Look, overlay: Path | None) -> dict[str, Any]:
    return {
        "image": look.name,
        "category": look.category,
        "branch": session.branch,
        "score": look.score,
        "answer": look.answer,
        "verdict": look.verdict,
        "places": list(look.said),
        "map_peak": look.peak,
        "overlay": None if overlay is None else str(overlay),
    }
