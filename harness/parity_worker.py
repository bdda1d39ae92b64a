"""Trains parity cells, under any launcher: ``python -m harness.parity_worker PACKED_CELLS OUT``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backends.process import ProcessFacts, detect
from harness.job import Job
from harness.parity_cells import Cell, run_and_leave, unpack


def main(packed: str, out: str) -> None:
    """Trains every cell; writes OUT/NAME.safetensors and OUT/NAME.json on rank 0. A cell that an engine refuses is
    written with its reason; any other error ends the job, as it would end a real one."""
    import torch

    facts = detect()
    base, cells = unpack(packed)
    torch.set_num_threads(base.threads)
    backend: Any = None
    for cell in cells:
        backend = train_cell(cell, base, facts, Path(out))
    if backend is not None:
        backend.close()


def train_cell(cell: Cell, base: Job, facts: ProcessFacts, out: Path) -> Any:
    """One training from the seed's weights. Returns the backend, whose process group the next cell uses again."""
    import torch

    import backends
    from backends.base import BackendError
    from core_model.data.batches import BatchLoader, GlobalBatches
    from core_model.trainer import Plan, Trainer
    from harness.build import build_dataset, build_model, build_optimization, save_weights, trainable_weights
    from harness.overflow import PREFIX, Overflowing

    job = cell.job(base)
    backend = None
    try:
        engine = backends.load(job.backend)
        backend = engine(
            backends.settings_from(job.backend, dict(job.engine)), facts, device=job.device, timeout_s=job.timeout_s
        )
        torch.manual_seed(job.seed)
        model = build_model(job)
        start = {name: tensor.clone() for name, tensor in trainable_weights(model).items()}
        dataset = build_dataset(job, model, "train")
        model.prepare_text(dataset.categories)
        trained = model
        if cell.overflow_at >= 0:
            trained = Overflowing(model, accumulation=job.accumulation, at=cell.overflow_at)
        backend.prepare(trained, build_optimization(job))
    except BackendError as error:
        # Every rank refuses alike, before any collective of this cell.
        if facts.rank == 0:
            (out / f"{cell.name}.json").write_text(json.dumps({"refused": str(error)}))
        return backend
    loader = BatchLoader(
        dataset,
        GlobalBatches(dataset.ids, global_batch=job.global_batch, seed=job.seed),
        rank=facts.rank,
        world=facts.world_size,
        accumulation=job.accumulation,
        steps=job.steps,
        collate=model.collator,
    )
    rows: list[dict[str, Any]] = []
    Trainer(backend, loader, Plan(steps=job.steps, log_every=job.steps), on_rows=rows.extend).train()
    weights = {
        name.removeprefix(PREFIX) if cell.overflow_at >= 0 else name: tensor
        for name, tensor in backend.weights().items()
    }
    description = backend.describe()
    if facts.rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        save_weights(weights, out / f"{cell.name}.safetensors", {"cell": cell.name})
        if cell.backend == "single":
            save_weights(start, out / "start.safetensors", {"cell": "start"})
        (out / f"{cell.name}.json").write_text(json.dumps({"rows": rows, "engine": description}, default=str))
    return backend


if __name__ == "__main__":
    run_and_leave(main)
