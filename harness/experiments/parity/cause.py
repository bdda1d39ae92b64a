"""Why an fp32 cell may end above its bound: controls in ONE process, so that no engine can be the cause.

A batch that is split over workers and micro-batches is summed in another order than a whole one. `split_control` trains
the single process both ways, in fp32 and with every tensor and every operation in fp64, and looks where the two ways
part: at which step a unit of the prompt learner first takes the other side of its ReLU, or its pooling another pixel,
because of a difference in the last bit. If fp64 agrees to 1e-9 and fp32 does not, the cause is rounding, and the kink
is where it grows; the same figures stand in the table beside the cell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

import backends
from backends.checks.parity import compare
from backends.process.rank import ProcessFacts
from backends.torch.rendezvous import choose_device
from backends.torch.single import SingleBackend
from harness.experiments.parity.worker import exact_arithmetic
from harness.job.declaration import Job
from harness.worker.model_and_data import build_dataset, build_model, order_of, prepare, trainable_weights

EXACT = 1e-9  # what fp64 must agree to, for the cause to be called rounding


@dataclass(frozen=True, kw_only=True)
class Control:
    """The single process against itself with each batch in `parts` parts. fp32, fp64: largest ||a-b||/||b|| of any
    tensor at the end. kink_step: the first step in which a unit stood on another side (-1 = never), of `kinks` units.
    before, after: the fp32 difference at the end of the step before it and at the end of training."""

    parts: int
    fp32: float
    fp64: float
    kink_step: int
    kinks: int
    before: float
    after: float

    @property
    def is_rounding(self) -> bool:
        return self.fp64 <= EXACT

    def sentence(self) -> str:
        """For the table's column of causes."""
        text = (
            f"a single process that sums its batches in {self.parts} parts departs from the one that does not by "
            f"{self.fp32:.1e} in fp32 and {self.fp64:.0e} in fp64"
        )
        if not self.is_rounding:
            return f"{text}: not rounding"
        if self.kink_step < 0:
            return f"{text}: rounding of sums, no engine's"
        return (
            f"{text}: rounding of sums, no engine's; at step {self.kink_step} it puts {self.kinks} "
            f"unit{'s' if self.kinks > 1 else ''} of the prompt learner (ReLU, max-pool) on the other side "
            f"({self.before:.0e} before, {self.after:.0e} at the end)"
        )


@dataclass
class _Trace:
    """After each step: the trainable weights; in each step: every kinked unit's side, one tensor a step. No sides where
    there is no prompt learner."""

    weights: list[dict[str, torch.Tensor]]
    sides: list[torch.Tensor]


def split_control(job: Job, parts: int) -> Control:
    """Trains `job`'s steps four times in this process: whole and split batches, fp32 and fp64."""
    whole, split = _trace(job, 1, double=False), _trace(job, parts, double=False)
    apart = [compare(a, b).relative for a, b in zip(split.weights, whole.weights, strict=True)]
    flips = [int((a != b).sum()) for a, b in zip(split.sides, whole.sides, strict=True)]
    step = next((index for index, count in enumerate(flips) if count), -1)
    exact = [_trace(job, count, double=True).weights[-1] for count in (1, parts)]
    return Control(
        parts=parts,
        fp32=apart[-1],
        fp64=compare(exact[1], exact[0]).relative,
        kink_step=step,
        kinks=flips[step] if step >= 0 else 0,
        before=apart[step - 1] if step > 0 else 0.0,
        after=apart[-1],
    )


def _trace(job: Job, parts: int, *, double: bool) -> _Trace:
    alone = Alone(job, parts, double=double)
    trace = _Trace(weights=[], sides=[])
    with alone.arithmetic(), _sides(alone.model) as seen:
        backend = SingleBackend(backends.settings_from("single", {}), ProcessFacts(), device=job.device)
        prepare(backend, alone.model, alone.job)
        model = alone.model
        for step in range(job.steps):
            backend.train_step(alone.batches(step))
            trace.weights.append({name: tensor.clone() for name, tensor in trainable_weights(model).items()})
            if seen:
                trace.sides.append(torch.cat([torch.cat(calls) for calls in seen.values()], dim=1))
            seen.clear()
    return trace


@contextlib.contextmanager
def _sides(model: Any) -> Iterator[dict[int, list[torch.Tensor]]]:
    """Collects, stage by stage of the prompt learner and call by call, on which side each unit is: int64 (samples,
    units). Nothing of a model without a prompt learner."""
    seen: dict[int, list[torch.Tensor]] = {}

    def look(number: int, output: torch.Tensor) -> None:
        active = functional.relu(output.detach())
        _, chosen = functional.max_pool2d(active, 2, return_indices=True)
        seen.setdefault(number, []).append(torch.cat([(active > 0).flatten(1).long(), chosen.flatten(1)], dim=1))

    stages = model.prompt_learner.stages if hasattr(model, "prompt_learner") else ()
    hooks = [s.register_forward_hook(lambda _m, _i, out, number=n: look(number, out)) for n, s in enumerate(stages)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class Alone:
    """The job's model and batches in this process.

    Args:
        job: of any engine and number of workers; here it is a single process.
        parts: into which a global batch is split.
        double: with every tensor and every operation in fp64.
    """

    def __init__(self, job: Job, parts: int = 1, *, double: bool) -> None:
        exact_arithmetic()
        torch.manual_seed(job.seed)
        self.job = job.with_(backend="single", nodes=1, slots=1, engine={}, accumulation=parts, precision="fp32")
        self._device, self._double = choose_device(job.device, 0), double
        self.model = build_model(self.job, device=self._device)
        self._dataset = build_dataset(self.job, self.model, "train")
        self.model.prepare_text(self._dataset.categories)
        if double:
            self.model.double()
        self._order = order_of(self.job, self._dataset)

    def batches(self, step: int) -> list[Any]:
        """The micro-batches of an optimizer step, on the device."""
        shares = self._order.rank_share(step, 0, 1, self.job.accumulation)
        made = [self.model.collate([self._dataset.get(*ref) for ref in share]).to(self._device) for share in shares]
        return [batch.double() for batch in made] if self._double else made

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        """The context of all that this model computes."""
        return _float_is_double() if self._double else contextlib.nullcontext()


@contextlib.contextmanager
def _float_is_double() -> Iterator[None]:
    """Within, the model's own ``.float()`` keeps fp64: a control in which nothing is rounded to fp32 on the way."""
    plain = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = plain  # type: ignore[method-assign]
