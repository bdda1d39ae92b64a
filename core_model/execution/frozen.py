"""Frozen parts: made without gradients, stored in the type that the arithmetic wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def freeze(module: M) -> M:
    """No gradient and evaluation mode for good (dropout off, batch statistics fixed). Returns the module."""
    module.requires_grad_(False)
    return module.eval()


@contextmanager
def own_precision(module: nn.Module) -> Iterator[None]:
    """Runs a frozen part in its storage type.

    Stored in bf16 or fp16 it computes in that type, and autocast is off (it would cast norms and weights back and forth
    in every step); stored in fp32 it follows the autocast around it.
    """
    parameter = next(module.parameters())
    if parameter.dtype == torch.float32:
        yield
        return
    with torch.autocast(parameter.device.type, enabled=False):
        yield


def build_empty(make: Callable[[], M]) -> M:
    """The module without storage (meta device): costs no time or memory until weights are assigned or drawn."""
    with torch.device("meta"):
        return freeze(make())


def materialize(module: M, *, device: torch.device | str, dtype: torch.dtype, seed: int) -> M:
    """Random weights drawn where they will live, in the type they will have: 7e9 parameters in seconds on a GPU.

    `module.initialize(generator)` draws; norms, scales and biases get their neutral values first. On the meta device
    nothing is drawn: shapes and counts alone.
    """
    module.to(dtype)
    if str(device) == "meta":
        return freeze(module)
    module.to_empty(device=device)
    made: Any = module
    if hasattr(made, "tie"):
        made.tie()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() <= 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    generator = torch.Generator(device=device)
    generator.manual_seed(seed)
    made.initialize(generator)
    return freeze(module)
