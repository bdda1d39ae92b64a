"""Half precision under DeepSpeed: the shared fp16 rule in the place of its own scalers, autocast around a model of
half-precision weights, and where their fp32 masters are."""

from __future__ import annotations

from typing import Any

import torch

from backends.base import Optimization
from backends.shared.loss_scale import DynamicScale
from backends.shared.step_parts import autocast, conditional_step, global_norm, gradients


def shared_scale(optimization: Optimization, device: torch.device, *, zero_stage: int) -> DynamicScale | None:
    """The shared fp16 rule, None where another precision or DeepSpeed's own scaler is asked for.

    ZeRO compares the scale on the host and knows on the host whether a step was dropped. So from stage 1 on the rule
    lives there: on the device it would be read back, and told of each step, by two waits a step that no other engine
    has. Stage 0 asks the host for nothing, and its rule stays on the device.
    """
    if optimization.precision != "fp16" or optimization.precision_mode == "native":
        return None
    return DynamicScale(optimization.loss_scale, device if zero_stage == 0 else torch.device("cpu"))


class StageZeroScaler:
    """What engine.torch_autocast_z0_gradscaler must answer to, over the shared rule."""

    def __init__(self, scale: DynamicScale, module: torch.nn.Module, keep_norm: Any) -> None:
        self._rule, self._module, self._keep_norm = scale, module, keep_norm
        self.overflow = torch.zeros((), dtype=torch.bool, device=scale.scale.device)
        self._unscaled = False

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * self._rule.scale

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        self.overflow = self._rule.unscale(gradients(self._module.parameters()))
        self._unscaled = True

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._unscaled:  # without clipping DeepSpeed does not ask for it
            self.unscale_(optimizer)
            self._keep_norm(global_norm(gradients(self._module.parameters()), self.overflow.device))
        conditional_step(optimizer, self.overflow)

    def update(self) -> None:
        self._rule.update(self.overflow)
        self._unscaled = False


def autocast_inside(model: torch.nn.Module, optimization: Optimization, device: torch.device) -> None:
    """Native half precision: every forward of `model` runs under autocast, which casts what is still fp32 (the
    batch)."""
    contexts: list[Any] = []

    def enter(*_: Any) -> None:
        context = autocast(optimization, device)
        context.__enter__()
        contexts.append(context)

    def leave_context(*_: Any) -> None:
        contexts.pop().__exit__(None, None, None)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave_context, always_call=True)


def owners(model: torch.nn.Module) -> list[str]:
    """The classes of all modules that hold a trainable parameter themselves, as DeepSpeed wants them named."""
    found = {
        f"{type(module).__module__}.{type(module).__qualname__}"
        for module in model.modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
    }
    return sorted(found)


def stage_zero_masters(optimizer: Any) -> dict[int, torch.Tensor]:
    """id(half parameter) -> its fp32 master in FP16_Optimizer (flat groups) or FP16_UnfusedOptimizer (lists)."""
    masters: dict[int, torch.Tensor] = {}
    for index, group in enumerate(optimizer.fp16_groups):
        if hasattr(optimizer, "fp32_groups"):
            copies = list(optimizer.fp32_groups[index])
        else:
            copies = list(torch._utils._unflatten_dense_tensors(optimizer.fp32_groups_flat[index], group))
        masters |= {id(half): master for half, master in zip(group, copies, strict=True)}
    return masters
