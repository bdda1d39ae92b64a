"""The pieces of an optimization step that the engines share: optimizer, autocast, gradient norm, fp16 scale.

The engines differ in who exchanges gradients and when; everything here is the same arithmetic for all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from backends.base import BackendError, Optimization

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name; the only ones an optimizer or an exchange ever sees."""
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise BackendError("the model has no trainable parameter: nothing to optimize")
    return found


def optimizer_class(optimization: Optimization) -> type[torch.optim.Optimizer]:
    """torch's class for the job's optimizer."""
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimization.optimizer]


def optimizer_options(optimization: Optimization, device: torch.device) -> dict[str, Any]:
    """Keyword arguments with nothing left to a default that engines fill in differently (DeepSpeed's ``Adam`` is AdamW,
    torch's AdamW decays by 0.01 when it is not told). ``fused`` is one kernel over all tensors, and never syncs."""
    options: dict[str, Any] = {"lr": optimization.lr_at(0), "weight_decay": optimization.weight_decay}
    if optimization.optimizer == "sgd":
        options |= {"momentum": optimization.momentum}
    else:
        options |= {"betas": tuple(optimization.betas), "eps": optimization.eps}
    return options | {"fused": device.type == "cuda", "foreach": None if device.type == "cuda" else True}


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], optimization: Optimization, device: torch.device
) -> torch.optim.Optimizer:
    """The job's optimizer over `parameters`, in one group."""
    return optimizer_class(optimization)(list(parameters), **optimizer_options(optimization, device))


def set_lr(optimizer: Any, lr: float) -> None:
    """The learning rate of the step to come; every engine gets it this way, so no engine has a scheduler of its own."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def autocast(optimization: Optimization, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass: nothing for fp32, torch's autocast for bf16 and fp16."""
    if optimization.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[optimization.precision])


def gradients(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The gradients that there are, in the order of `parameters`."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def global_norm(grads: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The L2 norm of all `grads` as one vector (0-dim fp32 on their device; zero on `device` where there are none),
    without a wait for the device."""
    return get_total_norm(grads).float() if grads else torch.zeros((), device=device)


def conditional_step(optimizer: Any, overflow: torch.Tensor) -> None:
    """Steps unless `overflow` (0-dim bool). A fused optimizer takes the flag on the device; others need the host."""
    if optimizer.param_groups[0].get("fused"):
        optimizer.grad_scale, optimizer.found_inf = None, overflow.float()
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
    elif not bool(overflow):
        optimizer.step()


class LossMeter:
    """Mean of each loss part over the micro-batches of one step, kept on the device."""

    def __init__(self) -> None:
        self._parts: dict[str, torch.Tensor] = {}

    def add(self, parts: Mapping[str, torch.Tensor], share: float) -> None:
        for name, value in parts.items():
            value = value.detach().float() * share
            self._parts[name] = self._parts[name] + value if name in self._parts else value

    def mean(self) -> dict[str, torch.Tensor]:
        return self._parts


def check_micro_batches(micro_batches: Sequence[Any], optimization: Optimization) -> None:
    """Raises BackendError where a step got another number of micro-batches than it accumulates over."""
    if len(micro_batches) != optimization.accumulation:
        raise BackendError(f"a step takes {optimization.accumulation} micro-batches, it got {len(micro_batches)}")


def optimizer_facts(optimizer: Any) -> dict[str, Any]:
    """What the optimizer really is: class and the hyperparameters it holds."""
    group = optimizer.param_groups[0]
    kept = ("betas", "eps", "weight_decay", "momentum", "fused", "foreach")
    facts = {name: group[name] for name in kept if name in group}
    bases = [base for base in type(optimizer).__mro__ if base.__module__.startswith(("torch.optim", "deepspeed.ops"))]
    owner = bases[0] if bases else type(optimizer)
    return {
        "class": f"{owner.__module__}.{owner.__qualname__}",
        **{k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()},
    }
