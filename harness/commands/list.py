"""`harness list`: what there is to choose from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from harness.commands.options import json_option


@click.command()
@json_option
def engines(as_json: bool) -> None:
    """List the engines: whether each can be used here, and its settings with their defaults."""
    from dataclasses import MISSING, fields

    import backends

    rows: list[dict[str, Any]] = []
    for name in backends.names():
        state = backends.availability(name)
        settings = {
            item.name: item.default if item.default is not MISSING else None
            for item in fields(backends.backend_class(name).Settings)
        }
        rows.append({"engine": name, "usable": state.usable, "reason": state.reason, "settings": settings})
    if as_json:
        click.echo(json.dumps(rows, indent=1, default=str))
        return
    for row in rows:
        click.echo(f"{row['engine']}: {'usable here' if row['usable'] else 'not usable here: ' + row['reason']}")
        for key, value in row["settings"].items():
            click.echo(f"  {key}={value}")
    click.echo("\nSettings stand behind the name: --backends deepspeed:2+overlap_comm=true,horovod")


@click.command()
@json_option
def presets(as_json: bool) -> None:
    """List the models that can be trained (``--preset NAME``) and their parts."""
    from core_model.presets import PRESETS, names

    rows: list[dict[str, Any]] = []
    for name in names():
        spec = PRESETS.get(name)
        rows.append(
            {
                "preset": name,
                "encoder": spec.encoder if spec else "",
                "language": spec.language if spec else "",
                "pixels": spec.image_size if spec else None,
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    _print(("preset", "encoder", "language model", "pixels"), [list(row.values()) for row in rows])
    click.echo("clip takes a folder or hub name: --preset clip:FOLDER. llama-600m is a plain language model.")


@click.command()
@json_option
def studies(as_json: bool) -> None:
    """List the shipped studies (``harness compare NAME``): title, and what each needs."""
    from harness.study.shipped import needs, titles

    rows = [{"study": name, "title": title, "needs": needs(name)} for name, title in titles().items()]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    _print(("study", "needs", "title"), [[row["study"], row["needs"], row["title"]] for row in rows])


def _print(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table without lines, wrapped to the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading in ("study", "preset"), overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    Console().print(table)


@click.command()
def commands() -> None:
    """Write the command reference (docs/commands.md) to the terminal."""
    from harness.commands.reference import page

    click.echo(page(), nl=False)
