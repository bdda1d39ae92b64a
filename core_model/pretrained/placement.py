"""Where the frozen parts of a model are made, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from core_model.execution.frozen import M, build_empty, materialize


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where frozen parts are made and how: device, storage type, random or pretrained weights."""

    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    random: bool = False

    def draw(self, make: Callable[[], M], seed: int) -> M:
        """The module with random weights."""
        return materialize(build_empty(make), device=self.device, dtype=self.dtype, seed=seed)

    def put(self, module: M) -> M:
        """A loaded module, brought here."""
        return module.to(device=self.device, dtype=self.dtype)
