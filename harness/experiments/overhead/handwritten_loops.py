"""The loops that a user of each engine would write by hand, after the engines' own documentation: the yardstick of
`harness experiment overhead`. fp32 or bf16 autocast, AdamW, clipping; nothing is recorded, nothing is checked.

Each function returns ``step(batch) -> None``, a whole optimizer step on a batch that is on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from backends.base import Optimization
from backends.shared.step_parts import optimizer_class, optimizer_options

Step = Callable[[Any], None]


def make(backend: Any, model: torch.nn.Module, optimization: Optimization) -> Step:
    """The hand-written step of `backend`'s engine, in the process group that `backend` has joined."""
    makers = {"single": _plain, "ddp": _ddp, "horovod": _horovod, "deepspeed": _deepspeed}
    return makers[backend.name](backend, model.to(backend.device), optimization)


def _autocast(device: torch.device, optimization: Optimization) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if optimization.precision == "bf16" else nullcontext()


def _optimizer(model: torch.nn.Module, optimization: Optimization, device: torch.device) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return optimizer_class(optimization)(parameters, **optimizer_options(optimization, device))


def _plain(backend: Any, model: torch.nn.Module, optimization: Optimization, called: Any = None) -> Step:
    """PyTorch's training loop; with `called` = the DDP wrapper, its distributed one."""
    optimizer = _optimizer(model, optimization, backend.device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    forward = called or model
    count = 0

    def step(batch: Any) -> None:
        nonlocal count
        for group in optimizer.param_groups:
            group["lr"] = optimization.lr_at(count)
        with _autocast(backend.device, optimization):
            loss = forward(batch)["loss"]
        loss.backward()
        if optimization.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, optimization.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        count += 1

    return step


def _ddp(backend: Any, model: torch.nn.Module, optimization: Optimization) -> Step:
    from torch.nn.parallel import DistributedDataParallel

    ids = [backend.device] if backend.device.type == "cuda" else None
    return _plain(backend, model, optimization, DistributedDataParallel(model, device_ids=ids))


def _horovod(backend: Any, model: torch.nn.Module, optimization: Optimization) -> Step:
    """Horovod's documentation, "Horovod with PyTorch", with its gradient clipping recipe."""
    import horovod.torch as hvd

    optimizer = _optimizer(model, optimization, backend.device)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hvd.broadcast_parameters(dict(model.named_parameters()), root_rank=0)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=named)
    parameters = [p for _, p in named]
    count = 0

    def step(batch: Any) -> None:
        nonlocal count
        for group in optimizer.param_groups:
            group["lr"] = optimization.lr_at(count)
        optimizer.zero_grad()
        with _autocast(backend.device, optimization):
            loss = model(batch)["loss"]
        loss.backward()
        optimizer.synchronize()
        if optimization.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, optimization.clip_norm)
        with optimizer.skip_synchronize():
            optimizer.step()
        count += 1

    return step


def _deepspeed(backend: Any, model: torch.nn.Module, optimization: Optimization) -> Step:
    """DeepSpeed's "Getting started": forward, engine.backward, engine.step, with the configuration of the harness."""
    import deepspeed

    from backends.deepspeed.config import from_job

    config = from_job(backend.settings, optimization, world_size=backend.world_size, safe_modules=None)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=_optimizer(model, optimization, backend.device),
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=config,
        dist_init_required=False,
    )
    count = 0

    def step(batch: Any) -> None:
        nonlocal count
        for group in engine.optimizer.param_groups:
            group["lr"] = optimization.lr_at(count)
        loss = engine(batch)["loss"]
        engine.backward(loss)
        engine.step()
        count += 1

    return step
