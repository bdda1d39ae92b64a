"""Times the harness's training loop against a hand-written one on the same engine, interleaved in one process.

``python -m harness.experiments.overhead.worker PACKED_CELLS OUT`` under the engine's launcher. The two loops train two
copies of the model on the same batches. Blocks alternate A B B A, so that drift of the machine falls on both alike; a
block's time holds everything: fetching the batch, the step, and on the harness's side the flush of its figures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from backends.process.exit import run_and_leave
from backends.process.rank import ProcessFacts, detect
from harness.experiments.trainings.cells import Cell, unpack, write_told
from harness.job.declaration import Job
from mpi import private

BLOCK = 10


def main(packed: str, out: str) -> None:
    """Measures every cell; rank 0 writes OUT/NAME.json with the seconds of each block."""
    import torch

    private.take()
    facts = detect()
    base, cells = unpack(packed)
    torch.set_num_threads(base.threads)
    for cell in cells:
        backend, blocks = time_cell(cell, base, facts)
        if facts.rank == 0:
            told = {"harness": blocks["harness"], "handwritten": blocks["handwritten"], "engine": backend.describe()}
            write_told(Path(out), cell, told)
    backend.close()


def time_cell(cell: Cell, base: Job, facts: ProcessFacts) -> tuple[Any, dict[str, list[float]]]:
    """(backend, seconds a step of each block by loop). Blocks: steps / BLOCK of each loop after one of warm-up."""
    import torch

    import backends
    from core_model.training.clock import Clock
    from core_model.training.trainer import Plan, Trainer
    from harness.experiments.overhead import handwritten_loops
    from harness.worker.model_and_data import arrange, build_dataset, build_model, build_optimization, order_of, prepare

    job = cell.job(base)
    engine = backends.load(job.backend)
    backend = engine(backends.settings_from(job.backend, dict(job.engine)), facts, device=job.device, timeout_s=600.0)
    model, twin = (build_model(job, device=backend.device) for _ in range(2))
    dataset = build_dataset(job, model, "train")
    order = order_of(job, dataset)
    made = [
        [model.collate([dataset.get(index, epoch) for index, epoch in part]) for part in share]
        for share in (order.rank_share(step, facts.rank, facts.world_size, 1) for step in range(BLOCK))
    ]
    prepare(backend, model, job)
    arrange(twin, job)
    by_hand = handwritten_loops.make(backend, twin, build_optimization(job))
    clock = Clock(torch.device(backend.device))
    at = 0

    def batches() -> Iterator[list[Any]]:
        yield from made

    def harness_block() -> None:
        nonlocal at
        plan = Plan(
            steps=at + BLOCK,
            start_step=at,
            log_every=job.log_every,
            samples_per_step=job.global_batch,
            scaled=job.precision == "fp16",
        )
        Trainer(backend, batches(), plan, on_rows=lambda rows: None).train()
        at += BLOCK

    def handwritten_block() -> None:
        for micro_batches in batches():
            by_hand(micro_batches[0].to(backend.device))
        clock.settle()

    loops = {"harness": harness_block, "handwritten": handwritten_block}
    return backend, _in_turn(loops, max(2, job.steps // BLOCK), backend, clock)


def _in_turn(loops: Mapping[str, Callable[[], None]], rounds: int, backend: Any, clock: Any) -> dict[str, list[float]]:
    """Seconds a step of each block, by loop: A B, then B A, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds + 1):
        names = list(loops) if number % 2 == 0 else list(loops)[::-1]
        for name in names:
            backend.barrier()
            clock.settle()
            begin = time.perf_counter()
            loops[name]()
            clock.settle()
            if number > 0:  # the first round is warm-up
                seconds[name].append((time.perf_counter() - begin) / BLOCK)
    return seconds


if __name__ == "__main__":
    run_and_leave(lambda: main(sys.argv[1], sys.argv[2]))
