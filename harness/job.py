"""What is asked: a `Job`, fully resolved, is everything that decides a run. It is written to job.json as it is.

Nothing here imports torch or an engine: `harness --help` must answer at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import backends
from mpi.errors import UserError

SCALINGS = ("strong", "weak")


class JobError(UserError, ValueError):
    """A mistake in what was asked. One line that names the thing and the remedy; the command exits with 2."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run on one engine. Every field is part of the record; `contract()` is what must be alike in
    two runs that are compared.

    nodes x slots = world size. micro_batch = samples per rank and forward pass; global_batch = samples per
    optimizer step over all ranks = micro_batch x accumulation x world size. scaling: which of the two is held when
    the world grows (``strong``: global_batch; ``weak``: micro_batch x accumulation).
    """

    # engine and processes
    backend: str = "single"
    launcher: str = "auto"
    nodes: int = 1
    slots: int = 1
    hostfile: str = ""
    device: str = "auto"
    threads: int = 1
    oversubscribe: bool = False  # more workers than cores: allowed, recorded, never called scaling
    bind_cores: bool = False  # every rank keeps to cores of its own, near its GPU (harness.cores)
    concurrent: int = 1  # runs at a time on this machine: above 1 the run's speed is no figure, its weights are
    timeout_s: float = 300.0
    engine: Mapping[str, Any] = field(default_factory=dict)  # fields of the engine's Settings dataclass

    # model
    preset: str = "small"
    version: str = ""  # v1..v6 of the study, "" = none
    model: Mapping[str, Any] = field(default_factory=dict)  # overrides of the preset's fields
    random_weights: bool = False
    init_weights: str = ""  # safetensors of trainable weights to start from

    # data
    data: str = "textures"
    image_size: int = 0  # 0 = the preset's
    defects: str = ""  # simulation recipe, "" = the data module's default
    data_options: Mapping[str, Any] = field(default_factory=dict)
    loader_workers: int = 0

    # optimization
    steps: int = 60
    global_batch: int = 8
    accumulation: int = 1
    scaling: str = "strong"
    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-3
    clip_norm: float | None = 1.0
    schedule: str = "warmup_linear"
    warmup_steps: int = 6
    precision: str = "fp32"
    precision_mode: str = "matched"
    loss_scale: Mapping[str, Any] = field(default_factory=dict)
    activation_checkpointing: bool = False
    compile: bool = False  # transformer blocks by torch.compile
    seed: int = 0

    # measurement and evaluation
    timing_warmup: int = 10  # optimizer steps left out of timing
    log_every: int = 10  # optimizer steps per flush of losses and times
    eval_samples: int = 0  # 0 = the whole test set, -1 = no evaluation
    shots: int = 0
    keep_weights: bool = True  # write weights.safetensors (off for studies of speed alone)
    checkpoint_every: int = 0
    resume: bool = False
    profile: str = ""  # "", torch, engine
    emulate_compute_ms: float = 0.0  # stated wait instead of computing, see harness predict

    # where it is recorded
    study: str = "scratch"
    run: str = ""  # folder name in results/STUDY/, "" = made from the job
    repeat: int = 0

    @property
    def world_size(self) -> int:
        return self.nodes * self.slots

    @property
    def micro_batch(self) -> int:
        return self.global_batch // (self.world_size * self.accumulation)

    @property
    def elastic(self) -> tuple[int, int] | None:
        """(fewest, most) workers of an elastic job; None for an ordinary one."""
        fewest, most = int(self.engine.get("min_np") or 0), int(self.engine.get("max_np") or 0)
        return (fewest or 1, most or self.world_size) if fewest or most else None

    @property
    def tune_steps(self) -> int:
        """Steps of the phase before the run in which Horovod's tuner is on; 0 = no such phase."""
        return int(self.engine.get("tune_steps") or 0)

    def validate(self) -> Job:
        """Returns self, or raises JobError with one line for the first thing that cannot work."""
        if self.backend not in backends.names():
            raise JobError(f"unknown engine '{self.backend}': choose one of {', '.join(backends.names())}")
        if self.scaling not in SCALINGS:
            raise JobError(f"unknown scaling '{self.scaling}': choose one of {', '.join(SCALINGS)}")
        for name in ("nodes", "slots", "steps", "global_batch", "accumulation", "threads", "log_every", "concurrent"):
            if getattr(self, name) < 1:
                raise JobError(f"{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1")
        if self.backend == "single" and self.world_size > 1:
            raise JobError("engine 'single' runs one worker: use --nodes 1 --slots 1, or another engine")
        if self.emulate_compute_ms and self.eval_samples >= 0:
            raise JobError("--emulate-compute computes nothing to evaluate: add --eval-samples -1")
        if self.elastic is not None:
            self._validate_elastic(*self.elastic)
            return self
        if self.launcher == "horovodrun-elastic":
            raise JobError("launcher horovodrun-elastic starts elastic jobs: add --min-np 1 --max-np N")
        shares = self.world_size * self.accumulation
        if self.global_batch % shares:
            raise JobError(
                f"global batch {self.global_batch} cannot be split over {self.world_size} workers x "
                f"{self.accumulation} accumulation steps: use a multiple of {shares}"
            )
        return self

    def _validate_elastic(self, fewest: int, most: int) -> None:
        if self.backend != "horovod":
            raise JobError(f"--min-np and --max-np make a Horovod job elastic, {self.backend} is not: leave them out")
        if self.launcher not in ("auto", "horovodrun", "horovodrun-elastic"):
            raise JobError(f"launcher '{self.launcher}' starts no elastic job: leave --launcher out")
        if not fewest <= self.world_size <= most:
            raise JobError(
                f"the job starts with {self.world_size} workers: --min-np {fewest} and --max-np {most} must enclose it"
            )
        if self.global_batch < most * self.accumulation:
            raise JobError(
                f"global batch {self.global_batch} has no sample for each of {most} workers x {self.accumulation} "
                f"accumulation steps: use --max-np {max(1, self.global_batch // self.accumulation)} or a larger batch"
            )
        if self.nodes == 1 and not self.hostfile:
            raise JobError(
                "an elastic job needs hosts that can be lost: Horovod gives up a whole host when a worker of it dies; "
                "name them by --hostfile (on one machine, localhost and 127.0.0.1 count as two) and add --nodes"
            )
        for name in ("resume", "checkpoint_every", "profile", "tune_steps"):
            if getattr(self, name):
                raise JobError(f"an elastic job knows no {name.replace('_', '-')}: its workers hold its state")

    def default_run_name(self) -> str:
        """Folder name that says engine, its main setting, workers, precision and repeat."""
        stage = self.engine.get("zero_stage")
        engine = self.backend + (f"-z{stage}" if stage is not None and self.backend == "deepspeed" else "")
        mode = "" if self.precision == "fp32" or self.precision_mode == "matched" else "-native"
        return f"{engine}-w{self.world_size}-{self.precision}{mode}-s{self.seed}-r{self.repeat}"

    # -- files ----------------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in values.items() if name != "schema"}
        for name in values:
            if name not in known:
                raise JobError(f"unknown job field '{name}': known fields are {', '.join(sorted(known))}")
        if "betas" in values:
            values["betas"] = tuple(values["betas"])
        return cls(**values)

    @classmethod
    def load(cls, path: Path) -> Job:
        return cls.from_dict(json.loads(path.read_text()))

    def with_(self, **changes: Any) -> Job:
        return replace(self, **changes)
