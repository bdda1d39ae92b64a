"""Trains parity cells, under any launcher: ``python -m harness.experiments.parity.worker PACKED_CELLS OUT``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from backends.base import Backend
from backends.checks import parity
from backends.process.exit import run_and_leave
from backends.process.rank import ProcessFacts, detect
from core_model.training.trainer import Plan, Trainer
from harness.experiments.trainings.cells import Cell, unpack, write_told
from harness.job.declaration import Job
from harness.worker.model_and_data import (
    arrange,
    build_dataset,
    build_loader,
    build_model,
    build_optimization,
    save_weights,
)
from harness.worker.overflow_injection import PREFIX, Overflowing
from mpi import private

BeforeStep = Callable[[Backend, int], None]


def main(packed: str, out: str) -> None:
    """Trains every cell; writes OUT/NAME.safetensors and OUT/NAME.json on rank 0. A cell that an engine refuses is
    written with its reason; any other error ends the job, as it would end a real one."""
    private.take()
    facts = detect()
    base, cells = unpack(packed)
    torch.set_num_threads(base.threads)
    exact_arithmetic()
    for cell, outcome in zip(cells, train(cells, base, facts), strict=True):
        if facts.rank == 0:
            _write(cell, outcome, Path(out))


def exact_arithmetic() -> None:
    """fp32 means fp32: on a GPU, cuDNN's convolutions would by default round their factors to TF32's 10 bits, each
    algorithm in its own way, and take another algorithm for another batch size."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def train(cells: list[Cell], base: Job, facts: ProcessFacts, before_step: BeforeStep | None = None) -> Any:
    """An Outcome of `backends.checks.parity` for each cell, in their order. before_step: called on every rank."""
    by_name = {cell.name: cell for cell in cells}
    return parity.train_cells(
        [_asked(cell, base) for cell in cells],
        lambda asked: training_of(by_name[asked.label], base, facts, before_step),
        facts=facts,
        device=base.device,
        timeout_s=base.timeout_s,
    )


def training_of(cell: Cell, base: Job, facts: ProcessFacts, before_step: BeforeStep | None = None) -> parity.Training:
    """The harness's own training of this cell: its model from the seed's weights, its data, its trainer."""
    job = cell.job(base)
    torch.manual_seed(job.seed)
    model = build_model(job)
    arrange(model, job)
    dataset = _dataset(job, model)
    model.prepare_text(dataset.categories)
    trained: torch.nn.Module = model
    if cell.overflow_at >= 0:
        # One rank only: the others must learn of it.
        at = cell.overflow_at if facts.rank == facts.world_size - 1 else -1
        trained = Overflowing(model, accumulation=job.accumulation, at=at)

    def loop(backend: Backend) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        # in this process, where the samples are remembered
        loader = build_loader(job.with_(loader_workers=0), facts, model, dataset)
        rows: list[dict[str, Any]] = []
        hook = None if before_step is None else (lambda step: before_step(backend, step))
        plan = Plan(steps=job.steps, log_every=job.steps, scaled=job.precision == "fp16")
        Trainer(backend, loader, plan, on_rows=rows.extend, before_step=hook).train()
        return rows, {}

    return parity.Training(model=trained, loop=loop)


class _Remembered:
    """A data set that makes each sample once: the cells of a process train on the same ones, and making them takes
    longer than a tiny model's step."""

    def __init__(self, dataset: Any) -> None:
        self.ids, self.categories, self.groups = dataset.ids, dataset.categories, dataset.groups
        self.get = functools.cache(dataset.get)


_DATASETS: dict[str, _Remembered] = {}


def _dataset(job: Job, model: Any) -> _Remembered:
    """The job's training set, the same object for every cell that trains on the same samples."""
    key = repr((job.preset, dict(job.model), job.data, model.image_size, job.seed, job.defects, dict(job.data_options)))
    if key not in _DATASETS:
        _DATASETS[key] = _Remembered(build_dataset(job, model, "train"))
    return _DATASETS[key]


def _asked(cell: Cell, base: Job) -> parity.TrainingSpec:
    job = cell.job(base)
    return parity.TrainingSpec(
        label=cell.name,
        engine=job.backend,
        settings=dict(job.engine),
        optimization=asdict(build_optimization(job)),
        steps=job.steps,
    )


def _write(cell: Cell, outcome: parity.Outcome, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if outcome.error:
        write_told(out, cell, {"refused": outcome.error})
        return
    save_weights(_names(outcome.weights), out / f"{cell.name}.safetensors", {"cell": cell.name})
    if cell.backend == "single":
        save_weights(_names(outcome.initial), out / "start.safetensors", {"cell": "start"})
    write_told(out, cell, {"rows": outcome.rows, "engine": outcome.description})


def _names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's own names, also where a planted overflow wraps it."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}


if __name__ == "__main__":
    run_and_leave(lambda: main(sys.argv[1], sys.argv[2]))
