"""Do engines compute the same thing? Trains the same few steps in several cells and compares weights.

A cell is an engine with settings and an optimization. All cells of one process share its world size; under mpirun every
engine can run in the same processes, under horovodrun only Horovod. What is trained comes from the caller: this package
knows no model and no data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import backends
from backends.base import Backend, BackendError, LossScale, Optimization
from backends.process.rank import ProcessFacts, detect

# (step, rank, world size, accumulation) -> this rank's micro-batches; the global batch may depend on the step alone
Batches = Callable[[int, int, int, int], Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """One training to compare.

    Args:
        label: its name in tables.
        optimization: fields of `Optimization` (loss_scale: a dict).
    """

    label: str
    engine: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    optimization: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 20

    def resolved(self) -> Optimization:
        values = dict(self.optimization)
        if isinstance(values.get("loss_scale"), Mapping):
            values["loss_scale"] = LossScale(**values["loss_scale"])
        if "betas" in values:
            values["betas"] = tuple(values["betas"])
        values.setdefault("total_steps", self.steps)
        return Optimization(**values)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a cell ended with, the same on every rank.

    Args:
        rows: one a step with loss (mean over ranks), grad_norm, loss_scale, skipped, lr.
        exchange: bytes of the last step, where counted.
        error: why it did not run, else "".
    """

    label: str
    world_size: int
    weights: dict[str, torch.Tensor]
    initial: dict[str, torch.Tensor]
    rows: list[dict[str, Any]]
    description: dict[str, Any]
    exchange: dict[str, Any]
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one cell trains.

    Args:
        loop: trains `model` on the prepared backend; returns a row a step (loss as the mean over the ranks, grad_norm,
            loss_scale, skipped, lr) and the bytes exchanged in one step ({} where not counted).
    """

    model: torch.nn.Module
    loop: Callable[[Backend], tuple[list[dict[str, Any]], dict[str, Any]]]


def train_cells(
    cells: Sequence[TrainingSpec],
    make: Callable[[TrainingSpec], Training],
    *,
    facts: ProcessFacts,
    device: str = "auto",
    timeout_s: float = 120.0,
) -> Iterator[Outcome]:
    """Trains every cell in turn in this process; all ranks call it with the same cells and go through to the end, where
    the process groups are left. A cell that an engine refuses (BackendError, on all ranks alike) gives an Outcome with
    `error`; anything else ends the process."""
    last: dict[str, Backend] = {}
    for cell in cells:
        try:
            engine = backends.load(cell.engine)
            settings = backends.settings_from(cell.engine, cell.settings)
            backend = last[cell.engine] = engine(settings, facts, device=device, timeout_s=timeout_s)
            outcome = _train(cell, backend, make(cell))
            backend.release()
        except BackendError as error:
            nothing: dict[str, Any] = {"weights": {}, "initial": {}, "description": {}, "exchange": {}}
            outcome = Outcome(label=cell.label, world_size=facts.world_size, rows=[], error=str(error), **nothing)
        yield outcome
    for backend in last.values():
        backend.close()


def _train(cell: TrainingSpec, backend: Backend, training: Training) -> Outcome:
    backend.prepare(training.model, cell.resolved())
    initial = backend.weights()
    rows, exchange = training.loop(backend)
    return Outcome(
        label=cell.label,
        world_size=backend.world_size,
        weights=backend.weights(),
        initial=initial,
        rows=rows,
        description=backend.describe(),
        exchange=exchange,
    )


def run_cells(
    cells: Sequence[TrainingSpec],
    make_model: Callable[[], torch.nn.Module],
    batches: Batches,
    *,
    facts: ProcessFacts | None = None,
    device: str = "auto",
    timeout_s: float = 120.0,
) -> list[Outcome]:
    """`train_cells` with the same model for every cell and batches made by a function, in the plainest loop."""

    def make(cell: TrainingSpec) -> Training:
        return Training(model=make_model(), loop=lambda backend: _plain_loop(backend, cell, batches))

    return list(train_cells(cells, make, facts=facts or detect(), device=device, timeout_s=timeout_s))


def _plain_loop(backend: Backend, cell: TrainingSpec, batches: Batches) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every step's report, and the bytes that the last one exchanged."""
    accumulation = cell.resolved().accumulation
    reports, exchange = [], {}
    for step in range(cell.steps):
        made = batches(step, backend.rank, backend.world_size, accumulation)
        micro = [_to(batch, backend.device) for batch in made]
        if step == cell.steps - 1:
            with backend.counting_exchange() as counted:
                reports.append(backend.train_step(micro))
            exchange = counted.to_dict(backend.world_size)
        else:
            reports.append(backend.train_step(micro))
    losses = torch.stack([report.losses["loss"].detach().float().cpu() for report in reports]).to(backend.device)
    means = (backend.sum(losses) / backend.world_size).tolist()
    rows = [
        {
            "step": step,
            "loss": mean,
            "grad_norm": None if report.grad_norm is None else float(report.grad_norm),
            "loss_scale": float(report.loss_scale),
            "skipped": bool(report.skipped),
            "lr": report.lr,
        }
        for step, (report, mean) in enumerate(zip(reports, means, strict=True))
    ]
    return rows, exchange


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, (tuple, list)):
        return type(batch)(_to(item, device) for item in batch)
    return batch.to(device)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far weights are from a reference.

    Args:
        tensor: the name with the largest `relative`.
        relative: max over tensors of ||w - r|| / ||r|| (L2).
        of_movement: the same with ||r - r0||, how far training moved the tensor from its start, below: the harder
            measure, where a tensor that should not have moved counts in full.
    """

    tensor: str
    relative: float
    of_movement: float
    of_movement_tensor: str


def compare(
    weights: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
    initial: Mapping[str, torch.Tensor] | None = None,
) -> Difference:
    """Raises BackendError where the two hold different tensors."""
    odd = set(weights) ^ set(reference)
    if odd:
        raise BackendError(f"the two hold different tensors, such as '{sorted(odd)[0]}'")
    worst, worst_moved = ("", -1.0), ("", 0.0)
    for name, value in weights.items():
        expected = reference[name].double()
        gap = float(torch.linalg.vector_norm(value.double() - expected))
        worst = max(worst, (name, _ratio(gap, float(torch.linalg.vector_norm(expected)))), key=lambda pair: pair[1])
        if initial is not None:
            moved = float(torch.linalg.vector_norm(expected - initial[name].double()))
            worst_moved = max(worst_moved, (name, _ratio(gap, moved)), key=lambda pair: pair[1])
    return Difference(tensor=worst[0], relative=worst[1], of_movement=worst_moved[1], of_movement_tensor=worst_moved[0])


def _ratio(gap: float, size: float) -> float:
    if gap == 0.0:
        return 0.0
    return gap / size if size > 0 and math.isfinite(gap) else math.inf
