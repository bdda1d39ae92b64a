"""Engines side by side on the same devices, block by block, until the difference is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.analysis.duels.estimate import FIRST_STAGE, duel_ratios, duels_needed
from harness.experiments.duels.fight import Contender, Duel
from harness.experiments.trainings.cells import Cell, parse_engine
from harness.job.declaration import Job, JobError


def next_duel_wanted(
    fought: Sequence[Duel], pairs: Sequence[tuple[str, str]], *, wanted: float, most: int, budget_left: float
) -> bool:
    """Whether another duel is to be fought: always one, then up to the first stage, then as many as Stein's rule asks
    for, within `most` and the budget (a duel that would not end in it is not begun)."""
    if not fought:
        return True
    longest = max(duel.start_s + duel.fight_s for duel in fought)
    if len(fought) >= most or longest > budget_left:
        return False
    if len(fought) < FIRST_STAGE:
        return True
    blocks = [block for duel in fought for block in duel.blocks]
    for a, b in pairs:
        ratios = duel_ratios(blocks, a, b)
        if len(fought) < duels_needed([ratios[number] for number in sorted(ratios)][:FIRST_STAGE], wanted):
            return True
    return False


def contenders_of(text: str, workers: int, base: Job, *, weak: bool, mode: str) -> list[Contender]:
    """``single@1,ddp@2,deepspeed:1@2`` as contenders. Raises JobError."""
    found: list[Contender] = []
    seen: Counter[str] = Counter()
    for part in text.split(","):
        engine, at, count = part.strip().partition("@")
        if at and not (count.isdigit() and int(count) > 0):
            raise JobError(f"engine '{part.strip()}': write the number of workers behind @, such as {engine}@2")
        number = int(count) if at else workers
        cell = Cell(
            **parse_engine(engine),
            workers=number,
            accumulation=base.accumulation,
            precision=base.precision,
            precision_mode=mode if base.precision != "fp32" else "matched",
        )
        batch = base.global_batch * (number if weak else 1)
        name = f"{cell.engine}@{number}"
        seen[name] += 1
        name += f" #{seen[name]}" if seen[name] > 1 else ""
        found.append(Contender(name=name, cell=cell, global_batch=batch))
    if len(found) < 2:
        raise JobError(f"engines '{text}': a duel needs two or more, such as horovod,deepspeed:2")
    return found


def share(text: str) -> float:
    """``2%`` or ``0.02`` as 0.02. Raises JobError."""
    try:
        value = float(text.rstrip("% ")) / (100 if "%" in text else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise JobError(f"--until '{text}': write a share of the throughput, such as 2%")
    return value


def seconds(text: str) -> float:
    """``90``, ``90s``, ``10m`` or ``1.5h`` in seconds. Raises JobError."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    unit = units.get(text[-1:], 0.0)
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise JobError(f"--budget '{text}': write a time such as 90s, 10m or 1h")
    return value
