"""Worker of the resume test: ``resume.py SPEC.json first|second``.

first: trains every cell to the end, then trains it again to half and saves. second (other processes): loads, trains the
other half, and writes whether the weights are bit-equal. SPEC = {"cells": [...], "output": folder}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from tiny import Tiny, batches  # noqa: E402

import backends  # noqa: E402
from backends.base import Backend  # noqa: E402
from backends.checks.parity import TrainingSpec  # noqa: E402
from backends.process.rank import detect  # noqa: E402

HALF, END = 5, 10


def made(cell: TrainingSpec, *, disturbed: bool = False) -> Backend:
    """disturbed: trainable weights start elsewhere, so that what is not restored shows."""
    engine = backends.load(cell.engine)
    backend = engine(backends.settings_from(cell.engine, cell.settings), detect(), device="cpu", timeout_s=60)
    model = Tiny()
    if disturbed:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 1.0
    backend.prepare(model, cell.resolved())
    return backend


def train(backend: Backend, begin: int, end: int, accumulation: int) -> None:
    for step in range(begin, end):
        backend.train_step(batches(step, backend.rank, backend.world_size, accumulation))


def main() -> None:
    """Both halves."""
    torch.set_num_threads(1)
    spec, phase = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    output = Path(spec["output"])
    results: dict[str, Any] = {}
    for index, values in enumerate(spec["cells"]):
        cell = TrainingSpec(**values)
        accumulation = cell.resolved().accumulation
        folder = output / f"checkpoint-{index}"
        if phase == "first":
            whole = made(cell)
            train(whole, 0, END, accumulation)
            weights = whole.weights()
            whole.release()
            half = made(cell)
            if half.rank == 0:
                torch.save(weights, output / f"whole-{index}.pt")
                folder.mkdir()
            half.barrier()
            train(half, 0, HALF, accumulation)
            half.save(folder)
            half.release()
        else:
            resumed = made(cell, disturbed=True)
            resumed.load(folder)
            train(resumed, HALF, END, accumulation)
            weights, whole_weights = resumed.weights(), torch.load(output / f"whole-{index}.pt")
            results[cell.label] = [
                name for name, value in weights.items() if not torch.equal(value, whole_weights[name])
            ]
            resumed.release()
        last = resumed if phase == "second" else half
    if last.rank == 0 and phase == "second":
        (output / "differing.json").write_text(json.dumps(results))
    last.barrier()


if __name__ == "__main__":
    main()
