"""Short duels of the candidates on the devices that are here: figures of this machine to recommend by.

The first duel is a pilot: two short rounds, which find what fails and how long a step takes. The others are of equal
length, as many as the budget holds, and are recorded as `harness experiment duel` records them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.analysis.duels.record import asked_pairs
from harness.experiments.duels import record as records
from harness.experiments.duels.fight import Contender, Duel, fight
from harness.experiments.duels.pace import Pace
from harness.experiments.tuning.arena import cell_of
from harness.job.declaration import Job, JobError
from harness.job.engines import parse_backend

_BLOCK_S = 0.5  # that a block should take: shorter ones measure their ends
_PILOT = Pace(warmup=2, steps=1, rounds=2)
_ROUNDS = (3, 12)
_MOST = 4


def fight_here(
    job: Job, engines: Sequence[str], workers: int, folder: Path, *, budget_s: float, say: Callable[[str], None]
) -> dict[str, str]:
    """Plain torch on one worker and each of `engines` on `workers`, side by side, within `budget_s` (a pilot is always
    fought); writes duel.json into `folder` where at least one duel was. Returns the engines that failed, with reasons.
    """
    began = time.monotonic()
    micro = job.micro_batch
    base = job.with_(
        backend="single", engine={}, slots=1, nodes=1, global_batch=micro, scaling="weak", eval_samples=-1,
        schedule="constant", warmup_steps=0, launcher="auto",
    )  # fmt: skip
    contenders = [_contender(base, "single", 1, micro)]
    contenders += [_contender(base, engine, workers, micro) for engine in engines if (engine, workers) != ("single", 1)]
    failed: dict[str, str] = {}
    pilot = None
    while pilot is None and len(contenders) > 1:
        say(f"pilot: {', '.join(contender.name for contender in contenders)}")
        try:
            pilot = fight(base, contenders, _PILOT, number=0, seed=job.seed, say=lambda _: None)
        except JobError as error:
            contenders = _without_the_failed(contenders, str(error), failed)
    if pilot is None:
        return failed
    pace = pace_after(pilot, len(contenders), budget_s - (time.monotonic() - began))
    fought: list[Duel] = []
    each = pilot.start_s + pilot.fight_s
    while len(fought) < _MOST:
        left = budget_s - (time.monotonic() - began)
        if fought and left < each:
            break
        started = time.monotonic()
        try:
            fought.append(fight(base, contenders, pace, number=len(fought), seed=job.seed, say=lambda _: None))
        except JobError as error:
            say(str(error))
            break
        each = time.monotonic() - started
        pairs = asked_pairs([records.side(item) for item in contenders])
        records.write(records.record_of(base, contenders, pace, fought, pairs), folder)
        say(f"duel {len(fought)}: {each:.0f} s, {max(0.0, left - each):.0f} s of the budget left")
    return failed


def pace_after(pilot: Duel, contenders: int, left_s: float) -> Pace:
    """Blocks of at least half a second, and as many rounds as let two duels fit in the time that is left."""
    step_s = [block.seconds for block in pilot.blocks]
    steps = max(1, min(50, math.ceil(_BLOCK_S / min(step_s))))
    round_s = steps * sum(step_s) / _PILOT.rounds
    rounds = int((left_s / 2 - pilot.start_s) / round_s) - 1
    return Pace(warmup=2, steps=steps, rounds=max(_ROUNDS[0], min(_ROUNDS[1], rounds)))


def _contender(base: Job, engine: str, workers: int, micro: int) -> Contender:
    parsed = parse_backend(engine)
    cell = cell_of(parsed["backend"], parsed["engine"], workers, base)
    return Contender(name=f"{cell.engine}@{workers}", cell=cell, global_batch=micro * workers)


def _without_the_failed(contenders: Sequence[Contender], reason: str, failed: dict[str, str]) -> list[Contender]:
    """The contenders without the one that `reason` names, which is noted. Raises JobError where it names none, or plain
    torch: then the job itself cannot be trained here."""
    for contender in contenders[1:]:
        if f"{contender.name}: " in reason:
            failed[contender.name] = reason.partition(f"{contender.name}: ")[2]
            return [other for other in contenders if other is not contender]
    raise JobError(reason)
