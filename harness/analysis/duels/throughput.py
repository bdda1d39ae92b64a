"""Throughput of each contender of duels with its interval, and the work of others that ran meanwhile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.analysis.duels.estimate import half_width
from harness.analysis.duels.record import first_stage_of
from harness.instruments.foreign_load import NOTED


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Samples/s: geometric mean of the duels' totals. low, high: 95 % bounds, None with a single duel."""

    value: float
    low: float | None
    high: float | None
    duels: int


def rates(record: Mapping[str, Any]) -> dict[str, Rate]:
    """Contender -> its throughput. Of two contenders of the same rounds the ratio of the values is the difference that
    the verdict names: both are means of the duels' logarithms."""
    stage = first_stage_of(record)
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for block in record["blocks"]:
        duels = found.setdefault(block["engine"], {})
        samples, seconds = duels.get(block["duel"], (0.0, 0.0))
        duels[block["duel"]] = (samples + block["samples"], seconds + block["seconds"])
    return {name: _rate([duels[number] for number in sorted(duels)], stage) for name, duels in found.items()}


def _rate(totals: list[tuple[float, float]], stage: int) -> Rate:
    logs = np.log([samples / seconds for samples, seconds in totals])
    centre, half = float(logs.mean()), half_width(logs, first_stage=stage)
    low, high = (None, None) if half is None else (math.exp(centre - half), math.exp(centre + half))
    return Rate(value=math.exp(centre), low=low, high=high, duels=len(totals))


def meanwhile(record: Mapping[str, Any], *names: str) -> str:
    """``; other work used 1.4 of 2 cores meanwhile`` where other programs or the hypervisor kept more than `NOTED` of
    the cores busy, mean over the duels that all contenders `names` fought; "" else."""
    cores = ((record.get("environment") or {}).get("cpu") or {}).get("usable_cores") or 1
    fought = {name: {block["duel"] for block in record["blocks"] if block["engine"] == name} for name in names}
    numbers = set.intersection(*fought.values()) if fought else set(range(len(record["duels"])))
    spent = [
        (float(duel.get("fight_s") or 0.0), float(duel.get("foreign_cores") or 0.0))
        for number, duel in enumerate(record["duels"])
        if number in numbers
    ]
    seconds = math.fsum(time for time, _ in spent)
    used = math.fsum(time * busy for time, busy in spent) / seconds if seconds else 0.0
    return f"; other work used {used:.1f} of {cores} cores meanwhile" if used > NOTED * cores else ""
