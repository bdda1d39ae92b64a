"""One process, plain torch: the reference that every other engine is held against."""

from __future__ import annotations

from typing import Any

import torch

from backends.base import Availability, BackendError, EngineSettings
from backends.process.rank import ProcessFacts
from backends.shared.step import StepBackend
from backends.torch.rendezvous import choose_device


class SingleBackend(StepBackend):
    """No exchange at all."""

    name = "single"

    def __init__(
        self, settings: EngineSettings, facts: ProcessFacts, *, device: str = "auto", timeout_s: float = 300.0
    ) -> None:
        super().__init__(settings, facts, device=device, timeout_s=timeout_s)
        if facts.world_size > 1:
            raise BackendError(
                f"engine 'single' is one process but {facts.launcher} started {facts.world_size}: use ddp"
            )
        self.device = choose_device(device, facts.local_rank)

    @classmethod
    def availability(cls) -> Availability:
        return Availability(usable=True, version=torch.__version__)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().clone()

    def gather(self, value: Any) -> list[Any] | None:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value

    def barrier(self) -> None:
        """One process is always together."""
