"""Worker of the elastic tests: ``elastic.py FOLDER STEPS``. Each rank leaves ``FOLDER/HOST.pid``; rank 0 writes the
end.

ELASTIC_DIES=HOST:STEP kills that host's worker inside that step: after the step's first collective, before its backward
pass, so that the others have gradients of their own when they learn of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from tiny import GLOBAL_BATCH, Tiny, batches  # noqa: E402

import backends  # noqa: E402
from backends.base import Optimization  # noqa: E402
from backends.horovod.elastic import micro_parts, train  # noqa: E402
from backends.process.rank import detect  # noqa: E402


def main() -> None:
    """Trains elastically, slowly enough for the test to interfere."""
    torch.set_num_threads(1)
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    host = os.environ["HOROVOD_HOSTNAME"]
    # Of a collective, and of the start: whoever is there waits so long for one that still imports torch.
    limit = float(os.environ.get("ELASTIC_TIMEOUT_S", "60"))
    backend = backends.load("horovod")(backends.settings_from("horovod", {}), detect(), device="cpu", timeout_s=limit)
    model = Tiny()
    backend.prepare(model, Optimization(total_steps=steps))
    pace = float(os.environ.get("ELASTIC_PACE_S", "0.05"))

    def share(step: int, rank: int, world_size: int) -> tuple[list[Any], list[int]]:
        (x, y), *_ = batches(step, 0, 1, 1)
        parts = micro_parts(GLOBAL_BATCH, rank=rank, world_size=world_size, accumulation=1)
        return [(x[p.start : p.stop], y[p.start : p.stop]) for p in parts], [len(p) for p in parts]

    dying_host, _, dying_step = os.environ.get("ELASTIC_DIES", "").partition(":")

    def die(*_: Any) -> None:
        if host == dying_host and backend.step == int(dying_step):
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(die)

    def leave(name: str, text: str) -> None:
        """Whole at once: others read it at any time, and ranks leave the same file."""
        new = folder / f".{name}.{host}"
        new.write_text(text)
        new.replace(folder / name)

    def on_step(step: int, report: Any) -> None:
        leave(f"{host}.pid", str(os.getpid()))
        leave("step", f"{step} {backend.world_size}")
        time.sleep(pace)

    summary = train(backend, share, steps=steps, commit_every=4, on_step=on_step)
    weights = backend.weights()
    if backend.rank == 0:
        torch.save(weights, folder / "weights.pt")
        (folder / "summary.json").write_text(json.dumps(asdict(summary)))


if __name__ == "__main__":
    main()
