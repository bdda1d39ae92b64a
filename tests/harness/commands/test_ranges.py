"""Numbers of every command have ranges: what is out of them is refused before anything is started."""

from __future__ import annotations

import click
import pytest

from harness.commands.tree import all_commands, load

# Numbers without a limit of their own, with the reason.
UNLIMITED = {("worker", "local_rank"): "given by a launcher"}


def numbers(command: click.Command, name: str) -> list[tuple[str, click.Parameter]]:
    if isinstance(command, click.Group):
        return [found for sub, inner in command.commands.items() for found in numbers(inner, f"{name} {sub}")]
    return [(name, parameter) for parameter in command.params if parameter.type.name in ("integer", "float")]


@pytest.mark.parametrize("name", all_commands())
def test_every_number_has_a_range(name: str) -> None:
    for path, parameter in numbers(load(name), name):
        plain = parameter.type in (click.INT, click.FLOAT)
        assert not plain or (path, parameter.name) in UNLIMITED, f"harness {path}: {parameter.name} takes any number"
