"""Figures as a person reads them: few digits, the unit beside them, a dash where there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

from core_model.user_job.source import MADE_UP_DATA, OWN_DATA, label_of, source_of

DASH = "–"  # noqa: RUF001 - the typographic dash of tables


def trained(job: Mapping[str, Any]) -> str:
    """What a job (its record's fields) trains on what: ``tiny on textures``, ``my_job.py:make_job`` (whose data are its
    own), ``hf:gpt2 on text:notes.txt``."""
    data = str(job.get("data"))
    kind, colon, path = data.partition(":")
    if colon and source_of(str(job.get("preset"))) is not None and Path(path).is_absolute():
        data = f"{kind}:{Path(path).name}"
    model = label_of(str(job.get("preset")))
    return model if data in (OWN_DATA, MADE_UP_DATA) else f"{model} on {data}"


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits, without exponent up to a million."""
    if not is_number(value):
        return DASH
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, places)}f}" if -4 < places - digits + 1 < 4 or abs(value) < 1e6 else f"{value:.{digits}g}"


def fixed(value: float | None, places: int) -> str:
    """`value` with `places` decimals."""
    return f"{value:.{places}f}" if is_number(value) else DASH


def percent(value: float | None, places: int = 0) -> str:
    """A share as per cent: ``0.853`` is ``85 %``."""
    return f"{value * 100:.{places}f} %" if is_number(value) else DASH


def change(share: float, places: int = 1) -> str:
    """A relative change with its sign: ``0.041`` is ``+4.1 %``."""
    return f"{share * 100:+.{places}f} %"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds with three significant digits."""
    return number(None if seconds is None else seconds * 1000)


def binary(size: float) -> str:
    """Bytes in the largest binary unit that they fill: ``64 MiB``."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:g} B"


def mebibytes(value: float | None) -> str:
    """MiB up to 9999, GiB beyond."""
    if not is_number(value):
        return DASH
    if value >= 10000:
        return f"{value / 1024:.1f} GiB"
    return f"{value:.0f} MiB" if value >= 100 else f"{number(value, 2)} MiB"


def duration(seconds: float | None) -> str:
    """``42 s``, ``3.5 min``, ``5.7 h``, ``1.9 d``: the form of DeepSpeed-Chat's tables."""
    if not is_number(seconds):
        return DASH
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.{0 if unit == 's' and seconds >= 10 else 1}f} {unit}"
    return f"{seconds / 86400:.1f} d"


def joined(items: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    items = list(items)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""


def plural(count: int, noun: str, many: str = "") -> str:
    """``1 run``, ``3 runs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {many or noun + 's'}"


def iso(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
