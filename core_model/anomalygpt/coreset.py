"""Few tokens that stand for many: the greedy solution of the k-centre problem (Sener & Savarese, 2018; PatchCore).

Kept are those that leave none far from a kept one; at random, rare kinds of good surface would be lost first.
"""

from __future__ import annotations

import torch
from torch import Tensor

PROJECTED = 128  # dimensions in which tokens are compared while choosing: distances hold to within a few per cent
SEED = 0


def k_centre(tokens: Tensor, count: int) -> Tensor:
    """Indices (count,) of the kept rows of tokens (M, C), in the order of choice.

    The first is the one nearest to the mean; each further one is the farthest from all chosen before. Distances are L2
    in a random projection to `PROJECTED` dimensions (Johnson & Lindenstrauss), always the same one. Takes count * M
    distances.
    """
    if count >= len(tokens):
        return torch.arange(len(tokens), device=tokens.device)
    points = tokens.float()
    if points.shape[1] > PROJECTED:
        draw = torch.Generator().manual_seed(SEED)
        into = torch.randn(points.shape[1], PROJECTED, generator=draw).to(points.device)
        points = points @ into / PROJECTED**0.5
    squares = points.square().sum(dim=1)
    chosen = torch.empty(count, dtype=torch.int64, device=tokens.device)
    nearest = torch.full((len(points),), torch.inf, device=tokens.device)
    new = (points - points.mean(dim=0)).square().sum(dim=1).argmin()
    for step in range(count):
        chosen[step] = new
        # |a - b|^2 by one matrix product: the pass over all points is what costs
        distance = squares - 2 * (points @ points[new]) + squares[new]
        nearest = torch.minimum(nearest, distance)
        nearest[new] = -torch.inf
        new = nearest.argmax()
    return chosen
