"""A table of which each row may have a cause that is told below it, by a number: as Markdown and on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness.common.text_table import Table, markdown


def numbered(causes: Iterable[str]) -> dict[str, int]:
    """Cause -> its number from 1, in the order of the rows; rows without one ("") are left out."""
    return {cause: number for number, cause in enumerate(dict.fromkeys(filter(None, causes)), 1)}


def page(heading: Sequence[str], table: Table, causes: Mapping[str, int]) -> str:
    """Markdown: the lines of `heading`, the table, then the causes by their numbers."""
    told = [f"- [{number}] {cause}" for cause, number in causes.items()]
    return "\n".join([*heading, "", markdown(table), *told, *([""] if told else [])])


def print_page(table: Table, causes: Mapping[str, int], *, last: str = "") -> None:
    """The same in the terminal: the first and last column are set left, rows of `table.strong` in bold."""
    from rich.console import Console
    from rich.table import Table as Screen

    screen = Screen(title=table.title)
    for index, header in enumerate(table.columns):
        screen.add_column(header, justify="left" if index in (0, len(table.columns) - 1) else "right")
    for number, row in enumerate(table.rows):
        screen.add_row(*row, style="bold" if number in table.strong else "")
    console = Console()
    console.print(screen)
    for text in [*(f"[{number}] {cause}" for cause, number in causes.items()), *filter(None, [last])]:
        console.print(text, markup=False, highlight=False)
