"""Two frozen trunks looking at the same picture: a vision transformer and a convolutional network.

They see different things: on magnetic tiles the transformer finds holes and breaks, the convolutional network, whose
first blocks keep a grid of stride 8, thin cracks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core_model.vision.encoder import Features

Normalization = tuple[tuple[float, ...], tuple[float, ...]]


class JointTrunk(nn.Module):
    """Trunk for `core_model.vision.encoder.Encoder`: the blocks of all `trunks`, in their order; the embedding is the
    first one's.

    normalizations: (mean, std) a channel of each trunk's training. The encoder normalizes for the first; the others get
    the same pixels brought to theirs. None: each picture is normalized by itself, and all trunks see the same pixels.
    """

    shifts: Tensor
    factors: Tensor

    def __init__(self, trunks: Sequence[Any], normalizations: Sequence[Normalization] | None) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunks)
        self.channels: tuple[int, ...] = tuple(width for trunk in trunks for width in trunk.channels)
        self.embedding: int = trunks[0].embedding
        self.multiple: int = math.lcm(*(trunk.multiple for trunk in trunks))
        pairs = normalizations or [((0.0,) * 3, (1.0,) * 3)] * len(trunks)
        mean, std = (torch.tensor(values) for values in pairs[0])
        factors = [std / torch.tensor(own) for _, own in pairs]
        shifts = [(mean - torch.tensor(own)) / torch.tensor(spread) for own, spread in pairs]
        self.register_buffer("factors", torch.stack(factors).view(-1, 1, 3, 1, 1), persistent=False)
        self.register_buffer("shifts", torch.stack(shifts).view(-1, 1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Features:
        looks = [self.trunks[0](pixels)]
        for index, trunk in enumerate(self.trunks[1:], start=1):
            factor, shift = self.factors[index].to(pixels.dtype), self.shifts[index].to(pixels.dtype)
            looks.append(trunk(pixels * factor + shift))
        return Features(
            tokens=tuple(block for look in looks for block in look.tokens),
            grids=tuple(grid for look in looks for grid in look.grids),
            pooled=looks[0].pooled,
        )
