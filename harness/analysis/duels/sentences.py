"""The verdict of a study's duels, in sentences: which engine is faster, how far each is from plain torch, whether the
method finds an engine alike with itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.analysis.cells import COMMON_BASELINE
from harness.analysis.duels.needed import duel_seconds, need
from harness.analysis.duels.record import Record, Side, blocks_of, bounds, first_stage_of, label, same_as
from harness.analysis.duels.throughput import meanwhile
from harness.analysis.intervals import ALIKE
from harness.common.formatting import change, duration, joined, percent, plural

Row = Mapping[str, Any]  # one of a record's differences
PLAIN = "plain torch on one worker"


def speed(record: Record) -> list[str]:
    """A sentence for each two engines that were compared at equal workers, most workers first, then how far each is
    from plain torch, then the calibration. Empty where nothing was fought."""
    sides = {side["name"]: side for side in record["contenders"]}
    between = [row for row in record["differences"] if sides[row["a"]]["workers"] == sides[row["b"]]["workers"]]
    first = record["contenders"][0]
    apart = first["name"] if _is_plain(first) else None  # told for itself: it is the baseline of all
    engines = [row for row in between if apart not in (row["a"], row["b"]) and same_as(row["b"]) is None]
    engines.sort(key=lambda row: -sides[row["a"]]["workers"])
    sentences = [_between(row, sides, record) for row in engines]
    sentences += _against_first(record, sides, beside=not engines)
    sentences += [_calibration(row, sides) for row in between if same_as(row["b"]) == row["a"]]
    sentences += [
        f"{_name(sides, item['a'])} and {_name(sides, item['b'])} fought no duel: {item['reason']}."
        for item in record.get("not_fought") or ()
    ]
    return sentences


def _between(row: Row, sides: Mapping[str, Side], record: Record) -> str:
    """``Horovod is 4.2 % faster than DeepSpeed ZeRO-2 at 2 workers (95 % CI 2.0 to 6.1 %, 5 duels).``"""
    at = f"at {plural(sides[row['b']]['workers'], 'worker')}"
    beside = meanwhile(record, row["a"], row["b"])
    basis = f"{bounds(row)}, {plural(row['duels'], 'duel')}{beside}"
    a, b = label(sides[row["a"]]), label(sides[row["b"]])
    if row["verdict"] == "undecided":
        return f"Undecided {at}: {b} against {a} {change(row['value'])} ({basis}); {lacking(row, record)}."
    if row["verdict"] == "alike":
        within = f"they differ by less than {percent(ALIKE)}"
        return f"{b} and {a} are alike in speed {at}: {within} ({change(row['value'])}, {basis})."
    if row["value"] < 0:  # who is faster is said, not who is slower
        a, b, row = b, a, turned(row)
        basis = f"{bounds(row)}, {plural(row['duels'], 'duel')}{beside}"
    small = f", but by less than {percent(ALIKE)}" if "less" in row["verdict"] else ""
    return f"{b} is {percent(row['value'], 1)} faster than {a} {at}{small} ({basis})."


def lacking(row: Row, record: Record) -> str:
    """What an undecided difference would take: ``about 3 more duels (4.2 min) for ±5.0 %: --budget 15m``."""
    goal = record.get("goal") or {}
    wanted = float(goal.get("until") or ALIKE)
    more = need(blocks_of(record), row["a"], row["b"], wanted, first_stage=first_stage_of(record)).missing
    if not more:  # as narrow as was asked for, and both zero and the margin are inside
        return f"the interval is as narrow as was asked for: a smaller --until than {percent(wanted, 1)} would tell"
    seconds = more * duel_seconds(record)
    minutes = (float(goal.get("budget_s") or 0.0) + seconds) / 60
    text = f"about {plural(more, 'more duel')} ({duration(seconds)}) for ±{percent(wanted, 1)}"
    return f"{text}: --budget {minutes + 1:.0f}m"


def _is_plain(side: Side) -> bool:
    """Whether it is plain torch on one worker, the baseline of every engine."""
    return side["backend"] == COMMON_BASELINE and side["workers"] == 1


def _against_first(record: Record, sides: Mapping[str, Side], *, beside: bool) -> list[str]:
    """One sentence a number of workers: throughput of each engine against the first contender, mostly plain torch on
    one worker; as efficiency where there are more workers. Of another first contender the engines at as many workers
    have been told. beside: say here what other work ran meanwhile, since no sentence between engines does."""
    first = record["contenders"][0]
    plain = _is_plain(first)
    baseline = PLAIN if plain else f"{label(first)} on {plural(first['workers'], 'worker')}"
    rows = [row for row in record["differences"] if row["a"] == first["name"] and same_as(row["b"]) is None]
    sentences = []
    for workers in sorted({sides[row["b"]]["workers"] for row in rows}, reverse=True):
        here = [row for row in rows if sides[row["b"]]["workers"] == workers]
        meant = meanwhile(record, first["name"], *(row["b"] for row in here)) if beside else ""
        if workers > first["workers"]:
            shares = joined([f"{label(sides[row['b']])} {_efficiency(row)}" for row in here])
            sentences.append(f"Scaling efficiency at {workers} workers, against {baseline}: {shares}{meant}.")
        elif plain or workers < first["workers"]:
            shares = joined([f"{label(sides[row['b']])} {change(row['value'])} ({bounds(row)})" for row in here])
            at = "On one worker" if workers == 1 else f"On {workers} workers"
            sentences.append(f"{at}, against {'plain torch' if plain else baseline}: {shares}{meant}.")
    return sentences


def _efficiency(row: Row) -> str:
    ends = row["efficiency"]
    if ends["low"] is None:
        return f"{percent(ends['value'])} (no interval)"
    return f"{percent(ends['value'])} ({ends['low'] * 100:.0f} to {percent(ends['high'])})"


def _calibration(row: Row, sides: Mapping[str, Side]) -> str:
    """An engine against itself: it must come out alike."""
    side = sides[row["a"]]
    name = "plain torch" if _is_plain(side) else label(side)
    found = f"{change(row['value'])}, {bounds(row)}, {plural(row['duels'], 'duel')}"
    if row["verdict"] == "alike" or "less" in row["verdict"]:
        return f"Calibration: {name} against itself differs by less than {percent(ALIKE)} ({found})."
    if row["verdict"] == "undecided":
        return f"Calibration: {name} cannot be told from itself, but only within a wide interval ({found})."
    return f"CALIBRATION FAILED: {name} came out different from itself ({found}): do not trust these duels."


def _name(sides: Mapping[str, Side], name: str) -> str:
    return f"{label(sides[name])} with {plural(sides[name]['workers'], 'worker')}"


def turned(row: Row) -> Row:
    """The same difference told from the other side."""

    def back(value: float | None) -> float | None:
        return None if value is None else 1 / (1 + value) - 1

    words = {"faster": "slower", "slower": "faster"}
    verdict = re.sub("^(?:faster|slower)", lambda match: words[match[0]], str(row["verdict"]))
    ends = {"value": back(row["value"]), "low": back(row["high"]), "high": back(row["low"])}
    return {**row, **ends, "verdict": verdict}
