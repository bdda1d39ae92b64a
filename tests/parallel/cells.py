"""Worker of the parallel tests: trains the cells of a JSON file and writes what came out. Run under a real launcher.

``... cells.py SPEC.json``: SPEC = {"cells": [fields of TrainingSpec], "output": folder, "overflow_step": int or null,
"spare": bool, "recompute": bool, "device": "cpu" unless given, "register": {engine: ["module:Class", folder]}}.
Rank 0 writes ``<output>/<index>.pt`` (weights, initial) and ``<output>/outcomes.json``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from tiny import Tiny, batches  # noqa: E402
from torch.nn import functional  # noqa: E402

import backends  # noqa: E402
from backends.checks.parity import TrainingSpec, run_cells  # noqa: E402
from backends.process.exit import run_and_leave  # noqa: E402
from backends.process.rank import detect  # noqa: E402


def main() -> None:
    """Trains the cells."""
    torch.set_num_threads(1)
    plain_linear = functional.linear
    spec = json.loads(Path(sys.argv[1]).read_text())
    facts = detect()
    overflow = spec.get("overflow_step")
    for name, (place, folder) in spec.get("register", {}).items():
        sys.path.insert(0, folder)
        backends.REGISTRY[name] = place

    def make() -> Tiny:
        model = Tiny(spare=bool(spec.get("spare")))
        model.set_activation_checkpointing(bool(spec.get("recompute")))
        return model

    def planted(step: int, rank: int, world_size: int, accumulation: int) -> list:
        micro = batches(step, rank, world_size, accumulation)
        if step == overflow and rank == world_size - 1:  # one rank only: the others must learn of it
            x, y = micro[-1]
            micro[-1] = (x * float("inf"), y)
        return micro

    cells = [TrainingSpec(**cell) for cell in spec["cells"]]
    outcomes = run_cells(
        cells,
        make,
        planted,
        facts=facts,
        device=spec.get("device", "cpu"),
        timeout_s=60,
    )
    assert functional.linear is plain_linear, "an engine left torch.nn.functional.linear replaced"
    if facts.rank == 0:
        output = Path(spec["output"])
        rows = []
        for index, outcome in enumerate(outcomes):
            torch.save({"weights": outcome.weights, "initial": outcome.initial}, output / f"{index}.pt")
            rows.append({key: value for key, value in asdict(outcome).items() if key not in ("weights", "initial")})
        (output / "outcomes.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    run_and_leave(main)
