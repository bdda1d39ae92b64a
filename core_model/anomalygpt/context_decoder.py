"""A decoder that sees beyond one patch: all tapped blocks together, on the finest grid, with their surroundings.

The paper's decoder (`core_model.anomalygpt.decoder`) judges every patch of every block by itself. A thin crack fills a
small part of a patch, and whether a dark streak is one depends on how it goes on; whether a tone is a stain depends on
the rest of the picture. Here the blocks are brought to one width and one grid and added, the mean over the picture is
added too, and residual 3x3 convolutions of growing reach look around. As in the paper the last layer's vectors are
compared with the text features of "normal" and "abnormal".
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core_model.anomalygpt.decoder import DROPOUT, ImageDecoder, resampling
from core_model.errors import ModelError

NAME = "context"
HIDDEN = 128
DILATIONS = (1, 2, 4, 1)


def make_decoder(channels: tuple[int, ...], width: int, *, layers: tuple[str, ...], **options: Any) -> nn.Module:
    """The decoder that `layers` names: ``context`` (and ``dropout`` behind it), or the paper's with its variants.
    options: scale, learned_scale, learned_text, as of `ImageDecoder`. Raises ModelError."""
    if not layers or layers[0] != NAME:
        return ImageDecoder(channels, width, layers=layers, **options)
    for step in layers[1:]:
        if step != "dropout":
            raise ModelError(f"unknown decoder layer '{step}': after the head '{NAME}', only dropout can follow")
    return ContextDecoder(channels, width, dropout=DROPOUT if len(layers) > 1 else 0.0, **options)


class Surroundings(nn.Module):
    """x + linear(gelu(conv3x3(norm(x)))) over the grid (B, C, h, w); it starts as the identity."""

    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.look = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Conv2d(width, width, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.dropout(F.gelu(self.look(self.norm(x)))))


class ContextDecoder(nn.Module):
    """Log odds of "abnormal" at every place of the finest grid, one map for all tapped blocks.

    Args:
        channels: token width of each tapped block.
        width: of the text space.
        dropout: chance inside the residual branches.
        scale, learned_scale, learned_text: as of `core_model.anomalygpt.decoder.ImageDecoder`.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        width: int,
        *,
        dropout: float = 0.0,
        scale: float = 100.0,
        learned_scale: bool = False,
        learned_text: bool = False,
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in channels)
        self.inputs = nn.ModuleList(nn.Linear(count, HIDDEN) for count in channels)
        self.whole = nn.Linear(HIDDEN, HIDDEN)
        self.around = nn.ModuleList(Surroundings(HIDDEN, dilation, dropout) for dilation in DILATIONS)
        self.last = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, width)
        self.scale = scale
        self.log_scale = nn.Parameter(torch.full((1,), math.log(scale))) if learned_scale else None
        self.text = nn.Parameter(torch.randn(1, 2, width)) if learned_text else None

    def forward(
        self, tokens: tuple[Tensor, ...], grids: tuple[tuple[int, int], ...], text: Tensor | None
    ) -> list[Tensor]:
        """One (B, h, w) fp32 tensor of log odds, h and w of the finest grid; arguments as of `ImageDecoder.forward`."""
        finest = max(grids, key=lambda grid: grid[0] * grid[1])
        total: Tensor | None = None
        for norm, into, block, grid in zip(self.norms, self.inputs, tokens, grids, strict=True):
            if not torch.is_autocast_enabled(block.device.type):
                block = block.to(next(into.parameters()).dtype)
            own = _on_grid(into(norm(block)), grid, finest)
            total = own if total is None else total + own
        if total is None:
            raise ModelError("the decoder needs at least one tapped block")
        x = total / math.sqrt(len(grids))
        x = x + self.whole(x.mean(dim=(2, 3)))[..., None, None].to(x.dtype)
        for look in self.around:
            x = look(x)
        y = self.head(self.last(x.flatten(2).transpose(1, 2)))
        pair = self._learned_pair() if text is None else text.float()
        scale = self.scale if self.log_scale is None else self.log_scale.float().exp()
        with torch.autocast(y.device.type, enabled=False):
            odds = scale * (F.normalize(y.float(), dim=-1) @ (pair[:, 1] - pair[:, 0])[..., None])
        return [odds.view(-1, *finest)]

    def _learned_pair(self) -> Tensor:
        if self.text is None:
            raise ModelError("the decoder has no text features of its own: give it those of the category")
        return F.normalize(self.text[0].float(), dim=-1)[None]


def _on_grid(tokens: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """(B, C, h, w) of tokens (B, N, C), resampled bilinearly where their grid is another. By matrix products, whose
    gradient is added up in one order each time."""
    places = tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *grid)
    if grid == wanted:
        return places
    down, across = (
        resampling(count, side, places.device).to(places.dtype) for count, side in zip(grid, wanted, strict=True)
    )
    return down @ places @ across.T
