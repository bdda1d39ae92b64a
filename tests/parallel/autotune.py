"""Worker of the autotune test: ``autotune.py FOLDER``. Tunes as a phase, writes what it found and what is then
fixed."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from tiny import Tiny, batches  # noqa: E402

import backends  # noqa: E402
from backends.base import Optimization  # noqa: E402
from backends.horovod.autotune import fixed, phase, tune  # noqa: E402
from backends.horovod.settings import HorovodSettings  # noqa: E402
from backends.process.rank import detect  # noqa: E402


def main() -> None:
    """One phase."""
    folder, facts = Path(sys.argv[1]), detect()
    log = folder / "autotune.csv"
    settings = phase(HorovodSettings(extra={"HOROVOD_X": 1}), log, warmup=1, steps_per_sample=1, samples=4)
    backend = backends.load("horovod")(settings, facts, device="cpu", timeout_s=30)
    backend.prepare(Tiny(), Optimization())
    outcome = tune(
        backend,
        lambda step: batches(step % 20, facts.rank, facts.world_size, 1),
        log,
        max_steps=1500,
        limit_s=40,
        check_every=10,
    )
    found = {"outcome": asdict(outcome), "fixed": asdict(fixed(settings, outcome)), "description": backend.describe()}
    (folder / f"{facts.rank}.json").write_text(json.dumps(found))
    backend.barrier()
    backend.close()


if __name__ == "__main__":
    main()
