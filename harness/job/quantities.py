"""Shares and times as a person writes them: ``5%``, ``10m``."""

from __future__ import annotations

from harness.job.declaration import JobError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def share(text: str, what: str = "--until") -> float:
    """``2%`` or ``0.02`` as 0.02. what: the option that is named in the JobError."""
    try:
        value = float(text.rstrip("% ")) / (100 if "%" in text else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise JobError(f"{what} '{text}': write a share of the throughput, such as 2%")
    return value


def seconds(text: str, what: str = "--budget", *, zero: bool = False) -> float:
    """``90``, ``90s``, ``10m``, ``1.5h`` or ``2d`` in seconds. zero: ``0`` is allowed. what: the option that is named
    in the JobError."""
    text = text.strip()
    unit = _UNITS.get(text[-1:], 0.0)
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = -1.0
    if not (value > 0 or (zero and value == 0)) or value == float("inf"):
        raise JobError(f"{what} '{text}': write a time such as 90s, 10m or 1h (a bare number is in seconds)")
    return value
