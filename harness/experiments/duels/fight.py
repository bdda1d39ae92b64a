"""Fights duels: starts all contenders, gives them blocks in a new random order each round, keeps every block's time."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from harness.analysis.duels.estimate import Block
from harness.experiments.duels.coordinator import Coordinator, DuelError, Reply
from harness.experiments.duels.pace import Pace
from harness.experiments.duels.starting import Reasons, Side, start, why_not_forked
from harness.experiments.trainings.cells import Cell
from harness.instruments.foreign_load import HostLoad
from harness.instruments.gpus import Gpus
from harness.job.declaration import Job, JobError
from harness.protocol.turns import START_LIMIT_S
from harness.study.turn_conductor import supervisors
from mpi.process import signals_ignored

ENDING_LIMIT_S = 30.0  # for the processes of a failed duel to say why
SERVER = "the process that forks the contenders"
HANGING = (60.0, 30.0)  # a block that takes longer than so many seconds, and than so many times the warm-up, hangs
BETWEEN_BLOCKS_S = 3600.0  # that a contender waits for its next block: the others' come first


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One side of a comparison. name: how it is called; the same cell twice, under two names, is a calibration.
    global_batch: samples per optimizer step over all its workers. every: it fights in every so many rounds only, on
    the samples of those rounds: a baseline that need not be known as well as what is asked."""

    name: str
    cell: Cell
    global_batch: int
    every: int = 1

    def job(self, base: Job) -> Job:
        """`base` with this side's batch; the rest of its settings are the cell's."""
        return base.with_(global_batch=self.global_batch)


@dataclass(kw_only=True)
class Duel:
    """What one start gave. told: contender -> what its rank 0 reported at the end. waiting: contender -> cores that it
    kept busy while others trained. foreign: cores kept busy by processes that are not ours, the hypervisor's share
    among them. gpu_processes: what computed on its GPUs beside it (uuid, pid, name). start_s: until all were
    ready."""

    number: int
    blocks: list[Block] = field(default_factory=list)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    waiting: dict[str, float] = field(default_factory=dict)
    foreign: float = 0.0
    gpu_processes: list[dict[str, Any]] = field(default_factory=list)
    start_s: float = 0.0
    fight_s: float = 0.0


def fight(
    base: Job, contenders: Sequence[Contender], pace: Pace, *, number: int, seed: int, say: Callable[[str], None]
) -> Duel:
    """One duel. Raises JobError where a contender fails; whatever happens, all processes have ended."""
    base = base.with_(steps=pace.total, log_every=pace.total)
    duel = Duel(number=number)
    began = time.monotonic()
    forked = not why_not_forked([contender.cell.job(contender.job(base)) for contender in contenders])
    with (
        tempfile.TemporaryDirectory(prefix="harness-duel-") as scratch,
        supervisors(1 if forked else len(contenders)) as pool,
        Coordinator([contender.cell.workers for contender in contenders]) as coordinator,
    ):
        sides = [_side(base, contender, Path(scratch) / str(index)) for index, contender in enumerate(contenders)]
        running: list[Future[Reasons]] = []
        names = dict(enumerate(contender.name for contender in contenders))

        def check() -> None:
            for future in running:
                if future.done():
                    for index, reason in future.result().items():
                        raise DuelError(f"{names.get(index, SERVER)}: {reason}", index)
                    raise DuelError("a contender ended early")

        try:
            for index, side in enumerate(sides):
                _write_seat(side.folder / "seat.json", coordinator, index, asdict(pace), contenders[index].every)
            running += start(pool, sides, Path(scratch), forked=forked)
            coordinator.wait_ready(max(base.timeout_s, START_LIMIT_S), check)
            duel.start_s = time.monotonic() - began
            say(f"duel {number + 1}: {len(contenders)} contenders ready after {duel.start_s:.0f} s")
            _rounds(coordinator, contenders, pace, duel, Random(f"{seed} {number}"), check, base.timeout_s)
            coordinator.finish()
            if reasons := _ended(running, names, base.timeout_s):
                raise DuelError(reasons[0])
            for contender, side in zip(contenders, sides, strict=True):
                duel.told[contender.name] = json.loads((side.folder / f"{side.cell.name}.json").read_text())
        except (DuelError, BrokenProcessPool, TimeoutError) as error:
            raise JobError(f"duel {number + 1} failed: {_cause(error, coordinator, names, running)}") from None
        except KeyboardInterrupt:
            with signals_ignored():  # the same Ctrl-C may come twice; ranks end when the coordinator hangs up
                coordinator.close()
                pool.shutdown(cancel_futures=True)
            raise
    return duel


