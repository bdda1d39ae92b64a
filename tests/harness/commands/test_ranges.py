"""Numbers of every command have ranges: what is out of them is refused before anything is started."""

from __future__ import annotations

import importlib

import click
import pytest

from harness.cli import COMMANDS, LazyGroup
from harness.cli import cli as group

# Numbers without a limit of their own, with the reason.
UNLIMITED = {("worker", "local_rank"): "given by a launcher"}


def numbers(command: click.Command, name: str) -> list[tuple[str, click.Parameter]]:
    if isinstance(command, click.Group):
        return [found for sub, inner in command.commands.items() for found in numbers(inner, f"{name} {sub}")]
    return [(name, parameter) for parameter in command.params if parameter.type.name in ("integer", "float")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_number_has_a_range(name: str) -> None:
    module, attribute = COMMANDS[name][0].split(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(group, LazyGroup)
    for path, parameter in numbers(command, name):
        plain = parameter.type in (click.INT, click.FLOAT)
        assert not plain or (path, parameter.name) in UNLIMITED, f"harness {path}: {parameter.name} takes any number"
