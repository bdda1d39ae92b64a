"""A table as text cells, and how it is written as Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.common.formatting import DASH


@dataclass(frozen=True, kw_only=True)
class Table:
    """rows: text cells, the first of each row is its heading. numeric: whether the other columns are set right.
    strong: positions of rows to be marked (failed cells, wrong figures)."""

    id: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numeric: bool = True
    strong: Sequence[int] = ()


def markdown(table: Table) -> str:
    """A GitHub table under a heading, where it has one."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = ["---"] + (["---:" if table.numeric else "---"] * (len(table.columns) - 1))
    heading = [f"### {table.title}", ""] if table.title else []
    lines = [*heading, line(table.columns), line(rule), *map(line, table.rows)]
    return "\n".join([*lines, "", table.note, ""] if table.note else [*lines, ""])


def latex(table: Table) -> str:
    """A booktabs table (needs ``\\usepackage{booktabs}``)."""
    align = "l" + ("r" if table.numeric else "l") * (len(table.columns) - 1)
    lines = [
        "\\begin{table}[htbp]",
        "\\centering",
        f"\\caption{{{tex(table.title)}{'. ' + tex(table.note) if table.note else ''}}}",
        f"\\label{{tab:{table.id}}}",
        f"\\begin{{tabular}}{{{align}}}",
        "\\toprule",
        " & ".join(map(tex, table.columns)) + " \\\\",
        "\\midrule",
        *(" & ".join(map(tex, row)) + " \\\\" for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


_TEX = {
    "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{", "}": "\\}",
    "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "–": "--", "±": "$\\pm$", "×": "$\\times$", "…": "\\ldots{}",  # noqa: RUF001
}  # fmt: skip


def tex(text: str) -> str:
    """`text` with LaTeX's special characters escaped."""
    return "".join(_TEX.get(character, character) for character in text)


def csv_text(table: Table) -> str:
    """The table as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([table.columns, *table.rows])
    return out.getvalue()


def without_empty_columns(table: Table) -> Table:
    """The table without columns that hold only dashes."""
    kept = [
        column
        for column in range(len(table.columns))
        if column == 0 or any(row[column] not in (DASH, "") for row in table.rows)
    ]
    columns = [table.columns[column] for column in kept]
    return replace(table, columns=columns, rows=[[row[column] for column in kept] for row in table.rows])