def _side(base: Job, contender: Contender, folder: Path) -> Side:
    folder.mkdir()
    return Side(base=contender.job(base), cell=contender.cell, folder=folder)


def _ended(running: Sequence[Future[Reasons]], names: Mapping[int, str], limit_s: float) -> list[str]:
    """Waits for all contenders' ends; why they failed, those first that name a cause of their own."""
    found = [reason for future in running for reason in future.result(timeout=limit_s).items()]
    return [f"{names.get(index, SERVER)}: {reason}" for index, reason in found]


def _rounds(
    coordinator: Coordinator,
    contenders: Sequence[Contender],
    pace: Pace,
    duel: Duel,
    random: Random,
    check: Callable[[], None],
    limit_s: float,
) -> None:
    """limit_s: what a warm-up may take, one wait of the job."""
    waited = {contender.name: 0.0 for contender in contenders}

    def block(index: int, steps: int) -> list[Reply]:
        return coordinator.block(index, steps, limit_s=limit_s, check=check)

    warmed = [block(index, pace.warmup) for index in range(len(contenders))] if pace.warmup else []
    longest = max((reply.seconds for replies in warmed for reply in replies), default=limit_s)
    limit_s = min(limit_s, max(HANGING[0], HANGING[1] * longest * pace.steps / max(1, pace.warmup)))
    load, gpus = HostLoad([os.getpid()]), Gpus(coordinator.gpus)
    others: dict[tuple[str, int], dict[str, Any]] = {}
    began = time.monotonic()
    for number in range(pace.rounds):
        order = [index for index, contender in enumerate(contenders) if number % contender.every == 0]
        random.shuffle(order)
        for index in order:
            contender = contenders[index]
            replies = block(index, pace.steps)
            duel.blocks.append(
                Block(
                    duel=duel.number,
                    round=number,
                    engine=contender.name,
                    samples=pace.steps * contender.global_batch,
                    seconds=max(reply.seconds for reply in replies),
                )
            )
            if number > 0:  # before the first round it waited through the others' warm-up
                waited[contender.name] += math.fsum(reply.waited_cpu_s for reply in replies)
        others |= {(item["uuid"], item["pid"]): item for item in gpus.foreign_processes(load.own_pids)}
    duel.gpu_processes = list(others.values())
    duel.fight_s = time.monotonic() - began
    load.read()
    seen = load.total() or {}
    duel.foreign = seen.get("foreign_cores", 0.0) + seen.get("steal_cores", 0.0)
    for name, cpu_s in waited.items():
        others_s = math.fsum(block.seconds for block in duel.blocks if block.engine != name)
        duel.waiting[name] = cpu_s / others_s if others_s else 0.0


def _write_seat(file: Path, coordinator: Coordinator, contender: int, pace: Mapping[str, int], every: int) -> None:
    host, port = coordinator.address
    file.touch(mode=0o600)
    seat = {"host": host, "port": port, "token": coordinator.token, "contender": contender}
    file.write_text(json.dumps(seat | {"limit_s": BETWEEN_BLOCKS_S, "pace": dict(pace), "every": every}))


def _cause(
    error: Exception, coordinator: Coordinator, names: Mapping[int, str], running: Sequence[Future[Reasons]]
) -> str:
    """Why the contender that failed first did. That is one that had ended before the others were told to, else the one
    whose connection broke; the others' reasons follow from it."""
    early: Reasons = {}
    for future in running:
        if future.done() and not future.cancelled() and future.exception() is None:
            early |= future.result()
    coordinator.close()
    limit = time.monotonic() + ENDING_LIMIT_S
    late: Reasons = {}
    for future in running:
        try:
            late |= future.result(timeout=max(0.1, limit - time.monotonic()))
        except (TimeoutError, BrokenProcessPool, KeyboardInterrupt):
            continue
    blamed = getattr(error, "contender", None)
    broken = {index: reason for index, reason in late.items() if index == blamed}
    for index, reason in (*early.items(), *broken.items(), *late.items()):
        if DuelError.__name__ not in reason:
            return f"{names.get(index, SERVER)}: {reason}{_with_room(reason, list(names.values()))}"
    return str(error)


def _with_room(reason: str, names: Sequence[str]) -> str:
    """What else helps where memory ran out: all contenders hold theirs at once."""
    if "out of memory" not in reason:
        return ""
    held = f"; {len(names)} contenders hold memory at once ({', '.join(names)})"
    return held + (": let two at a time fight, a duel for each pair of --backends" if len(names) > 2 else "")
