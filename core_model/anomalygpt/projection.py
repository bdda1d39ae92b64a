"""From the picture's embedding to the language model's width, chosen by name."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from core_model.errors import ModelError


class TwoStageProjection(nn.Module):
    """Picture embedding -> joint space (unit length, as ImageBind's) -> language model (PandaGPT's linear layer).

    `embedding` = 0: the encoder already ends in the joint space, and only PandaGPT's layer remains.
    """

    def __init__(self, embedding: int, joint: int, width: int) -> None:
        super().__init__()
        self.to_joint = nn.Linear(embedding, joint) if embedding else nn.Identity()
        self.to_language = nn.Linear(joint, width)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, width) from (B, embedding)."""
        return self.to_language(F.normalize(self.to_joint(pooled), dim=-1))


class MLPProjection(nn.Module):
    """Two layers with GELU between them, as in LLaVA 1.5 (Liu et al. 2023)."""

    def __init__(self, embedding: int, joint: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(embedding or joint, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, width) from (B, embedding)."""
        return self.layers(pooled)


PROJECTIONS = {"two_stage": TwoStageProjection, "mlp": MLPProjection}


def projection(name: str, *, embedding: int, joint: int, width: int) -> nn.Module:
    """The projection called `name`.

    Args:
        embedding: width of the encoder's output, 0 where it is `joint` already.
    """
    if name not in PROJECTIONS:
        raise ModelError(f"unknown projection '{name}': choose one of {', '.join(PROJECTIONS)}")
    return PROJECTIONS[name](embedding, joint, width)
