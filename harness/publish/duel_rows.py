"""Several studies of duels in one table, a row a job: what the README's first screen shows.

``<!-- duels NAME NAME ... -->`` in a marked file is filled with it (`harness.publish.readme_blocks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.analysis.duels import record as duels
from harness.analysis.verdict import machine
from harness.common.formatting import DASH
from harness.common.text_table import Table
from harness.publish.answers import seen_from
from harness.records.record_files import read_json

_ORDER = ("ddp", "horovod", "deepspeed", "fsdp2", "single")  # of the engines' columns
LAST = "Horovod against the fastest DeepSpeed"


def side_by_side(studies: Sequence[Path], root: Path) -> Table:
    """A row a study (a folder with duel.json): each engine against the first contender, then Horovod against DeepSpeed.

    An engine on more workers than the first contender shows its efficiency, one on as many its difference; each with
    its 95 % interval. root: where the table is shown, for the links. Settings of an engine that were tried beside it
    have no column: `duel.md` holds them.
    """
    found = [(study, read_json(study / duels.NAME)) for study in studies]
    columns = _engines([record for _, record in found])
    rows = [_row(study, record, columns, root) for study, record in found]
    return Table(id="duels", title="", columns=["job", "on", *columns, LAST], rows=rows, numeric=False)


def _engines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels of the engines that any record sets against its first contender, in the order of the columns."""
    sides = [side for record in records for side in record["contenders"][1:] if _plain(side)]
    sides.sort(key=lambda side: (_ORDER.index(side["backend"]), side["zero_stage"] or 0))
    return list(dict.fromkeys(duels.label(side) for side in sides))


def _plain(side: Mapping[str, Any]) -> bool:
    """An engine as it comes, no calibration."""
    return not side["settings"] and duels.same_as(side["name"]) is None and side["backend"] in _ORDER


def _row(study: Path, record: Mapping[str, Any], columns: Sequence[str], root: Path) -> list[str]:
    first, *others = record["contenders"]
    most = max(side["workers"] for side in record["contenders"])
    at_most = [side for side in others if side["workers"] == most and _plain(side)]
    against = {item["b"]: item for item in record["differences"] if item["a"] == first["name"]}
    shown = {duels.label(side): _share(against.get(side["name"])) for side in at_most}
    where = seen_from(root, study)
    job = f"[{record['job']['preset']}, {record['job']['precision']}]({where}/{duels.PAGE})"
    place = machine(dict(record.get("environment") or {}), most)
    return [job, place, *(shown.get(label, DASH) for label in columns), _question(record, at_most, against)]


def _share(item: Mapping[str, Any] | None) -> str:
    if item is None:
        return DASH
    ends, form = (item["efficiency"], "{:.1%}") if item.get("efficiency") else (item, "{:+.1%}")
    if ends["low"] is None:
        return DASH  # one duel has no interval, and no figure stands without one
    low, high = form.format(ends["low"]), form.format(ends["high"])
    return f"{form.format(ends['value'])} ({low} to {high})".replace("%", " %")


def _question(
    record: Mapping[str, Any], sides: Sequence[Mapping[str, Any]], against: Mapping[str, Mapping[str, Any]]
) -> str:
    """``+10.3 % (8.8 to 11.8 %), ZeRO-1: faster``."""
    deepspeed = [side for side in sides if side["backend"] == "deepspeed" and side["name"] in against]
    horovod = next((side for side in sides if side["backend"] == "horovod"), None)
    if not deepspeed or horovod is None:
        return DASH
    best = max(deepspeed, key=lambda side: against[side["name"]]["value"])
    pair = (best["name"], horovod["name"])
    item = next((item for item in record["differences"] if (item["a"], item["b"]) == pair), None)
    if item is None or item["low"] is None:
        return DASH
    return f"{_share({**item, 'efficiency': None})}, {duels.label(best)}: {item['verdict']}"
