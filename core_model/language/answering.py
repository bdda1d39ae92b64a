"""Parts of answering several questions at once: which tokens each may see, and which token comes next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Padded:
    """Questions of different lengths in one batch, padded on the right, whose answers follow behind the padding: which
    place each token counts as, and which tokens it may see.

    Args:
        length: tokens before the answers: what stands before the questions, and the longest question.
        ends: (B,) where each question's padding begins.
        alike: there is no padding.
    """

    length: int
    ends: Tensor
    alike: bool

    @classmethod
    def of(cls, length: int, lengths: Tensor, device: torch.device) -> Padded:
        """lengths: (B,) tokens of each question, on the host."""
        padding = lengths.max() - lengths
        return cls(length=length, ends=(length - padding).to(device), alike=not bool(padding.any()))

    def next(self, step: int) -> dict[str, Tensor | None]:
        """Arguments for the answers' token number `step` alone, the others being in the cache."""
        mask = None if self.alike else self._seen(step)[:, None, None]
        return {"positions": (self.ends + step)[:, None], "mask": mask}

    def all(self, step: int) -> dict[str, Tensor | None]:
        """Arguments for the whole input up to the answers' token number `step`."""
        places = self._places(step)
        behind = places[None] - self.length + self.ends[:, None]
        positions = torch.where(places[None] < self.length, places[None], behind)
        causal = places[:, None] >= places[None]
        itself = torch.eye(len(places), dtype=torch.bool, device=places.device)
        return {"positions": positions, "mask": causal[None, None] & (self._seen(step)[:, None, None] | itself)}

    def _seen(self, step: int) -> Tensor:
        """(B, length + step + 1), False for padding."""
        places = self._places(step)
        return (places[None] < self.ends[:, None]) | (places[None] >= self.length)

    def _places(self, step: int) -> Tensor:
        return torch.arange(self.length + step + 1, device=self.ends.device)


def choose(logits: Tensor, temperature: float, top_p: float, draw: torch.Generator) -> Tensor:
    """Next tokens (B,) on the host: the likeliest, or drawn from the `top_p` nucleus at `temperature`."""
    if temperature <= 0:
        return logits.argmax(dim=-1).cpu()
    probabilities = torch.softmax(logits / temperature, dim=-1).cpu()
    ordered, order = probabilities.sort(dim=-1, descending=True)
    ordered[ordered.cumsum(dim=-1) - ordered > top_p] = 0.0
    return order.gather(1, torch.multinomial(ordered, 1, generator=draw))[:, 0]
