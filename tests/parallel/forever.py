"""Worker of the kill test: trains ENGINE until somebody ends it, at most 60 s. ``forever.py ENGINE SETTINGS FOLDER``.

Each rank writes its process id to ``FOLDER/RANK.pid`` when training has begun.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from tiny import Tiny, batches  # noqa: E402

import backends  # noqa: E402
from backends.base import BackendError, Optimization  # noqa: E402
from backends.process.rank import detect  # noqa: E402


def main() -> None:
    """Trains."""
    torch.set_num_threads(1)
    name, settings, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    facts = detect()
    try:
        backend = backends.load(name)(backends.settings_from(name, settings), facts, device="cpu", timeout_s=60)
    except BackendError as error:
        print(f"error: {error}", flush=True)
        sys.exit(2)
    backend.prepare(Tiny(), Optimization())
    end, step = time.monotonic() + 60, 0
    while time.monotonic() < end:
        backend.train_step(batches(step, facts.rank, facts.world_size, 1))
        if step == 3:
            (folder / f"{facts.rank}.pid").write_text(str(os.getpid()))
        step += 1
        time.sleep(0.01)


if __name__ == "__main__":
    main()
