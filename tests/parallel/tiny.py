"""A small model that obeys the contract of `backends.base`, and its deterministic batches: what parallel tests
train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

GLOBAL_BATCH, WIDTH, CLASSES = 16, 16, 4


class Tiny(torch.nn.Module):
    """Frozen linear -> linear, norm, linear, a bare parameter. Returns the mean over samples of a per-sample loss.

    spare: adds a trainable parameter that no forward pass uses.
    """

    def __init__(self, *, seed: int = 0, spare: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.frozen = torch.nn.Linear(WIDTH, 32).requires_grad_(False)
            self.inner = torch.nn.Linear(16, 64)  # on two tokens a sample: three dimensions take another path in ZeRO-3
            self.norm = torch.nn.LayerNorm(64)
            self.head = torch.nn.Linear(64, CLASSES)
            self.gain = torch.nn.Parameter(torch.ones(CLASSES))
            self.spare = torch.nn.Parameter(torch.ones(3)) if spare else None
        self.recompute = False
        self.register_buffer("offset", torch.full((WIDTH,), 0.1))

    def set_activation_checkpointing(self, on: bool) -> None:
        """Recompute the hidden layer in backward."""
        self.recompute = on

    def forward(self, batch: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """batch: (x (B, WIDTH) float32, y (B,) int64)."""
        x, y = batch
        features = torch.tanh(self.frozen(x + self.offset)).unflatten(1, (2, 16))
        if self.recompute:
            hidden = checkpoint(lambda f: torch.tanh(self.inner(f)), features, use_reentrant=False)
        else:
            hidden = torch.tanh(self.inner(features))
        logits = self.head(self.norm(hidden.mean(1))) * self.gain
        loss = functional.cross_entropy(logits.float(), y, reduction="none").mean()
        return {"loss": loss, "ce": loss.detach()}


def batches(step: int, rank: int, world_size: int, accumulation: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's micro-batches of global batch `step`, which depends on the step alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(GLOBAL_BATCH, WIDTH, generator=generator)
    y = torch.randint(0, CLASSES, (GLOBAL_BATCH,), generator=generator)
    share = GLOBAL_BATCH // (world_size * accumulation)
    start = rank * share * accumulation
    return [(x[i : i + share], y[i : i + share]) for i in range(start, start + share * accumulation, share)]
