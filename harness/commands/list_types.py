"""Types of options that take a list with commas between its parts: what is wrong is one line that names the part."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click
from click.shell_completion import CompletionItem

import backends
from harness.job.declaration import JobError
from harness.job.engines import split_engines
from harness.job.options import names_in


def _flag(param: click.Parameter | None) -> str:
    return param.opts[0] if param is not None else "option"


def _completed(known: Collection[str], incomplete: str) -> list[CompletionItem]:
    """What may follow the last comma of `incomplete`, each behind what is written before it."""
    head, comma, last = incomplete.rpartition(",")
    return [CompletionItem(f"{head}{comma}{name}") for name in known if name.startswith(last)]


class Counts(click.ParamType):
    """``1,2,4``: whole numbers of at least 1 (`least`), as a list[int]."""

    name = "list"

    def __init__(self, least: int = 1) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if not isinstance(value, str):
            return list(value)
        words = [word.strip() for word in value.split(",")]
        if not all(word.isascii() and word.isdigit() and int(word) >= self.least for word in words):
            example = f"whole numbers of at least {self.least} with commas between them, as 1,2,4"
            raise JobError(f"{_flag(param)} '{value}': write {example}")
        return [int(word) for word in words]


class Names(click.ParamType):
    """``a,b``: names, each one of `known`, as a list[str]. what: what they are called where one is wrong."""

    name = "list"

    def __init__(self, known: Collection[str], what: str) -> None:
        self.known, self.what = known, what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if not isinstance(value, str):
            return list(value)
        found = names_in(value, self.known, self.what)
        if not found:
            raise JobError(f"{_flag(param)} '{value}': choose of {', '.join(self.known)}")
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _completed(self.known, incomplete)


class Engines(click.ParamType):
    """Engines as `harness.job.engines` writes them, as a list[str], each still as it was written."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        return split_engines(value) if isinstance(value, str) else list(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _completed(backends.names(), incomplete)


COUNTS = Counts()
ENGINES = Engines()
PRECISIONS = Names(("fp32", "bf16", "fp16"), "precision")
MODES = Names(("matched", "native"), "precision mode")
