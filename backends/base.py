"""The seam between the trainer and the engines.

A `Backend` owns the whole optimization step (forward, backward, exchange, clip, step), so that no capability
flag of an engine leaks into the trainer. Everything above this file speaks only of `Backend`, `Optimization`
and `StepReport`; everything an engine needs to know beyond those is in its own settings dataclass.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field

from backends.declared import declared, unknown
from backends.process.rank import ProcessFacts
from mpi.errors import UserError

if TYPE_CHECKING:
    import torch

    from backends.checks.traffic import Exchange
    from backends.tuning import Candidate, Situation

# The types of what is optimized, for `Optimization` here and for the job's fields of the same names.
Optimizer = Annotated[Literal["adamw", "adam", "sgd"], Field(description="Optimizer.")]
Schedule = Annotated[
    Literal["constant", "warmup_linear", "warmup_cosine"], Field(description="Course of the learning rate.")
]
Precision = Annotated[Literal["fp32", "bf16", "fp16"], Field(description="Arithmetic type.")]
PrecisionMode = Annotated[
    Literal["matched", "native"], Field(description="Like-for-like autocast, or the engine's own way.")
]
LearningRate = Annotated[float, Field(gt=0, description="Peak learning rate; never scaled by the number of workers.")]
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(description="Adam's decay rates of the two moments.")]
Epsilon = Annotated[float, Field(gt=0, description="Adam's epsilon.")]
WeightDecay = Annotated[float, Field(ge=0, description="Decoupled weight decay.")]
ClipNorm = Annotated[
    float | None,
    Field(ge=0, description="Global gradient norm limit; 0 = no clipping."),
    BeforeValidator(lambda value: None if value in (0, "0", "none") and value is not False else value),
]
WarmupSteps = Annotated[int, Field(ge=0, description="Learning-rate warm-up, in optimizer steps.")]
Accumulation = Annotated[int, Field(ge=1, description="Micro-batches per optimizer step and worker.")]

OPTIMIZERS: tuple[str, ...] = get_args(get_args(Optimizer)[0])
SCHEDULES: tuple[str, ...] = get_args(get_args(Schedule)[0])
PRECISIONS: tuple[str, ...] = get_args(get_args(Precision)[0])
PRECISION_MODES: tuple[str, ...] = get_args(get_args(PrecisionMode)[0])


class BackendError(UserError, RuntimeError):
    """A mistake of the user's that an engine found. The text is one line: the thing and the remedy."""


@declared(BackendError, "loss_scale: ")
class LossScale:
    """Dynamic loss scaling for fp16 (Micikevicius et al., 2018), one rule for every engine.

    ``torch.amp.GradScaler`` with ``growth_interval=window, growth_factor=2, backoff_factor=0.5`` is the same rule where
    `hysteresis` is 1. The defaults are those of the NCHC study's DeepSpeed file.

    Args:
        initial_power: the first scale is 2 to this power.
        window: the scale doubles after so many consecutive steps without overflow.
        hysteresis: it is halved at the overflow that uses up this budget, which is refilled when the scale doubles.
        floor: it never falls below this.
    """

    initial_power: Annotated[int, Field(ge=0, le=126, description="The first scale is 2 to this power.")] = 12
    window: Annotated[int, Field(ge=1, description="Steps without overflow until the scale doubles.")] = 1000
    hysteresis: Annotated[int, Field(ge=1, description="Overflows until the scale is halved.")] = 1
    floor: Annotated[float, Field(ge=0, description="The scale never falls below it.")] = 1.0


