"""A batch of a user's job: whatever its collate function returns, with the methods that the training loop needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_map


@dataclass(frozen=True, kw_only=True)
class UserBatch:
    """content: what the collate function returned. size: number of samples. samples: never kept (the loader of
    `core_model.data.batches` empties the field of every batch that crosses a process border)."""

    content: Any
    size: int
    samples: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return self.size

    def to(self, device: torch.device | str) -> UserBatch:
        """The same batch with its tensors on `device` (non-blocking where the memory is pinned)."""
        return self._map(lambda part: part.to(device, non_blocking=True), others=lambda part: part.to(device))

    def double(self) -> UserBatch:
        """The same batch with its floating-point tensors in fp64, for controls of rounding."""
        return self._map(lambda part: part.double() if part.is_floating_point() else part)

    def pin_memory(self) -> UserBatch:
        """Called by the loader for a GPU."""
        return self._map(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tells CUDA's allocator that `stream` uses the tensors, which another stream has made."""

        def record(part: torch.Tensor) -> torch.Tensor:
            part.record_stream(stream)
            return part

        self._map(record)

    def _map(
        self, change: Callable[[torch.Tensor], torch.Tensor], others: Callable[[Any], Any] | None = None
    ) -> UserBatch:
        """`change` done to every tensor, `others` to every other object that can be moved (``.to``)."""

        def leaf(part: Any) -> Any:
            if isinstance(part, torch.Tensor):
                return change(part)
            return others(part) if others is not None and hasattr(part, "to") else part

        return replace(self, content=tree_map(leaf, self.content))
