"""Elements of the weights whose gradient is zero but for rounding: what training makes of them is no engine's doing.

Softmax takes the bias of attention's keys out, so its true gradient is zero. In fp32 a rounding error of some 1e-9
stands there, another one for every way to split a batch, and Adam, which divides a gradient by its own size, makes
whole steps of it. Held to a relative bound such an element always differs, and says nothing.

The rule, for fp32 cells: an element is left out of the bound where its gradient in fp64 is at most `SHARE` of the one
in fp32, which is to say that at least 99.9 % of the latter is rounding. Both are computed in one process, without an
engine, for some batches at the start weights and at the reference's last ones; the largest of each counts, so that one
real gradient anywhere keeps the element under the bound. No name of a tensor plays a part. What is left out is still
held to what the optimizer can make of rounding (`reach`): a fault that goes beyond that is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.experiments.parity.cause import Alone
from harness.job.declaration import Job
from harness.worker.model_and_data import build_optimization, put_weights

SHARE = 1e-3  # of the gradient in fp32 that its value in fp64 may be, for the rest to be called rounding
BATCHES = 4  # of the first steps, at each of the two states
OTHER = 10.0  # how much larger than in these batches a rounding error may be in others


@dataclass(frozen=True, kw_only=True)
class RoundingOnly:
    """What was found out about a job.

    Args:
        elements: name of a tensor -> bool tensor of its shape, True where the gradient is rounding; only tensors with
            at least one such element.
        reach: how far apart two trainings may move such an element, |a - b|.
    """

    elements: Mapping[str, Tensor]
    reach: float

    @property
    def count(self) -> int:
        """Number of these elements."""
        return sum(int(mask.sum()) for mask in self.elements.values())

    def without(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`weights` without these elements, each tensor flat; a tensor that consists of them alone is left out."""
        kept = {
            name: value[~self.elements[name]] if name in self.elements else value for name, value in weights.items()
        }
        return {name: value for name, value in kept.items() if value.numel()}

    def apart(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        """The largest |a - b| of these elements; infinite where one is not a number."""
        gaps = [(a[name][mask].double() - b[name][mask].double()).abs().max() for name, mask in self.elements.items()]
        found = torch.stack(gaps).max() if gaps else torch.zeros(())
        return float(found) if torch.isfinite(found) else float("inf")

    def too_far(self, apart: float) -> str:
        """What is said of a cell whose elements are further apart than rounding explains."""
        return (
            f"elements whose gradient is rounding are {apart:.1e} apart, which rounding moves {self.reach:.1e} at most"
        )

    def sentence(self, apart: float) -> str:
        """What is said of a cell in which nothing else differs."""
        first, others = next(iter(self.elements)), len(self.elements) - 1
        where = f"'{first}'" + (f" and {others} more tensor{'s' if others > 1 else ''}" if others else "")
        return (
            f"{self.count} elements of {where} have a gradient that is zero but for rounding (fp64 leaves less than "
            f"{SHARE:.1%} of what fp32 has): not held to the bound, they are {apart:.1e} apart at most where the "
            f"optimizer can make {self.reach:.1e} of rounding"
        )


def rounding_only(job: Job, states: Sequence[Mapping[str, Tensor]]) -> RoundingOnly:
    """Looks at the gradients of `job` in fp32 and fp64.

    Args:
        job: of any engine; its first batches are used, each as a whole.
        states: trainable weights by name at which to look: the first and the last ones.
    """
    single, exact = (_largest_gradients(job, states, double=double) for double in (False, True))
    elements = {}
    for name, rounded in single.items():
        mask = (exact[name] <= SHARE * rounded.double()) & (rounded > 0)
        if mask.any():
            elements[name] = mask
    largest = max((float(single[name][mask].max()) for name, mask in elements.items()), default=0.0)
    return RoundingOnly(elements=elements, reach=reach(job, largest))


def _largest_gradients(job: Job, states: Sequence[Mapping[str, Tensor]], *, double: bool) -> dict[str, Tensor]:
    """Name -> the largest size of each element's gradient over states and batches, on the CPU."""
    alone = Alone(job, double=double)
    named = {name: parameter for name, parameter in alone.model.named_parameters() if parameter.requires_grad}
    found = {name: torch.zeros_like(parameter, device="cpu") for name, parameter in named.items()}
    with alone.arithmetic():
        alone.model.train()
        for state in states:
            put_weights(alone.model, state, "the reference's weights")
            for step in range(min(BATCHES, job.steps)):
                alone.model.zero_grad(set_to_none=True)
                alone.model(alone.batches(step)[0])["loss"].backward()
                for name, parameter in named.items():
                    if parameter.grad is not None:
                        found[name] = torch.maximum(found[name], parameter.grad.detach().abs().cpu())
    return found


def reach(job: Job, largest: float) -> float:
    """How far apart two trainings of `job` may move one element by gradients that are rounding of at most
    `OTHER` * `largest`, each its own way.

    Adam: a step is at most the learning rate, or (1 - beta1) / sqrt(1 - beta2) of it where that is more (Kingma and Ba,
    2015, section 2.1). SGD: the gradient itself, summed by the momentum. Weight decay only draws them together.
    """
    optimization = build_optimization(job)
    rates = sum(optimization.lr_at(step) for step in range(job.steps))
    if optimization.optimizer == "sgd":
        return 2 * rates * OTHER * largest / (1 - optimization.momentum)
    first, second = optimization.betas
    return 2 * rates * max(1.0, (1 - first) / (1 - second) ** 0.5)


def looked_at(job: Job, states: Sequence[Mapping[str, Any]]) -> tuple[RoundingOnly | None, str]:
    """`rounding_only`, or None and why there is none: a user's module may not compute in fp64 at all."""
    try:
        return rounding_only(job, states), ""
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
