"""What is asked: a `Job`, fully resolved, is everything that decides a run. It is written to job.json as it is.

Every field is declared once: its type, its range and its help text. From that come the checks (`JobError`, one line),
the options of the commands (`harness.job.options`) and the schema of job.json (`json_schema`). Nothing here imports
torch or an engine: `harness run --help` must answer at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

import backends
from backends import base
from backends.declared import check_field, declared, schema_of, unknown
from core_model.user_job.source import MADE_UP_DATA, OWN_DATA, resolved, resolved_data, source_of
from mpi import names
from mpi.errors import UserError

TABLES = frozenset({"engine", "model", "data_options", "loss_scale"})  # fields that are tables of KEY=VALUE
_LARGEST_SEED = 2**32 - 1  # numpy's and scikit-learn's limit


class JobError(UserError, ValueError):
    """A mistake in what was asked. One line that names the thing and the remedy; the command exits with 2."""


def _least(least: float, text: str) -> Any:
    """The declaration of a number: the least that is allowed, and its help text."""
    return Field(ge=least, description=text)


@declared(JobError)
class Job:
    """One training run on one engine. Every field is part of the record; `contract()` is what must be alike in
    two runs that are compared.

    nodes x slots = world size. micro_batch = samples per rank and forward pass; global_batch = samples per
    optimizer step over all ranks = micro_batch x accumulation x world size. scaling: which of the two is held when
    the world grows (``strong``: global_batch; ``weak``: micro_batch x accumulation).

    Making one raises JobError for every wrong type and range; `validate` for what does not go together.
    """

    # engine and processes
    backend: Annotated[str, Field(description=f"Engine: {', '.join(backends.names())}.")] = "single"
    launcher: Annotated[
        str,
        Field(description="auto, local, deepspeed, horovodrun, mpirun, torchrun or srun (auto: the engine's own)."),
    ] = "auto"
    nodes: Annotated[int, _least(1, "Number of hosts, taken from the hostfile in its order.")] = 1
    slots: Annotated[int, _least(1, "Workers per host.")] = 1
    hostfile: Annotated[
        str, Field(description="Hosts as 'name slots=N' lines (default: ./hostfile for --nodes > 1).")
    ] = ""
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="Where to compute.")] = "auto"
    threads: Annotated[int, _least(1, "CPU threads per worker.")] = 1
    oversubscribe: Annotated[
        bool, Field(description="Allow more workers than CPU cores (recorded; says nothing of scaling).")
    ] = False
    bind_cores: Annotated[bool, Field(description="Give every rank CPU cores of its own, near its GPU.")] = False
    concurrent: Annotated[int, _least(1, "Runs at the same time on this machine; above 1, times are not used.")] = 1
    timeout_s: Annotated[
        float, Field(gt=0, description="Limit of any single wait: 90s, 5m; a bare number is in seconds.")
    ] = 300.0
    time_limit_s: Annotated[
        float, _least(0, "Limit of the whole run, which is then ended and counts as failed: 10m, 2h; 0 = none.")
    ] = 0.0
    engine: Annotated[Mapping[str, Any], Field(description="Settings of the engine.")] = field(default_factory=dict)

    # model
    preset: Annotated[str, Field(description="Model: tiny, small, lite, clip[:NAME], anomalygpt-7b, llama-600m.")] = (
        "small"  # or FILE.py:FUNCTION or hf:NAME, the value of the option --model
    )
    version: Annotated[str, Field(description="Model version v1..v6 of the NCHC study, with all its settings.")] = ""
    model: Annotated[Mapping[str, Any], Field(description="Settings: overrides of the preset's fields.")] = field(
        default_factory=dict
    )
    random_weights: Annotated[bool, Field(description="Build the preset without pretrained weights.")] = False
    init_weights: Annotated[str, Field(description="Trainable weights (safetensors or a run) to start from.")] = ""

    # data
    data: Annotated[str, Field(description="Data set: textures, mvtec:DIR, visa:DIR or aebad:DIR.")] = "textures"
    image_size: Annotated[int, _least(0, "Picture size in pixels per side; 0 = the preset's.")] = 0
    defects: Annotated[str, Field(description="Recipe of the simulated defects.")] = ""
    data_options: Annotated[Mapping[str, Any], Field(description="Options of the data set.")] = field(
        default_factory=dict
    )
    loader_workers: Annotated[int, _least(0, "Data loading processes per worker; 0 = one background thread.")] = 0

    # optimization
    steps: Annotated[int, _least(1, "Optimizer steps.")] = 60
    global_batch: Annotated[
        int, _least(1, "Samples per optimizer step over all workers; per worker with `compare --scaling weak`.")
    ] = 8
    accumulation: base.Accumulation = 1
    scaling: Annotated[
        Literal["strong", "weak"],
        Field(description="What stays the same with more workers: the whole batch, or a worker's."),
    ] = "strong"
    optimizer: base.Optimizer = "adamw"
    lr: base.LearningRate = 1e-3
    betas: base.Betas = (0.9, 0.95)
    eps: base.Epsilon = 1e-8
    weight_decay: base.WeightDecay = 1e-3
    clip_norm: base.ClipNorm = 1.0
    schedule: base.Schedule = "warmup_linear"
    warmup_steps: base.WarmupSteps = 6
    precision: base.Precision = "fp32"
    precision_mode: base.PrecisionMode = "matched"
    loss_scale: Annotated[Mapping[str, Any], Field(description="Fields of the fp16 loss scale's rule.")] = field(
        default_factory=dict
    )
    activation_checkpointing: Annotated[bool, Field(description="Recompute activations in backward.")] = False
    compile: Annotated[
        bool, Field(description="Compile transformer blocks by torch.compile; default: on a GPU, if all are trained.")
    ] = False
    seed: Annotated[
        int, Field(ge=0, le=_LARGEST_SEED, description="Decides weights, order of samples and simulated defects.")
    ] = 0

    # measurement and evaluation
    timing_warmup: Annotated[int, _least(0, "First optimizer steps left out of timing.")] = 10
    log_every: Annotated[int, _least(1, "Optimizer steps per flush of losses and times.")] = 10
    eval_samples: Annotated[int, _least(-1, "Test samples to evaluate; 0 = all, -1 = none.")] = 0
    shots: Annotated[int, _least(0, "Normal pictures per category in the memory bank at evaluation.")] = 0
    keep_weights: Annotated[bool, Field(description="Write weights.safetensors.")] = True
    checkpoint_every: Annotated[int, _least(0, "Optimizer steps between checkpoints; 0 = none.")] = 0
    resume: Annotated[bool, Field(description="Continue from the run's last good checkpoint.")] = False
    profile: Annotated[
        Literal["", "torch", "nvtx", "engine"],
        Field(description="Profiler to use; times of such a run are never compared."),
    ] = ""
    emulate_compute_ms: Annotated[float, _least(0, "Wait this many milliseconds per step instead of computing.")] = 0.0

    # where it is recorded
    study: Annotated[str, Field(description="Folder in results/ that the run belongs to.")] = "scratch"
    run: Annotated[
        str, Field(description="Folder of the run (default: made from engine, workers, precision, seed).")
    ] = ""
    repeat: Annotated[int, _least(0, "Number of the repeat within a study, from 0.")] = 0

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
        for kind, value in (("study", self.study), ("run", self.run)):  # they become folders
            if (value or kind == "study") and (reason := names.fault(kind, value)):
                raise JobError(reason)
        if self.backend not in backends.names():
            raise JobError(f"unknown engine '{self.backend}': choose one of {', '.join(backends.names())}")
        if self.backend == "single" and self.world_size > 1:
            raise JobError("engine 'single' runs one worker: use --nodes 1 --slots 1, or another engine")
        try:
            base.LossScale(**self.loss_scale)
        except base.BackendError as wrong:
            raise JobError(str(wrong)) from None
        check_user_job(self)
        if self.schedule != "constant" and self.warmup_steps > self.steps:
            raise JobError(
                f"warmup_steps: {self.warmup_steps} steps of warm-up do not fit in a run of {self.steps} steps: "
                f"use at most {self.steps}"
            )
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
                raise JobError(f"an elastic job does not support {name.replace('_', '-')}: its workers hold its state")

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
        """The job of a record, a study file or options. Raises JobError that names unknown fields and wrong values."""
        values = with_source(cls.checked({name: value for name, value in values.items() if name != "schema"}))
        if "steps" in values:  # a short run warms up no longer than it is, unless told to
            values.setdefault("warmup_steps", min(cls.warmup_steps, values["steps"]))
        return cls(**values)

    @classmethod
    def names(cls) -> frozenset[str]:
        """The names of a job's fields."""
        return frozenset(f.name for f in fields(cls))

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Some of a job's fields, each of the declared type and in its range. Raises JobError that names all that are
        not, and unknown ones with the nearest name."""
        known = cls.names()
        checked, wrong = {}, []
        for name, value in values.items():
            try:
                if name not in known:
                    raise JobError(unknown("job field", name, known))
                checked[name] = check_field(cls, name, value, JobError)
            except JobError as error:
                wrong.append(str(error))
        if wrong:
            raise JobError("; ".join(wrong))
        return checked

    @classmethod
    def load(cls, path: Path) -> Job:
        """The job in a file. Raises JobError where it is none."""
        try:
            values = json.loads(path.read_text())
        except ValueError as error:
            raise JobError(f"{path}: not valid JSON ({error}): the record is damaged") from None
        if not isinstance(values, dict):
            raise JobError(f"{path}: not a job: it holds no JSON object")
        return cls.from_dict(values)

    def with_(self, **changes: Any) -> Job:
        return replace(self, **changes)


# Fields that say something about the pictures, language models or versions of this project's own presets.
_PRESETS_ONLY = ("version", "defects", "shots", "image_size", "emulate_compute_ms", "data_options")


def with_source(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a job: where its preset names a job of the user's, with the file's absolute path and with that
    job's data, not this project's. Raises ModelError."""
    source = source_of(str(values.get("preset", "")))
    if source is None:
        return values
    own = OWN_DATA if source.file is not None else MADE_UP_DATA
    data = resolved_data(values.get("data") or own)
    return {**values, "preset": resolved(values["preset"]), "data": data}


