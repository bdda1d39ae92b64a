"""A whole engine: one all-reduce of one flat buffer a step. What adding a backend takes, and a test runs it.

To use it: save it as backends/flat.py and add ``"flat": "backends.flat:FlatBackend"`` to backends.REGISTRY.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from backends.base import Availability, EngineSettings
from backends.shared.step import StepBackend
from backends.torch.collectives import TorchCollectives, broadcast_tensors
from backends.torch.rendezvous import choose_device, join, leave


@dataclass(frozen=True, kw_only=True)
class FlatSettings(EngineSettings):
    """predivide: divide before the sum (smaller numbers) or after."""

    predivide: bool = True


class FlatBackend(TorchCollectives, StepBackend):
    """Everything but the exchange comes from StepBackend."""

    name = "flat"
    Settings = FlatSettings

    def __init__(self, settings, facts, *, device="auto", timeout_s=300.0) -> None:
        super().__init__(settings, facts, device=device, timeout_s=timeout_s)
        self.device = choose_device(device, facts.local_rank)
        join(facts, self.device, timeout_s)

    @classmethod
    def availability(cls) -> Availability:
        return Availability(usable=True, version=torch.__version__)

    def broadcast_model(self, model) -> None:
        broadcast_tensors([tensor.data for tensor in [*model.parameters(), *model.buffers()]])

    def all_reduce_gradients(self) -> None:
        grads = self.local_gradients()
        flat = torch.cat([gradient.flatten() for gradient in grads])
        before, after = (self.world_size, 1) if self.settings.predivide else (1, self.world_size)
        dist.all_reduce(flat.div_(before))
        for gradient, part in zip(grads, flat.div_(after).split([g.numel() for g in grads]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def close(self) -> None:
        leave()
