"""Computing by a stated wait: where workers outnumber cores, real computing would measure the sharing of cores.

The model keeps its trainable parameters, so that exactly its gradients travel, at the moments at which a backward pass
would finish them. Forward and backward only wait: a third and two thirds of the stated time, split over the parameters
by their size, the last used first in backward. Nothing is learned; records say ``emulate_compute_ms``.
"""

from __future__ import annotations

import time
from types import MethodType
from typing import Any

import torch
from torch import nn

FORWARD_SHARE = 1.0 / 3.0  # backward does about twice the forward's work


class _Wait(torch.autograd.Function):
    """x -> x, waiting; the parameter's gradient is a constant that appears after the backward wait."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, parameter: torch.Tensor, forward_s: float, backward_s: float
    ) -> torch.Tensor:
        time.sleep(forward_s)
        ctx.parameter, ctx.backward_s = parameter, backward_s
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        time.sleep(ctx.backward_s)
        return grads[0], torch.full_like(ctx.parameter, 1e-6), None, None


def emulate(model: nn.Module, pass_ms: float) -> None:
    """From now on ``model(batch)`` and its backward wait `pass_ms` milliseconds a micro-batch, besides the exchange."""

    def forward(self: nn.Module, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        total = sum(parameter.numel() for parameter in parameters)
        value = torch.ones((), device=parameters[0].device, requires_grad=True)
        for parameter in parameters:
            seconds = pass_ms * 1e-3 * parameter.numel() / total
            value = _Wait.apply(value, parameter, seconds * FORWARD_SHARE, seconds * (1 - FORWARD_SHARE))
        return {"loss": value}

    model.forward = MethodType(forward, model)
