"""What duels gave, written as duel.json and duel.md. What they say is read by `harness.analysis.duels`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.analysis.duels.estimate import FIRST_STAGE
from harness.analysis.duels.page import headline, page
from harness.analysis.duels.record import NAME, PAGE, asked_pairs, blocks_of, differences_of, first_stage_of
from harness.experiments.duels.fight import Contender, Duel
from harness.experiments.duels.pace import Pace
from harness.experiments.trainings.cells import cell_of
from harness.job.declaration import Job
from harness.records.record_files import write_json, write_text


def side(contender: Contender) -> dict[str, Any]:
    """A contender as its record holds it."""
    own = {"name": contender.name, "global_batch": contender.global_batch, "every": contender.every}
    return own | asdict(contender.cell)


def contender_of(side: Mapping[str, Any]) -> Contender:
    """The reverse of `side`."""
    own = ("name", "global_batch", "every")
    cell = cell_of({key: value for key, value in side.items() if key not in own})
    every = side.get("every", 1)  # records from before it
    return Contender(name=side["name"], cell=cell, global_batch=side["global_batch"], every=every)


def record_of(
    base: Job,
    contenders: Sequence[Contender],
    pace: Pace,
    duels: Sequence[Duel],
    pairs: Sequence[tuple[str, str]],
    *,
    first_stage: int = FIRST_STAGE,
) -> dict[str, Any]:
    """The whole record, JSON-serializable. pairs: (a, b), b is told against a. first_stage: duels after which their
    number was chosen."""
    from harness.records.step_metrics import environment

    blocks = [block for duel in duels for block in duel.blocks]
    sides = [side(contender) for contender in contenders]
    return {
        "job": base.to_dict(),
        "environment": environment(),
        "pace": asdict(pace),
        "contenders": sides,
        "duels": [
            {
                "start_s": duel.start_s,
                "fight_s": duel.fight_s,
                "foreign_cores": duel.foreign,
                "gpu_processes": duel.gpu_processes,
                "waiting_cores": duel.waiting,
                "told": duel.told,
            }
            for duel in duels
        ],
        "blocks": [asdict(block) for block in blocks],
        "differences": differences_of(blocks, sides, pairs, first_stage=first_stage),
    }


def duels_of(record: Mapping[str, Any]) -> list[Duel]:
    """The duels of a record, to go on from."""
    blocks = blocks_of(record)
    return [
        Duel(
            number=number,
            blocks=[block for block in blocks if block.duel == number],
            told=item["told"],
            waiting=item["waiting_cores"],
            foreign=item["foreign_cores"],
            gpu_processes=item.get("gpu_processes") or [],
            start_s=item["start_s"],
            fight_s=item["fight_s"],
        )
        for number, item in enumerate(record["duels"])
    ]


def rendered_again(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its differences made anew from its blocks, for every pair that `asked_pairs` names today."""
    sides = record["contenders"]
    rows = differences_of(blocks_of(record), sides, asked_pairs(sides), first_stage=first_stage_of(record))
    return {**record, "differences": rows}


def write(record: Mapping[str, Any], folder: Path) -> None:
    """FOLDER/duel.json and duel.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NAME, {**record, "headline": headline(record)})
    write_text(folder / PAGE, page(record))
