"""The interval picture (a forest plot): each asked difference with its interval, against zero and the band of +-5 %."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.analysis import judged_speed
from harness.analysis.comparison import Comparison
from harness.analysis.duels.record import label, same_as
from harness.analysis.duels.sentences import turned
from harness.analysis.intervals import ALIKE
from harness.analysis.verdict import facing
from harness.common.formatting import change, is_number, plural
from harness.report.charts.sheet import Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLAIN = "plain torch"
MOST = 24  # rows; the table below the picture has all
WIDTH = 5.4  # inches: about that of a phone, so its text keeps its size there
_WRAP = 52  # characters of a row's name in a line
_LOWEST, _HIGHEST = -60.0, 150.0  # per cent; what reaches further is cut, with an arrow
# what the interval shows -> (colour, marker, whether it is filled): told apart without colours too
_LOOKS = {
    "faster": ("#0072B2", "s", True),
    "slower": ("#C14E00", "s", True),
    "alike": ("#007A5A", "o", True),
    "undecided": ("#4B4B4B", "o", False),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A difference: `name` says what against what, `value` how much more throughput (0.04 = 4 %) with its 95 % bounds,
    `basis` what stands behind it, `word` one of faster, slower, alike, undecided."""

    name: str
    value: float
    low: float | None
    high: float | None
    basis: str
    word: str


def rows_of(comparison: Comparison) -> list[Row]:
    """The differences in speed of a study that its verdict judges, most workers first: of its duels, with the
    calibration, or of its trainings paired by repeat."""
    if comparison.duels is not None:
        return rows_of_duels(comparison.duels)
    rows = []
    for pair in sorted(judged_speed.differences(comparison), key=lambda pair: -pair.workers):
        found = pair.difference
        if found.real and found.value < 0:  # as the verdict: who is faster
            found = facing(pair, found.a).difference
        word = ("faster" if found.value > 0 else "slower") if found.real else found.word
        rows.append(
            Row(
                name=f"{found.b} against {found.a}, {plural(pair.workers, 'worker')}",
                value=found.value, low=found.low, high=found.high, basis=plural(found.pairs, "pair"), word=word,
            )
        )  # fmt: skip
    return rows


def rows_of_duels(record: Mapping[str, Any]) -> list[Row]:
    """The differences of duels at equal numbers of workers: engines beside engines, most workers first, then against
    plain torch, then plain torch against itself. Contenders on more workers than plain torch are in `efficiency_rows`:
    their difference is mostly the number of workers."""
    sides = {side["name"]: side for side in record["contenders"]}
    first = record["contenders"][0]["name"]
    rows = [row for row in record["differences"] if sides[row["a"]]["workers"] == sides[row["b"]]["workers"]]
    rows.sort(key=lambda row: (same_as(row["b"]) is not None, row["a"] == first, -sides[row["b"]]["workers"]))
    found = []
    for row in rows:
        a, b = sides[row["a"]], sides[row["b"]]
        at = plural(b["workers"], "worker")
        name = f"{_called(b)} against {_called(a)}, {at}"
        if same_as(b["name"]) == a["name"]:
            name = f"Calibration: {_called(a)} against itself"
        elif row["value"] < 0 and _called(a) != PLAIN and str(row["verdict"]).startswith("slower"):
            name, row = f"{_called(a)} against {_called(b)}, {at}", turned(row)  # as the verdict: who is faster
        found.append(_row(name, row, 1.0))
    return found


def efficiency_rows(record: Mapping[str, Any]) -> list[Row]:
    """How much each contender on more workers lacks of so many times the first contender's throughput, most workers
    first."""
    sides = {side["name"]: side for side in record["contenders"]}
    rows = [row for row in record["differences"] if sides[row["a"]]["workers"] < sides[row["b"]]["workers"]]
    rows.sort(key=lambda row: -sides[row["b"]]["workers"])
    return [
        _row(
            f"{_called(sides[row['b']])}, {plural(sides[row['b']]['workers'], 'worker')}",
            row,
            sides[row["b"]]["workers"] / sides[row["a"]]["workers"],
        )
        for row in rows
    ]


def _called(side: Mapping[str, Any]) -> str:
    """The engine's label, in the verdict's words."""
    return PLAIN if side["backend"] == "single" and not side["settings"] else label(side)


