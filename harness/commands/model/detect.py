"""`harness model detect`: single pictures, with trained weights or with a few good pictures of the same object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from harness.commands.model.options import model_options
from harness.commands.options import json_option
from harness.inference.detection import as_dict, good_of_run, line, write_overlays
from harness.inference.load_model import BRANCHES, load
from harness.job.declaration import JobError


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|FOLDER...")
@click.option("--weights", help="Run folder, or weights file (with --preset); left out: no training, few-shot only.")
@click.option("--normal", multiple=True, metavar="IMAGE|FOLDER", help="Good pictures to compare with; repeatable.")
@click.option(
    "--shots", type=click.IntRange(min=1), help="Number of good pictures; without --normal, from the run's data."
)
@click.option("--branch", type=click.Choice(BRANCHES), help="Which map (default: memory, if there are good pictures).")
@click.option("--category", default="", help="What the pictures show (default: the run's, or by their folders).")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the map overlays (PNG).")
@json_option
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
    """Score, localize and judge pictures: a line per picture, and an overlay of the map in --out.

    \b
    harness model detect tile.png --weights results/STUDY/RUN --out maps
    harness model detect test/*.png --preset small --normal train/good --shots 4     no training

    The pictures are checked first: if one is missing or damaged, it is named and none is judged.
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
        good = good_of_run(trained, shots, category)
    else:
        good = read_pictures(normal_paths, trained, beside=paths)
    session = Session(trained, normal=good, branch=branch)
    categories = [session.category_of(path, category) for path in paths]
    looks = session.look(pictures, [str(path) for path in paths], categories)
    overlays = write_overlays(session, looks, out) if out is not None else [None] * len(looks)
    if as_json:
        found = [as_dict(session, look, overlay) for look, overlay in zip(looks, overlays, strict=True)]
        click.echo(json.dumps(found, indent=1))
        return
    for look, overlay in zip(looks, overlays, strict=True):
        click.echo(line(look) + (f"  {overlay}" if overlay else ""))
