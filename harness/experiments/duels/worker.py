"""One rank of a contender: ``python -m harness.experiments.duels.worker PACKED OUT`` under the engine's launcher.

It builds the job as any run does, warms up, then trains a block whenever the coordinator says so, through the ordinary
training loop: what is timed is what a run does, data included. OUT/seat.json says where the coordinator is.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from backends.process.exit import run_and_leave
from backends.process.rank import detect
from harness.experiments.duels.coordinator import Reply, Seat
from harness.experiments.trainings.cells import unpack, write_told


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


def main(packed: str, out: str) -> None:
    """Trains the one cell; rank 0 writes OUT/NAME.json: loss of each step, memory, what the engine really used."""
    import torch

    import backends
    from core_model.training.clock import Clock
    from core_model.training.trainer import Plan, Trainer, in_turn
    from harness.instruments.step_work import WorkCounter, per_sample
    from harness.worker.model_and_data import (
        build_dataset,
        build_loader,
        build_model,
        build_optimization,
        capture_ahead,
    )

    facts = detect()
    base, (cell,) = unpack(packed)
    seat_file = json.loads((Path(out) / "seat.json").read_text())
    job = cell.job(base)
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    engine = backends.load(job.backend)
    settings = backends.settings_from(job.backend, dict(job.engine))
    backend = engine(settings, facts, device=job.device, timeout_s=job.timeout_s)
    model = build_model(job, device=backend.device)
    dataset = build_dataset(job, model, "train")
    batches = build_loader(job, facts, model, dataset, pin_memory=backend.device.type == "cuda")
    model.prepare_text(dataset.categories)
    backend.prepare(model, build_optimization(job))
    capture_ahead(job, model, dataset)
    seat = Seat(
        (seat_file["host"], seat_file["port"]),
        seat_file["token"],
        contender=seat_file["contender"],
        rank=facts.rank,
        limit_s=seat_file["limit_s"],
    )
    rows: list[dict[str, Any]] = []
    work = WorkCounter(model, first=0, recompute=job.activation_checkpointing)
    pacer = Pacer(seat, backend, Clock(backend.device))
    plan = Plan(
        steps=job.steps,
        scaled=job.precision == "fp16",
        log_every=job.log_every,
        samples_per_step=job.global_batch,
        steps_per_epoch=len(dataset) / job.global_batch,
    )
    trainer = Trainer(
        backend,
        batches,
        plan,
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
    if facts.rank == 0:
        peaks, counts = zip(*(gathered or ()), strict=True)
        told = {
            "losses": [row["loss"] for row in rows],
            "device_mib": peaks,
            "engine": backend.describe(),
            "flops": per_sample(counts),
        }
        write_told(Path(out), cell, told)
    backend.barrier()
    backend.close()


if __name__ == "__main__":
    run_and_leave(lambda: main(sys.argv[1], sys.argv[2]))
