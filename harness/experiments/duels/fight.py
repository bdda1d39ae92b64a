"""Fights duels: starts all contenders, gives them blocks in a new random order each round, keeps every block's time."""

from __future__ import annotations

import json
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from harness.analysis.duels.estimate import Block
from harness.experiments.duels.coordinator import Coordinator, DuelError, Reply
from harness.experiments.trainings.cells import Cell
from harness.instruments.foreign_load import HostLoad
from harness.job.declaration import Job, JobError
from harness.protocol.turns import START_LIMIT_S
from harness.study.turn_conductor import supervisors
from mpi.process import signals_ignored

ENDING_LIMIT_S = 30.0  # for the processes of a failed duel to say why
BETWEEN_BLOCKS_S = 3600.0  # that a contender waits for its next block: the others' come first


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One side of a comparison. name: how it is called; the same cell twice, under two names, is a calibration.
    global_batch: samples per optimizer step over all its workers."""

    name: str
    cell: Cell
    global_batch: int

    def job(self, base: Job) -> Job:
        """`base` with this side's batch; the rest of its settings are the cell's."""
        return base.with_(global_batch=self.global_batch)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Optimizer steps of the warm-up block, of a timed block, and rounds of a duel."""

    warmup: int = 5
    steps: int = 3
    rounds: int = 10

    @property
    def total(self) -> int:
        """Steps that each contender trains in a duel."""
        return self.warmup + self.steps * self.rounds


@dataclass(kw_only=True)
class Duel:
    """What one start gave. told: contender -> what its rank 0 reported at the end. waiting: contender -> cores that it
    kept busy while others trained. foreign: cores kept busy by processes that are not ours, the hypervisor's share
    among them. start_s: until all were ready."""

    number: int
    blocks: list[Block] = field(default_factory=list)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    waiting: dict[str, float] = field(default_factory=dict)
    foreign: float = 0.0
    start_s: float = 0.0
    fight_s: float = 0.0


def fight(
    base: Job, contenders: Sequence[Contender], pace: Pace, *, number: int, seed: int, say: Callable[[str], None]
) -> Duel:
    """One duel. Raises JobError where a contender fails; whatever happens, all processes have ended."""
    base = base.with_(steps=pace.total, log_every=pace.total)
    duel = Duel(number=number)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="harness-duel-") as scratch, supervisors(len(contenders)) as pool:
        folders = [Path(scratch) / str(index) for index in range(len(contenders))]
        with Coordinator([contender.cell.workers for contender in contenders]) as coordinator:
            running: list[Future[dict[Cell, str]]] = []

            def check() -> None:
                for contender, future in zip(contenders, running, strict=True):
                    if future.done():
                        reasons = list(future.result().values())
                        raise DuelError(f"{contender.name}: {reasons[0] if reasons else 'it ended early'}")

            try:
                for index, (contender, folder) in enumerate(zip(contenders, folders, strict=True)):
                    folder.mkdir()
                    _write_seat(folder / "seat.json", coordinator, index)
                    running.append(pool.submit(_run, contender.job(base), contender.cell, folder))
                coordinator.wait_ready(max(base.timeout_s, START_LIMIT_S), check)
                duel.start_s = time.monotonic() - began
                say(f"duel {number + 1}: {len(contenders)} contenders ready after {duel.start_s:.0f} s")
                _rounds(coordinator, contenders, pace, duel, Random(f"{seed} {number}"), check, base.timeout_s)
                coordinator.finish()
                for contender, future, folder in zip(contenders, running, folders, strict=True):
                    reasons = list(future.result(timeout=base.timeout_s).values())
                    if reasons:
                        raise DuelError(f"{contender.name}: {reasons[0]}")
                    duel.told[contender.name] = json.loads((folder / f"{contender.cell.name}.json").read_text())
            except (DuelError, BrokenProcessPool, TimeoutError) as error:
                raise JobError(f"duel {number + 1} failed: {_cause(error, coordinator, contenders, running)}") from None
            except KeyboardInterrupt:
                with signals_ignored():  # the same Ctrl-C may come twice; ranks end when the coordinator hangs up
                    coordinator.close()
                    pool.shutdown(cancel_futures=True)
                raise
    return duel


def _rounds(
    coordinator: Coordinator,
    contenders: Sequence[Contender],
    pace: Pace,
    duel: Duel,
    random: Random,
    check: Callable[[], None],
    limit_s: float,
) -> None:
    """limit_s: what a block may take, one wait of the job."""
    waited = {contender.name: 0.0 for contender in contenders}

    def block(index: int, steps: int) -> list[Reply]:
        return coordinator.block(index, steps, limit_s=limit_s, check=check)

    for index in range(len(contenders)):
        block(index, pace.warmup)
    load = HostLoad([os.getpid()])
    began = time.monotonic()
    for number in range(pace.rounds):
        order = list(range(len(contenders)))
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
    duel.fight_s = time.monotonic() - began
    load.read()
    seen = load.total() or {}
    duel.foreign = seen.get("foreign_cores", 0.0) + seen.get("steal_cores", 0.0)
    for name, cpu_s in waited.items():
        others_s = math.fsum(block.seconds for block in duel.blocks if block.engine != name)
        duel.waiting[name] = cpu_s / others_s if others_s else 0.0


def _run(job: Job, cell: Cell, folder: Path) -> dict[Cell, str]:
    """In a process of its own: one contender's launch to its end; why it failed, if it did."""
    from harness.experiments.trainings.launch import train_cells

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return train_cells(job, [cell], folder, module="harness.experiments.duels.worker")


def _end_with(parent: int) -> None:
    """Ends this process and what it supervises when `parent` is gone: nobody would wake its stopped ranks."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def _write_seat(file: Path, coordinator: Coordinator, contender: int) -> None:
    host, port = coordinator.address
    file.touch(mode=0o600)
    seat = {"host": host, "port": port, "token": coordinator.token, "contender": contender}
    file.write_text(json.dumps(seat | {"limit_s": BETWEEN_BLOCKS_S}))


def _cause(
    error: Exception,
    coordinator: Coordinator,
    contenders: Sequence[Contender],
    running: Sequence[Future[dict[Cell, str]]],
) -> str:
    """The first failing contender's own reason, where one comes out when all have been told to end."""
    coordinator.close()
    limit = time.monotonic() + ENDING_LIMIT_S
    reasons = []
    for contender, future in zip(contenders, running, strict=False):
        try:
            found = future.result(timeout=max(0.1, limit - time.monotonic()))
        except (TimeoutError, BrokenProcessPool, KeyboardInterrupt):
            continue
        reasons += [f"{contender.name}: {reason}" for reason in found.values() if DuelError.__name__ not in reason]
    return reasons[0] if reasons else str(error)
