"""What parity compares: cells of engine, ZeRO stage, workers, accumulation, clipping and precision.

All cells that share engine and workers run one after another in one launched job: the process group is made once, the
engine is prepared anew for each cell. A cell is an ordinary training of the harness's own trainer on its own data, so
what is proven is what is measured.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.common import packed_json as packing
from harness.job.declaration import Job
from harness.job.engines import ZERO_STAGE, parse_backend
from harness.records.record_files import write_text

MODEL = "model."  # a change of the model begins so
CHANGES = frozenset({"compile", "activation_checkpointing", "loader_workers"})  # fields of the job that may differ
PARITY_WORKER = "harness.experiments.parity.worker"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training. settings: further engine settings. `overflow_at`: optimizer step in which one rank's loss is made
    infinite (a planted overflow), -1 = none. changes: what it trains otherwise than the job says, as --set writes it
    (``model.KEY``, ``compile``)."""

    backend: str
    zero_stage: int | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    workers: int = 1
    accumulation: int = 1
    clip: bool = True
    precision: str = "fp32"
    precision_mode: str = "matched"
    overflow_at: int = -1
    changes: tuple[tuple[str, Any], ...] = ()

    def __hash__(self) -> int:  # a setting may be a table, which has no hash of its own
        return hash(self.name)

    @property
    def engine(self) -> str:
        stage = "" if self.zero_stage is None else f" ZeRO-{self.zero_stage}"
        settings = ", ".join(f"{key}={json.dumps(value)}" for key, value in (*self.settings, *self.changes))
        return self.backend + stage + (f" ({settings})" if settings else "")

    @property
    def name(self) -> str:
        stage = "" if self.zero_stage is None else f"-z{self.zero_stage}"
        own = "".join(f"-{key}-{value}" for key, value in (*self.settings, *self.changes))
        settings = re.sub(r"[^A-Za-z0-9._-]+", "-", own)
        clip = "clip" if self.clip else "noclip"
        overflow = "" if self.overflow_at < 0 else f"-o{self.overflow_at}"
        mode = "" if self.precision_mode == "matched" else "-native"
        head = f"{self.backend}{stage}{settings}-w{self.workers}-a{self.accumulation}"
        return f"{head}-{clip}-{self.precision}{mode}{overflow}"

    @property
    def parts(self) -> int:
        """Into how many parts a global batch is split."""
        return self.workers * self.accumulation

    def reference(self) -> Cell:
        """The single-process cell that this one must equal: whole global batch at once, the same precision, matched."""
        return Cell(backend="single", clip=self.clip, precision=self.precision, overflow_at=self.overflow_at)

    def same_split(self) -> Cell:
        """The single-process cell that splits its batches into the same parts, so that it rounds at the same places."""
        return Cell(
            backend="single",
            accumulation=self.parts,
            clip=self.clip,
            precision=self.precision,
            overflow_at=self.overflow_at,
        )

    def job(self, base: Job) -> Job:
        """`base` as this cell trains it."""
        stage = {} if self.zero_stage is None else {"zero_stage": self.zero_stage}
        of_model = {key.removeprefix(MODEL): value for key, value in self.changes if key.startswith(MODEL)}
        return base.with_(
            model={**base.model, **of_model},
            **{key: value for key, value in self.changes if not key.startswith(MODEL)},
            backend=self.backend,
            nodes=1,
            slots=self.workers,
            accumulation=self.accumulation,
            clip_norm=base.clip_norm if self.clip else None,
            precision=self.precision,
            precision_mode=self.precision_mode,
            engine={**stage, **dict(self.settings)},
        )


def parse_engine(text: str) -> dict[str, Any]:
    """An engine as `harness.job.engines` writes it, as fields of a `Cell`. Raises JobError.

    Its settings may be followed by what it trains otherwise than the others: ``single:model.pack_on_gpu=true`` and
    ``single:compile=true``.
    """
    found = parse_backend(text)
    settings = dict(found["engine"])
    changes = {key: settings.pop(key) for key in tuple(settings) if key.startswith(MODEL) or key in CHANGES}
    zero = settings.pop("zero_stage", ZERO_STAGE) if found["backend"] == "deepspeed" else None
    return {
        "backend": found["backend"],
        "zero_stage": zero,
        "settings": tuple(settings.items()),
        "changes": tuple(changes.items()),
    }


def cells_of(
    engines: Sequence[str],
    workers: Sequence[int],
    accumulations: Sequence[int],
    clips: Sequence[bool],
    precisions: Sequence[str],
    modes: Sequence[str],
) -> list[Cell]:
    """The matrix. engines: see `parse_engine`. fp32 knows one mode only."""
    return [
        Cell(
            **parse_engine(engine),
            workers=count,
            accumulation=accumulation,
            clip=clip,
            precision=precision,
            precision_mode=mode,
        )
        for engine in engines
        for count in workers
        for accumulation in accumulations
        for clip in clips
        for precision in precisions
        for mode in (modes if precision != "fp32" else ("matched",))
    ]


def worker_argv(module: str, base: Job, cells: Sequence[Cell], out: Path) -> list[str]:
    """argv of the worker module that runs `cells` and writes each one's files into `out`."""
    packed = packing.pack({"job": base.to_dict(), "cells": [asdict(cell) for cell in cells]})
    return [sys.executable, "-m", module, packed, str(out)]


def unpack(packed: str) -> tuple[Job, list[Cell]]:
    """The reverse of what `worker_argv` packs."""
    value: dict[str, Any] = packing.unpack(packed)
    return Job.from_dict(value["job"]), [cell_of(cell) for cell in value["cells"]]


def cell_of(values: Mapping[str, Any]) -> Cell:
    """A cell from its fields as JSON holds them."""
    pairs = {name: tuple(map(tuple, values.get(name) or ())) for name in ("settings", "changes")}
    return Cell(**{**values, **pairs})


def write_told(out: Path, cell: Cell, told: Mapping[str, Any]) -> None:
    """OUT/NAME.json, what a cell's training told: whole or not at all, for it is what counts as done."""
    write_text(out / f"{cell.name}.json", json.dumps(told, default=str))


def is_told(file: Path) -> bool:
    """Whether a cell's file is whole."""
    try:
        return isinstance(json.loads(file.read_text()), dict)
    except (OSError, ValueError):
        return False