@declared(BackendError)
class Optimization:
    """What is optimized and how: shared by every engine, part of the equivalence contract.

    Args:
        optimizer, betas, eps, weight_decay, momentum: torch's class and its arguments; momentum is SGD's.
        lr, schedule, warmup_steps, total_steps: see `lr_at`; steps are optimizer steps.
        clip_norm: limit of the gradient's global L2 norm; None = no clipping.
        accumulation: micro-batches per optimizer step and rank.
        precision: the arithmetic type.
        precision_mode: ``matched`` = autocast over fp32 master weights, the same rule in every engine; ``native`` = the
            engine's own way (DeepSpeed: half-precision weights with fp32 masters).
        loss_scale: the rule of fp16; not used for other precisions.
    """

    optimizer: Optimizer = "adamw"
    lr: LearningRate = 1e-3
    betas: Betas = (0.9, 0.95)
    eps: Epsilon = 1e-8
    weight_decay: WeightDecay = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: ClipNorm = 1.0
    schedule: Schedule = "warmup_linear"
    warmup_steps: WarmupSteps = 0
    total_steps: Annotated[int, Field(ge=1)] = 100
    accumulation: Accumulation = 1
    precision: Precision = "fp32"
    precision_mode: PrecisionMode = "matched"
    loss_scale: LossScale = field(default_factory=LossScale)

    def lr_at(self, step: int) -> float:
        """The learning rate of one optimizer step: linear warm-up, then linear or by a cosine to 0; or constant.

        Args:
            step: number of the optimizer step, from 0.
        """
        if self.schedule == "constant":
            return self.lr
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        rest = max(1, self.total_steps - self.warmup_steps)
        share = min(1.0, (step - self.warmup_steps) / rest)
        if self.schedule == "warmup_linear":
            return self.lr * (1.0 - share)
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimizer step did. Tensors stay on the device: reading them is the only host synchronization.

    Args:
        losses: each loss part by name, this rank's mean over its micro-batches, 0-dim fp32; ``loss`` is the total.
        grad_norm: global L2 norm of the averaged gradient before clipping; None where the engine hides it.
        loss_scale: fp16 scale used in this step, 1.0 otherwise.
        skipped: True where an overflow dropped the step.
        lr: learning rate of the step.
    """

    losses: Mapping[str, torch.Tensor]
    grad_norm: torch.Tensor | float | None
    loss_scale: torch.Tensor | float
    skipped: torch.Tensor | bool
    lr: float


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Whether an engine can be used here.

    Args:
        usable: whether it can.
        reason: where not, why and what to do, in one line.
        version: of the engine, where it is installed.
    """

    usable: bool
    reason: str = ""
    version: str = ""


@declared(BackendError)
class EngineSettings:
    """Base of an engine's settings: one small declared class an engine, plus a pass-through dict."""

    extra: Annotated[Mapping[str, Any], Field(description="Passed to the engine as it is.")] = field(
        default_factory=dict
    )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_extra(settings: EngineSettings, known: Collection[str], taker: str) -> None:
    """Raises BackendError for a key of `extra` that `taker`, to which it is passed, does not have."""
    for name in settings.extra:
        if name not in known:
            raise BackendError(unknown(f"argument of {taker}", name, known))


