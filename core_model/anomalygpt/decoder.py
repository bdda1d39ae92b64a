"""The image decoder: patch features against text features, block by block (AnomalyGPT, section 3.2).

For each tapped block k a head maps the patch tokens into the text space; the log odds of "abnormal" at a patch are
``scale * (cos(y, t_abnormal) - cos(y, t_normal))``, i.e. the softmax over the two scaled similarities. The study's
layer variants are steps behind the head, each a small module, chosen by name in the order written:

    linear | mlp | conv3x3     the head (mlp and conv3x3 see beyond one linear map: the better localizers here)
    context                    all blocks together with their surroundings: `core_model.anomalygpt.context_decoder`
    norm                       LayerNorm over channels (V1)
    batchnorm                  BatchNorm over channels, statistics over samples and places (V3-V6)
    dropout                    dropout, p = 0.1
    residual                   y + linear(gelu(y)), the added branch starts at 0

``batchnorm`` uses the statistics of the rank's own micro-batch and ``dropout`` the rank's own random numbers
(`core_model.training.dropout_seeds`): with either, a run's gradient depends on how the batch was split, and engines or
world sizes agree only statistically.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core_model.errors import ModelError

DROPOUT = 0.1


class LinearHead(nn.Linear):
    """One linear layer a patch, the paper's."""

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:  # type: ignore[override]
        return super().forward(tokens)


class MLPHead(nn.Module):
    """Two layers with GELU between them, a patch."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, width)
        self.second = nn.Linear(width, width)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.second(F.gelu(self.first(tokens)))


class Conv3x3Head(nn.Module):
    """A 3x3 convolution over the patch grid, GELU, a linear layer: each patch sees its neighbours."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Linear(width, width)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        batch, _, channels = tokens.shape
        y = self.first(tokens.transpose(1, 2).reshape(batch, channels, *grid))
        return self.second(F.gelu(y.flatten(2).transpose(1, 2)))


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the channels of (B, N, C) tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.transpose(1, 2)).transpose(1, 2)


class Residual(nn.Module):
    """y + linear(gelu(y)); zero-initialized, so that it starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Linear(width, width)
        nn.init.zeros_(self.branch.weight)
        nn.init.zeros_(self.branch.bias)

    def forward(self, y: Tensor) -> Tensor:
        return y + self.branch(F.gelu(y))


HEADS: dict[str, Callable[[int, int], Any]] = {"linear": LinearHead, "mlp": MLPHead, "conv3x3": Conv3x3Head}
STEPS: dict[str, Callable[[int], nn.Module]] = {
    "norm": nn.LayerNorm,
    "batchnorm": TokenBatchNorm,
    "dropout": lambda _width: nn.Dropout(DROPOUT),
    "residual": Residual,
}


class Adapter(nn.Module):
    """Head and steps of one tapped block: (B, N, channels) -> (B, N, width)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.steps = nn.ModuleList()

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        # frozen tokens may be of another type than the trained weights
        if not torch.is_autocast_enabled(tokens.device.type):
            tokens = tokens.to(next(self.parameters()).dtype)
        y = self.head(tokens, grid)
        for step in self.steps:
            y = step(y)
        return y


class ImageDecoder(nn.Module):
    """Log odds of "abnormal" at every patch, for each tapped block.

    Args:
        channels: token width of each tapped block.
        width: of the text space.
        scale: factor on the cosine (100 in the paper); `learned_scale` makes it a parameter that starts there.
        learned_text: two text vectors a block are parameters, for presets without a text tower; otherwise the text
            features are given to `forward`.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        width: int,
        *,
        layers: tuple[str, ...] = ("linear",),
        scale: float = 100.0,
        learned_scale: bool = False,
        learned_text: bool = False,
    ) -> None:
        super().__init__()
        head, *steps = layers or ("",)
        if head not in HEADS:
            raise ModelError(f"unknown decoder head '{head}': the first decoder layer is one of {', '.join(HEADS)}")
        for step in steps:
            if step not in STEPS:
                raise ModelError(f"unknown decoder layer '{step}': after the head, choose from {', '.join(STEPS)}")
        adapters = [Adapter(HEADS[head](c, width)) for c in channels]
        self.adapters = nn.ModuleList(adapters)
        self.scale = scale
        self.log_scale = nn.Parameter(torch.full((len(channels),), math.log(scale))) if learned_scale else None
        self.text = nn.Parameter(torch.randn(len(channels), 2, width)) if learned_text else None
        for adapter in adapters:  # drawn last: variants of one seed start from the same head
            adapter.steps.extend(STEPS[step](width) for step in steps)

    def forward(
        self, tokens: tuple[Tensor, ...], grids: tuple[tuple[int, int], ...], text: Tensor | None
    ) -> list[Tensor]:
        """One (B, h, w) fp32 tensor of log odds a block.

        Args:
            tokens: (B, N, C_k) a block.
            grids: (h, w) a block, N = h * w.
            text: (B, 2, width), [normal, abnormal], unit length; None where the decoder has learned its own.
        """
        results = []
        for index, (adapter, block, grid) in enumerate(zip(self.adapters, tokens, grids, strict=True)):
            y = F.normalize(adapter(block, grid).float(), dim=-1)
            pair = self._learned_pair(index) if text is None else text.float()
            scale = self.scale if self.log_scale is None else self.log_scale[index].float().exp()
            with torch.autocast(y.device.type, enabled=False):  # cosines x 100: bf16 would leave 0.4 of log odds
                odds = scale * (y @ (pair[:, 1] - pair[:, 0])[..., None])
            results.append(odds.view(-1, *grid))
        return results

    def _learned_pair(self, index: int) -> Tensor:
        """(1, 2, width) unit vectors [normal, abnormal] of a block."""
        if self.text is None:
            raise ModelError("the decoder has no text features of its own: give it those of the category")
        return F.normalize(self.text[index].float(), dim=-1)[None]


def to_image(odds: list[Tensor], side: int) -> Tensor:
    """(B, K, side, side) log odds, each block resampled bilinearly to the picture's side.

    By two small matrix products: torch's bilinear kernel adds up its gradient with atomics, which is slow and in
    another order each time.
    """
    with torch.autocast(odds[0].device.type, enabled=False):
        grown = [resampling(b.shape[-2], side, b.device) @ b @ resampling(b.shape[-1], side, b.device).T for b in odds]
    return torch.stack(grown, dim=1)


@lru_cache(maxsize=32)
def resampling(count: int, side: int, device: torch.device) -> Tensor:
    """(side, count) weights that resample `count` samples to `side` as ``F.interpolate(mode="linear")`` does."""
    ones = torch.eye(count, device=device)[None]
    return F.interpolate(ones, size=side, mode="linear", align_corners=False)[0].T.contiguous()


def mean_map(odds: Tensor) -> Tensor:
    """(B, S, S) anomaly map in [0, 1]: the probability of "abnormal", mean over the blocks of (B, K, S, S)."""
    return torch.sigmoid(odds).mean(dim=1)
