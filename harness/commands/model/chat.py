"""`harness model chat`: several turns about a picture, in the terminal or from a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from harness.commands.model.options import model_options
from harness.inference.dialogue import Talk
from harness.inference.load_model import load

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("run", metavar="RUN|WEIGHTS")
@click.option("--image", help="Picture to begin with (later: /image PATH).")
@click.option("--normal", multiple=True, metavar="IMAGE|FOLDER", help="Good pictures for a few-shot map; repeatable.")
@click.option("--category", default="", help="What the pictures show (default: the run's, or by their folders).")
@model_options
def chat(run: str, image: str | None, normal: tuple[str, ...], category: str, **options: Any) -> None:
    """Talk about a picture with trained weights. A line is a question; lines with a slash are commands (/help)."""
    from harness.inference.session import Session, picture_paths, read_pictures

    if image:
        picture_paths([image])  # a wrong path is said before the model is loaded
    good = picture_paths(normal)
    trained = load(run, **options)
    session = Session(trained, normal=read_pictures(good, trained))
    talk = Talk(session, category)
    if image:
        talk.say(talk.open(image))
    elif talk.at_terminal:
        talk.say("no picture yet: /image PATH (and /help for the other commands)")
    talk.run()
