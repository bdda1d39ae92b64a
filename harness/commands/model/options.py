"""The options of every command that loads a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from harness.commands.options import device_option


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that loads a model; collect them by `load(source, **options)`."""
    for option in reversed(
        (
            click.option("--preset", default="", help="The preset of a bare weights file (a run knows its own)."),
            device_option,
            click.option("--threads", type=click.IntRange(min=1), help="CPU threads (default: torch's)."),
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="KEY=VALUE",
                help="Any job field; model.KEY, data_options.KEY.",
            ),
        )
    ):
        command = option(command)
    return command
