"""What parity compares: cells of engine, ZeRO stage, workers, accumulation, clipping and precision, and their training.

All cells that share engine family and workers run one after another in one launched job: the process group is made
once, the engine is prepared anew for each cell. A cell is an ordinary training of the harness's own trainer on its own
data, so what is proven is what is measured.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.job import Job

PARITY_WORKER = "harness.parity_worker"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training. `overflow_at`: optimizer step whose loss is made infinite (a planted overflow), -1 = none."""

    backend: str
    zero_stage: int | None = None
    workers: int = 1
    accumulation: int = 1
    clip: bool = True
    precision: str = "fp32"
    precision_mode: str = "matched"
    overflow_at: int = -1

    @property
    def engine(self) -> str:
        return self.backend if self.zero_stage is None else f"{self.backend} ZeRO-{self.zero_stage}"

    @property
    def name(self) -> str:
        stage = "" if self.zero_stage is None else f"-z{self.zero_stage}"
        clip = "clip" if self.clip else "noclip"
        overflow = "" if self.overflow_at < 0 else f"-o{self.overflow_at}"
        mode = "" if self.precision_mode == "matched" else "-native"
        return f"{self.backend}{stage}-w{self.workers}-a{self.accumulation}-{clip}-{self.precision}{mode}{overflow}"

    def reference(self) -> Cell:
        """The single-process cell that this one must equal: whole global batch at once, the same precision, matched."""
        return Cell(backend="single", clip=self.clip, precision=self.precision, overflow_at=self.overflow_at)

    def job(self, base: Job) -> Job:
        """`base` as this cell trains it."""
        return base.with_(
            backend=self.backend,
            nodes=1,
            slots=self.workers,
            accumulation=self.accumulation,
            clip_norm=base.clip_norm if self.clip else None,
            precision=self.precision,
            precision_mode=self.precision_mode,
            engine={} if self.zero_stage is None else {"zero_stage": self.zero_stage},
        )


def worker_argv(module: str, base: Job, cells: Sequence[Cell], out: Path) -> list[str]:
    """argv of the worker module that runs `cells` and writes each one's files into `out`."""
    text = json.dumps({"job": base.to_dict(), "cells": [asdict(cell) for cell in cells]})
    packed = base64.urlsafe_b64encode(text.encode()).decode()
    return [sys.executable, "-m", module, packed, str(out)]


def unpack(packed: str) -> tuple[Job, list[Cell]]:
    """The reverse of what `worker_argv` packs."""
    value: dict[str, Any] = json.loads(base64.urlsafe_b64decode(packed))
    return Job.from_dict(value["job"]), [Cell(**cell) for cell in value["cells"]]


def run_and_leave(main: Callable[[str, str], None]) -> None:
    """Runs a cell worker's `main(PACKED_CELLS, OUT)` and leaves at once: a clean exit could wait for other ranks."""
    try:
        main(sys.argv[1], sys.argv[2])
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
