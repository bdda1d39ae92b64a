"""A record of duels as `harness experiment duel` writes it, by the real estimate; only the blocks' times are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.analysis.duels.estimate import Block
from harness.analysis.duels.record import NAME, asked_pairs, differences_of
from harness.job.declaration import Job
from harness.records.record_files import write_json

BATCH = 8


def side(name: str, backend: str, workers: int, stage: int | None = None) -> dict[str, Any]:
    return {
        "name": name, "backend": backend, "workers": workers, "zero_stage": stage, "settings": [],
        "global_batch": BATCH, "precision": "fp32",
    }  # fmt: skip


SIDES = (
    side("single@1", "single", 1),
    side("single@1 #2", "single", 1),
    side("deepspeed ZeRO-1@1", "deepspeed", 1, 1),
    side("horovod@1", "horovod", 1),
    side("deepspeed ZeRO-1@2", "deepspeed", 2, 1),
    side("horovod@2", "horovod", 2),
)
STEADY = {
    "single@1": (1.00, 1.01, 1.00, 0.99),
    "single@1 #2": (1.00, 1.00, 1.01, 1.00),
    "deepspeed ZeRO-1@1": (1.10, 1.11, 1.10, 1.09),
    "horovod@1": (1.02, 1.02, 1.03, 1.01),
    "deepspeed ZeRO-1@2": (0.66, 0.67, 0.66, 0.66),
    "horovod@2": (0.60, 0.61, 0.60, 0.60),
}


def record(
    seconds: Mapping[str, Sequence[float]] = STEADY,
    *,
    foreign: float = 0.0,
    environment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """seconds: contender -> of its one block in each duel. foreign: cores that other work used in each duel."""
    sides = [item for item in SIDES if item["name"] in seconds]
    blocks = [
        Block(duel=duel, round=0, engine=name, samples=BATCH, seconds=value)
        for name, values in seconds.items()
        for duel, value in enumerate(values)
    ]
    many = len(next(iter(seconds.values())))
    one = {"start_s": 60.0, "fight_s": 60.0, "foreign_cores": foreign, "waiting_cores": {}}
    told = {name: {"losses": [3.0, 2.0], "device_mib": [None], "engine": {"engine": name}} for name in seconds}
    return {
        "job": Job(preset="tiny").to_dict(),
        "environment": environment or {"cpu": {"model": "a processor", "usable_cores": 2}, "versions": {}},
        "pace": {"warmup": 1, "steps": 1, "rounds": 1},
        "contenders": sides,
        "duels": [{**one, "told": told} for _ in range(many)],
        "blocks": [vars(block) for block in blocks],
        "differences": differences_of(blocks, sides, asked_pairs(sides)),
        "goal": {"until": 0.05, "budget_s": 480.0},
    }


def write_duels(folder: Path, **made: Any) -> Path:
    """duel.json of `record` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NAME, record(**made))
    return folder
