"""What `harness compare` prints at its end: 24 lines of 100 characters. The verdict, one table, at most three warnings,
where the report is, what to ask next.

Where duels decided the speed, the table shows the duels' samples/s; those of the trainings are in the report.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.analysis.caveats import Finding
from harness.analysis.comparison import Comparison
from harness.analysis.duels.record import label, same_as
from harness.analysis.duels.sentences import lacking
from harness.analysis.duels.throughput import rates as rates_of
from harness.analysis.verdict import verdict
from harness.common.formatting import DASH, fixed, is_number, mebibytes, number, plural
from harness.report.comparison_table import table_rows

LINES, COLUMNS = 24, 100
WARNINGS = 3  # the report has all
# Of the findings about single trainings' speed, the one that stays where duels decided: the screen rests on none of it.
OF_TRAININGS = "straggler"
_ANSWERS = "the answer accuracy is only the share"  # which the screen does not show
_HEADS = ("engine", "workers", "samples/s", "efficiency", "memory", "final loss", "image AUROC", "pixel AUROC")


def last_screen(
    comparison: Comparison, found: Sequence[Finding], page: Path, *, columns: int = COLUMNS, lines: int = LINES
) -> list[str]:
    """The lines of the screen, none longer than `columns`; more than `lines` only where the table alone needs them.

    Args:
        found: findings of the comparison, the most serious first.
        page: the report.
    """
    table = _table(comparison, columns)
    warnings = _warnings(comparison, found, columns)
    end = _wrapped(f"report: {page}", columns) + _wrapped(f"next: {next_step(comparison)}", columns)
    left = lines - len(table) - len(warnings) - len(end)
    return [*_sentences(verdict(comparison, found), columns, left), *table, *warnings, *end]


def next_step(comparison: Comparison) -> str:
    """One command that fits the outcome."""
    record = comparison.duels
    if record is None:
        return "harness compare --help names what else can be compared"
    sides = {side["name"]: side for side in record["contenders"]}
    first = record["contenders"][0]["name"]
    engines = [row for row in record["differences"] if first not in (row["a"], row["b"])]
    if undecided := [lacking(row, record) for row in engines if row["verdict"] == "undecided"]:
        longest = max(undecided, key=lambda text: int((re.findall(r"--budget (\d+)m", text) or ["0"])[0]))
        found = re.search(r"--budget \d+m", longest)
        option = found.group() if found else "a smaller --until"
        return f"the same command with {option} goes on from these duels"
    pairs = [(row["a"], row["b"]) for row in engines] or [(first, name) for name in sides if name != first]
    asked = [sides[name] for name in dict.fromkeys(name for pair in pairs for name in pair)]
    names = ",".join(dict.fromkeys(map(_typed, asked)))
    workers = max(side["workers"] for side in asked)
    return f"harness tune --backends {names} --workers {workers} (their fastest settings)"


def _typed(side: Mapping[str, Any]) -> str:
    """The engine as it is typed: ``deepspeed:zero_stage=2``."""
    stage = "" if side["zero_stage"] is None else f":zero_stage={side['zero_stage']}"
    return f"{side['backend']}{stage}"


def _table(comparison: Comparison, columns: int) -> list[str]:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = _duel_rows(comparison) if comparison.duels is not None else _training_rows(comparison)
    shown = [index for index in range(len(_HEADS)) if index < 3 or any(row[index] != DASH for row in rows)]
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, collapse_padding=True)
    for index in shown:
        table.add_column(_HEADS[index], justify="left" if index == 0 else "right", no_wrap=index > 0)
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    console = Console(file=io.StringIO(), width=columns, color_system=None, markup=False, highlight=False)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def _duel_rows(comparison: Comparison) -> list[list[str]]:
    """A row a contender, its quality and memory from the training of the same engine and workers."""
    record = comparison.duels
    assert record is not None
    rates = {name: rate.value for name, rate in rates_of(record).items()}
    first = record["contenders"][0]["name"]
    shares = {row["b"]: row["efficiency"] for row in record["differences"] if row["a"] == first and "efficiency" in row}
    cells = {(cell["label"], int(cell["workers"])): cell for cell in comparison.main.to_dict("records")}
    rows = []
    for side in record["contenders"]:
        if same_as(side["name"]) is not None or side["name"] not in rates:
            continue
        name = label(side)
        cell = cells.get((name, side["workers"]), {})
        rows.append([name, str(side["workers"]), number(rates[side["name"]], 3), _share(shares.get(side["name"]))])
        rows[-1] += _quality(cell)
    return rows


def _training_rows(comparison: Comparison) -> list[list[str]]:
    rows = []
    for row, cell in zip(table_rows(comparison), comparison.cells.to_dict("records"), strict=True):
        text = row["texts"]
        rows.append([text["engine"], text["workers"], row["short_rate"] or DASH, row["short_efficiency"]])
        rows[-1] += _quality(cell)
    return rows


def _quality(cell: Mapping[str, Any]) -> list[str]:
    """Memory, loss and AUROCs of a cell, the last with half of their interval where it is known."""
    return [
        mebibytes(cell.get("peak_memory_mib")) if is_number(cell.get("peak_memory_mib")) else DASH,
        number(cell.get("final_loss")) if is_number(cell.get("final_loss")) else DASH,
        *(_with_half(cell, name) for name in ("image_auroc", "pixel_auroc")),
    ]


def _with_half(cell: Mapping[str, Any], name: str) -> str:
    if not is_number(cell.get(name)):
        return DASH
    half = cell.get(f"{name}_half")
    return fixed(cell[name], 3) + (f" ±{fixed(half, 3)}" if is_number(half) else "")


def _share(ends: Mapping[str, Any] | None) -> str:
    """``68 % (66 to 70)``."""
    if not ends:
        return DASH
    if ends["low"] is None:
        return f"{ends['value'] * 100:.0f} %"
    return f"{ends['value'] * 100:.0f} % ({ends['low'] * 100:.0f} to {ends['high'] * 100:.0f})"


def _warnings(comparison: Comparison, found: Sequence[Finding], columns: int) -> list[str]:
    """One line a warning; what they leave out is counted."""
    kept = [item for item in found if comparison.duels is None or item.code != OF_TRAININGS]
    kept = [item for item in kept if _ANSWERS not in item.text]
    shown = [_short(f"{item.level}: {item.text}", columns) for item in kept if item.level != "note"][:WARNINGS]
    more = len(found) - len(shown)
    return shown + ([f"{plural(more, 'more remark')} in the report"] if more else [])


def _short(text: str, columns: int) -> str:
    return textwrap.shorten(text, columns, placeholder=" ...", break_on_hyphens=False)


def _sentences(sentences: Sequence[str], columns: int, lines: int) -> list[str]:
    """Whole sentences, as many as fit in `lines`, the first at least."""
    text: list[str] = []
    for index, sentence in enumerate(sentences):
        own = _wrapped(sentence, columns)
        if text and len(text) + len(own) > lines - (index < len(sentences) - 1):
            rest = plural(len(sentences) - index, "more sentence")
            return [*text, f"({rest} in the report)"]
        text += own
    return text


def _wrapped(text: str, columns: int) -> list[str]:
    bound = text.replace(" %", "\u00a0%")  # a figure and its unit stay on one line
    lines = textwrap.wrap(bound, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]