def _row(name: str, row: Mapping[str, Any], growth: float) -> Row:
    value, low, high = (
        (1 + row[end]) / growth - 1 if is_number(row[end]) else None for end in ("value", "low", "high")
    )
    word = str(row["verdict"]).split(",")[0]
    return Row(name=name, value=value or 0.0, low=low, high=high, basis=plural(row["duels"], "duel"), word=word)


def size(rows: Sequence[Row]) -> tuple[float, float]:
    """Inches that the picture of `rows` needs."""
    return WIDTH, 0.95 + sum(0.44 + 0.18 * (len(_lines(row)) - 1) for row in rows[:MOST])


def forest(rows: Sequence[Row], sheet: Sheet, title: str = "", unit: str = "") -> bool:
    """Draws the intervals of `rows`, the first on top: name above, value and basis at the right. title, unit: others
    than those of differences in throughput."""
    if not rows:
        return False
    axes = sheet.figure.add_subplot()
    low, high = _ends(rows[:MOST])
    axes.axvspan(100 * (1 / (1 + ALIKE) - 1), 100 * ALIKE, color="#4B4B4B", alpha=0.13, linewidth=0)
    axes.axvline(0, color="#000000", linewidth=1.2)
    place = 0.0
    for row in rows[:MOST]:
        lines = _lines(row)
        place -= 0.44 + 0.18 * (len(lines) - 1)
        _draw_row(sheet, axes, row, place, (low, high))
        axes.annotate("\n".join(lines), (low, place), xytext=(0, 8), textcoords="offset points", fontsize="small",
                      va="bottom", linespacing=1.1)  # fmt: skip
    axes.set_ylim(place - 0.22, 0.05)
    axes.set_xlim(low, high)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    sheet.unit = unit or "difference in samples/s"
    axes.set_xlabel(f"{sheet.unit}, %")
    left = f"; {len(rows) - MOST} more in the table" if len(rows) > MOST else ""
    title = title or "Differences in throughput with their 95 % intervals"
    sheet.titled(axes, title, title)
    sheet.note(
        f"Grey band: within {ALIKE:.0%} either way. Filled square: faster or slower for certain (zero is outside the "
        f"interval); filled circle: alike (all of it in the band); hollow circle: undecided{left}."
    )
    return True


def _lines(row: Row) -> list[str]:
    return textwrap.wrap(row.name, _WRAP) or [""]


def _ends(rows: Sequence[Row]) -> tuple[float, float]:
    """Ends of the axis, per cent: all intervals and the band, cut at `_LOWEST` and `_HIGHEST`."""
    values = [100 * value for row in rows for value in (row.value, row.low, row.high) if is_number(value)]
    low, high = max(_LOWEST, min([-7.0, *values])), min(_HIGHEST, max([7.0, *values]))
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _draw_row(sheet: Sheet, axes: Axes, row: Row, place: float, ends: tuple[float, float]) -> None:
    colour, marker, filled = _LOOKS.get(row.word, _LOOKS["undecided"])
    at = min(max(100 * row.value, ends[0]), ends[1])
    drawn = []
    if is_number(row.low) and is_number(row.high):
        low, high = max(100 * row.low, ends[0]), min(100 * row.high, ends[1])
        drawn += axes.plot([low, high], [place, place], color=colour, linewidth=2)
        for end, cut, arrow in ((low, 100 * row.low < ends[0], "<"), (high, 100 * row.high > ends[1], ">")):
            drawn += axes.plot([end], [place], color=colour, marker=arrow if cut else "|", markersize=8)
    drawn += axes.plot(
        [at], [place], color=colour, marker=marker, markersize=8, markerfacecolor=colour if filled else "#ffffff",
        markeredgewidth=1.6,
    )  # fmt: skip
    axes.annotate(
        f"{change(row.value)}, {row.basis}", (1.0, place), xycoords=("axes fraction", "data"), xytext=(6, 0),
        textcoords="offset points", fontsize="small", va="center", annotation_clip=False,
    )  # fmt: skip
    between = "no interval"
    if row.low is not None and row.high is not None:
        between = f"{100 * row.low:.1f} to {100 * row.high:.1f} %"
    text = f"{change(row.value)} ({between}, {row.basis}): {row.word}"
    sheet.read(row.name, -1, axes, drawn, [(at, place)], [("", text)])
