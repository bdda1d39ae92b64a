"""A batch of a user's job: whatever its collate function returns, with the methods that the training loop needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch.utils._pytree import tree_map

from core_model.batch import TensorBatch


@dataclass(frozen=True, kw_only=True)
class UserBatch(TensorBatch):
    """A batch of a user's job.

    Args:
        content: what the collate function returned.
        size: number of samples.
        samples: never kept (the loader of `core_model.data.batches` empties the field of every batch that crosses a
            process border).
    """

    content: Any
    size: int
    samples: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return self.size

    def to(self, device: torch.device | str) -> UserBatch:
        """The same batch with its tensors on `device` (non-blocking where the memory is pinned)."""
        return self._map(lambda part: part.to(device, non_blocking=True), others=lambda part: part.to(device))

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor], others: Callable[[Any], Any] | None = None) -> Self:
        """`change` done to every tensor, `others` to every other object that can be moved (``.to``)."""

        def leaf(part: Any) -> Any:
            if isinstance(part, torch.Tensor):
                return change(part)
            return others(part) if others is not None and hasattr(part, "to") else part

        return replace(self, content=tree_map(leaf, self.content))
