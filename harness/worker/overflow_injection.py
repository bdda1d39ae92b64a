"""A planted overflow: one step's loss is infinite, as every engine meets it in fp16 training."""

from __future__ import annotations

from typing import Any

import torch

PREFIX = "model."  # what wrapping puts in front of the parameters' names


class Overflowing(torch.nn.Module):
    """`model`, but the loss of optimizer step `at` (0-based, `accumulation` forward passes each) is infinite."""

    def __init__(self, model: torch.nn.Module, *, accumulation: int, at: int) -> None:
        super().__init__()
        self.model = model
        self._first, self._last, self._calls = at * accumulation, (at + 1) * accumulation, 0

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        parts = dict(self.model(batch))
        if self._first <= self._calls < self._last:
            parts["loss"] = parts["loss"] * float("inf")
        self._calls += 1
        return parts