def check_user_job(job: Job) -> None:
    """Raises JobError for what does not go together with a job of the user's own."""
    source = source_of(job.preset)
    if source is None:
        return
    for name in _PRESETS_ONLY:
        if getattr(job, name):
            raise JobError(f"{name}: belongs to the presets of this project, not to --model: leave it out")
    if source.file is None:
        return
    if job.data != OWN_DATA:
        raise JobError(
            f"--data {job.data}: {source.label} brings its own data set: leave it out, or hand it over by --set "
            "model.KEY=VALUE"
        )
    if job.random_weights:
        raise JobError(f"--random-weights: {source.label} decides its own weights: leave it out")


# Fields of job.json that every record has; the others came later, and a record without them ran with their defaults.
_ALWAYS = (
    "backend", "nodes", "slots", "preset", "data", "steps", "global_batch", "accumulation", "scaling", "optimizer",
    "lr", "schedule", "precision", "precision_mode", "seed", "repeat", "timing_warmup",
)  # fmt: skip


def json_schema() -> dict[str, Any]:
    """The JSON schema of job.json. Fields of later versions are allowed."""
    made = schema_of(Job)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "job",
        "title": "job.json: the resolved harness.job.declaration.Job",
        "type": "object",
        "properties": {"schema": {"const": 1}, **made["properties"]},
        "required": ["schema", *_ALWAYS],
        "additionalProperties": True,
    }
