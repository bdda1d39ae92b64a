"""`harness model serve`: the detect-and-chat page of the original demonstration (extra ``gradio``)."""

from __future__ import annotations

from typing import Any

import click

from harness.commands.model.options import model_options


@click.command()
@click.argument("run", metavar="RUN|WEIGHTS")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 = any free port.")
@click.option("--category", default="", help="What the pictures show, filled in on the page.")
@model_options
def serve(run: str, port: int, category: str, **options: Any) -> None:
    """Serve a page on this machine: a picture, good pictures to compare with, the map, a conversation."""
    from harness.inference.page_server import serve as serve_page

    serve_page(run, port=port, category=category, say=click.echo, **options)