class Backend(ABC):
    """One process's view of one engine. Created on every rank by the worker, after its launcher started it.

    The model given to `prepare` is a ``torch.nn.Module`` whose ``forward(micro_batch)`` returns a dict of 0-dim
    tensors with the key ``loss``: the MEAN over the samples of the micro-batch of a per-sample loss. Because each
    sample weighs the same, any split of a global batch over ranks and micro-batches gives the same gradient; that
    is what makes engines and world sizes comparable. What is done to the model itself (recomputed activations, compiled
    blocks, the storage of frozen parts) has been done before: no engine knows of it.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[EngineSettings]] = EngineSettings

    def __init__(
        self, settings: EngineSettings, facts: ProcessFacts, *, device: str = "auto", timeout_s: float = 300.0
    ) -> None:
        """Joins the process group.

        Args:
            settings: of the engine's own class `Settings`.
            facts: which rank this process is.
            device: ``auto``, ``cpu`` or ``cuda``.
            timeout_s: limit of every wait for other ranks, in seconds.
        """
        self.settings = settings
        self.facts = facts
        self.timeout_s = timeout_s

    # -- process facts -------------------------------------------------------------------------------------------
    @property
    def rank(self) -> int:
        return self.facts.rank

    @property
    def world_size(self) -> int:
        return self.facts.world_size

    @property
    def local_rank(self) -> int:
        return self.facts.local_rank

    @property
    def local_size(self) -> int:
        return self.facts.local_size

    device: torch.device

    @classmethod
    @abstractmethod
    def availability(cls) -> Availability:
        """Usable here or the reason why not. Must not import the engine when this module is imported."""

    @classmethod  # noqa: B027 - an engine that can do everything has nothing to check
    def check_job(
        cls, settings: EngineSettings, optimization: Optimization, *, world_size: int, micro_batch: int, launcher: str
    ) -> None:
        """Checks a job before anything is started: called where it is launched, without ranks.

        Args:
            settings, optimization: of the job.
            world_size: number of workers.
            micro_batch: samples a rank and forward pass; 0 where it changes in the run.
            launcher: as the ranks will see it (`ProcessFacts.launcher`).

        Raises:
            BackendError: for what this engine cannot do.
        """

    @classmethod
    def candidates(cls, settings: EngineSettings, situation: Situation) -> tuple[Candidate, ...]:
        """What `harness tune` may try on top of `settings`, most promising first."""
        return ()

    @classmethod
    def start_note(cls, settings: EngineSettings, optimization: Optimization) -> str:
        """One line on what makes the start long on this machine, "" for nothing: said where a job is launched."""
        return ""

    # -- training ------------------------------------------------------------------------------------------------
    @abstractmethod
    def prepare(self, model: torch.nn.Module, optimization: Optimization) -> None:
        """Moves `model` to the device, gives rank 0's weights to every rank, builds optimizer, schedule, precision,
        accumulation, clipping and sharding. Call once. Raises BackendError for a job that the engine cannot do."""

    @abstractmethod
    def train_step(self, micro_batches: Sequence[Any]) -> StepReport:
        """One whole optimizer step.

        Args:
            micro_batches: this rank's, as many as the job accumulates over, on the device.
        """

    @property
    @abstractmethod
    def model(self) -> torch.nn.Module:
        """The prepared model, usable for evaluation (``with torch.no_grad()``) on this rank. Where weights are
        sharded (ZeRO-3, FSDP2) it may only be called on all ranks together."""

    # -- collectives outside the step (metrics, records) -----------------------------------------------------------
    @abstractmethod
    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over ranks, same shape and device; the argument is not changed."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any] | None:
        """The ranks' picklable values in rank order on rank 0, None elsewhere."""

    @abstractmethod
    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable value on every rank."""

    @abstractmethod
    def barrier(self) -> None:
        """Returns on every rank after all have called it."""

    # -- state ---------------------------------------------------------------------------------------------------
    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """Consolidated trainable weights by the model's own names, fp32, on the CPU. Collective: all ranks call it;
        every rank gets the dict."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the engine's own state for resume (weights, optimizer, scaler, step counter). Collective.

        Args:
            folder: exists and is empty.
        """

    @abstractmethod
    def load(self, folder: Path) -> None:
        """The reverse of `save`, after `prepare`. Collective.

        Raises:
            BackendError: for the state of another engine, world size or training, and for damaged files.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What was really used, whatever was asked for: versions of engine and libraries, controller, type on the wire,
        bucket sizes, ZeRO stage, optimizer class, communication library. JSON types; called after `prepare`."""

    @abstractmethod
    def close(self) -> None:
        """Leaves the process group. Safe to call twice."""

    # -- optional ------------------------------------------------------------------------------------------------
    def counting_exchange(self) -> AbstractContextManager[Exchange]:
        """Within it, `train_step` counts the bytes that it hands to collectives. Slows the step: never while timing."""
        from backends.checks.traffic import Exchange

        return nullcontext(Exchange())

    def release(self) -> None:  # noqa: B027 - doing nothing is right where nothing outlives the object
        """Frees the prepared model and the engine but stays in the process group, so that another Backend of the same
        class can be made in this process (parity tables, interleaved timing)."""
