"""One rank of a contender: it trains a block whenever the coordinator says so, through the ordinary training loop, so
that what is timed is what a run does, data included. OUT/seat.json says where the coordinator is.

``python -m harness.experiments.duels.worker PACKED OUT`` under the engine's launcher, or `train_rank` in a process
forked by `harness.experiments.duels.fork_server`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.process.exit import run_and_leave
from backends.process.rank import ProcessFacts, detect
from core_model.data.batches import GlobalBatches, SampleRef
from harness.experiments.duels.coordinator import Reply, Seat
from harness.experiments.duels.pace import Pace
from harness.experiments.trainings.cells import Cell, unpack, write_told
from harness.job.declaration import Job

if TYPE_CHECKING:
    from core_model.training.trainer import Plan


class Pacer:
    """Hooks of the training loop: waits before a block's first step, reports after its last one."""

    def __init__(self, seat: Seat, backend: Any, clock: Any) -> None:
        self._seat, self._backend, self._clock = seat, backend, clock
        self._last = -1  # the step that ends the block under way
        self._began = 0.0
        self._waited = (0.0, 0.0)
        self._idle_since = (time.perf_counter(), time.process_time())

    def before_step(self, step: int) -> None:
        """Returns at once inside a block, else when the next one begins. Raises DuelOver at the duel's end."""
        if step <= self._last:
            return
        steps = self._seat.next_block()
        wall, cpu = self._idle_since
        self._waited = (time.perf_counter() - wall, time.process_time() - cpu)
        if steps == 0:
            raise DuelOver
        self._last = step + steps - 1
        self._backend.barrier()
        self._clock.settle()
        self._began = time.perf_counter()

    def after_step(self, step: int) -> None:
        """Reports where `step` ends a block."""
        if step != self._last:
            return
        self._clock.settle()
        seconds = time.perf_counter() - self._began
        self._seat.answer(Reply(seconds=seconds, waited_s=self._waited[0], waited_cpu_s=self._waited[1]))
        self._idle_since = (time.perf_counter(), time.process_time())


class DuelOver(Exception):  # noqa: N818 - not an error
    """The coordinator wants no further block."""


class _Rounds(GlobalBatches):
    """The batches of every n-th round of a duel: in a round all contenders train the same samples."""

    def __init__(self, order: GlobalBatches, pace: Pace, every: int) -> None:
        self.__dict__.update(order.__dict__)
        self._pace, self._every = pace, every

    def ids_of(self, step: int) -> list[SampleRef]:
        return super().ids_of(self._pace.same_samples(step, self._every))


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a rank trains, before an engine prepares it: the same for every contender of a study."""

    model: Any
    dataset: Any


def material(job: Job, device: Any = "cpu") -> Material:
    """The job's model on `device`, its texts prepared, and its training set."""
    from harness.worker.model_and_data import build_dataset, build_model

    model = build_model(job, device=device)
    dataset = build_dataset(job, model, "train")
    model.prepare_text(dataset.categories)
    return Material(model=model, dataset=dataset)


def main(packed: str, out: str) -> None:
    """Trains the one packed cell as the rank that the launcher made of this process."""
    base, (cell,) = unpack(packed)
    train_rank(cell.job(base), cell, Path(out), detect())


def train_rank(job: Job, cell: Cell, out: Path, facts: ProcessFacts, made: Material | None = None) -> None:
    """Trains until the coordinator ends the duel. Rank 0 writes OUT/NAME.json: loss of each step, memory, what the
    engine really used.

    Args:
        job: as `cell` trains it.
        out: the contender's folder, with its seat.json.
        facts: which rank this is.
        made: model and data that are there already, this process's own; None: they are made here.
    """
    import torch

    import backends
    from harness.worker.model_and_data import capture_ahead, prepare

    torch.set_num_threads(job.threads)
    if made is None:
        torch.manual_seed(job.seed)
    settings = backends.settings_from(job.backend, dict(job.engine))
    backend = backends.load(job.backend)(settings, facts, device=job.device, timeout_s=job.timeout_s)
    made = made or material(job, backend.device)
    prepare(backend, made.model, job)
    capture_ahead(job, made.model, made.dataset)
    told = _train_blocks(job, facts, backend, made, json.loads((out / "seat.json").read_text()))
    if facts.rank == 0:
        write_told(out, cell, told)
    backend.barrier()
    backend.close()


def _train_blocks(
    job: Job, facts: ProcessFacts, backend: Any, made: Material, file: Mapping[str, Any]
) -> dict[str, Any]:
    """Trains the blocks that the coordinator asks for; what rank 0 reports of them. file: seat.json."""
    import torch

    from core_model.training.clock import Clock
    from core_model.training.trainer import Trainer, in_turn
    from harness.instruments.gpus import uuid_of
    from harness.instruments.step_work import WorkCounter, per_sample
    from harness.worker.model_and_data import build_loader, order_of

    rows: list[dict[str, Any]] = []
    work = WorkCounter(made.model, first=0, recompute=job.activation_checkpointing)
    order = _Rounds(order_of(job, made.dataset), Pace(**file["pace"]), file["every"])
    pin = backend.device.type == "cuda"
    loader = build_loader(job, facts, made.model, made.dataset, order=order, pin_memory=pin)
    address = file["host"], file["port"]
    place = {"contender": file["contender"], "rank": facts.rank, "gpu": uuid_of(backend.device)}
    seat = Seat(address, file["token"], **place, limit_s=file["limit_s"])
    pacer = Pacer(seat, backend, Clock(backend.device))
    trainer = Trainer(
        backend,
        loader,
        _plan(job, len(made.dataset)),
        on_rows=rows.extend,
        before_step=pacer.before_step,
        after_step=in_turn(pacer.after_step, work.after_step),
    )
    with contextlib.suppress(DuelOver):
        trainer.train()
        if steps := seat.next_block():  # until all have trained their blocks, or this one's end would look early
            raise RuntimeError(f"{steps} steps more were asked for than the job's {job.steps}")
    peak = torch.cuda.max_memory_allocated(backend.device) / 2**20 if backend.device.type == "cuda" else None
    gathered = backend.gather((peak, work.counted()))
    if facts.rank != 0:
        return {}
    peaks, counts = zip(*(gathered or ()), strict=True)
    return {
        "losses": [row["loss"] for row in rows],
        "device_mib": peaks,
        "engine": backend.describe(),
        "flops": per_sample(counts),
    }


def _plan(job: Job, samples: int) -> Plan:
    from core_model.training.trainer import Plan

    return Plan(
        steps=job.steps,
        scaled=job.precision == "fp16",
        log_every=job.log_every,
        samples_per_step=job.global_batch,
        steps_per_epoch=samples / job.global_batch,
    )


if __name__ == "__main__":
    run_and_leave(lambda: main(sys.argv[1], sys.argv[2]))
