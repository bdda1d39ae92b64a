"""Vision (and text) transformer blocks: one pre-norm block serves DINOv2's ViT and ImageBind's two towers.

Attention is always `scaled_dot_product_attention`, queries, keys and values come from one fused projection. Sources:
Dosovitskiy et al. 2021 (ViT), Oquab et al. 2023 (DINOv2: LayerScale, interpolated positions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Shape of a vision transformer. grid: side of the square of learned patch positions (37 for DINOv2). layer_scale:
    DINOv2's; pre_norm: a norm before the blocks and patch_bias off: ImageBind's."""

    width: int
    layers: int
    heads: int
    patch: int = 14
    grid: int = 16
    mlp_ratio: int = 4
    layer_scale: bool = True
    patch_bias: bool = True
    pre_norm: bool = False
    norm_eps: float = 1e-6


class Block(nn.Module):
    """x + s1 * attention(norm1(x)), then x + s2 * mlp(norm2(x)); s1 = s2 = 1 without LayerScale. x: (B, N, width)."""

    def __init__(self, width: int, heads: int, mlp: int, *, layer_scale: bool, norm_eps: float, causal: bool = False):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, mlp)
        self.fc2 = nn.Linear(mlp, width)
        self.scale1 = nn.Parameter(torch.ones(width)) if layer_scale else None
        self.scale2 = nn.Parameter(torch.ones(width)) if layer_scale else None

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        y = self.out(y.transpose(1, 2).reshape(batch, length, width))
        x = x + (y if self.scale1 is None else y * self.scale1)
        y = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + (y if self.scale2 is None else y * self.scale2)


class VisionTransformer(nn.Module):
    """DINOv2-type ViT: class token, learned positions interpolated to the image's grid, final LayerNorm."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=config.patch_bias)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.width))
        self.pre_norm = nn.LayerNorm(config.width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.mlp_ratio * config.width,
                layer_scale=config.layer_scale,
                norm_eps=config.norm_eps,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self._resampled: tuple[tuple[Any, ...], Tensor] | None = None

    def position_embedding(self, height: int, width: int) -> Tensor:
        """(1, 1 + height * width, C): the learned grid, resampled (bicubic, fp32) where the image's grid differs; kept
        as long as the positions are frozen (0.9 ms a step on an H100)."""
        side = self.config.grid
        if (height, width) == (side, side):
            return self.positions
        key = (height, width, self.positions.data_ptr(), self.positions._version, self.positions.dtype)
        if self._resampled is not None and self._resampled[0] == key:
            return self._resampled[1]
        grid = self.positions[:, 1:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        grid = grid.permute(0, 2, 3, 1).reshape(1, height * width, -1).to(self.positions.dtype)
        resampled = torch.cat((self.positions[:, :1], grid), dim=1)
        if not resampled.requires_grad:
            self._resampled = (key, resampled)
        return resampled

    def forward(self, pixels: Tensor, taps: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
        """Tokens with the class token in front, (B, 1 + N, C), after each block of `taps` (0-based, before the final
        norm), and the normalized last tokens. pixels: (B, 3, H, W), sides multiples of the patch."""
        patches = self.patch_embedding(pixels)
        height, width = patches.shape[-2:]
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(len(x), -1, -1).to(x.dtype), x), dim=1)
        x = self.pre_norm(x + self.position_embedding(height, width))
        tapped = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in taps:
                tapped.append(x)
        return tapped, self.norm(x)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None, std: float = 0.02) -> None:
        """Normal weights of standard deviation `std`; biases 0, norms 1."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, std, generator=generator)
