"""ImageBind's vision and text towers, from the paper (Girdhar et al. 2023) and the published checkpoint's key names.

Vision: a ViT with a norm before its blocks; class token, norm and a linear layer give the joint embedding. The
published patch embedding is a convolution over two frames; a picture is the same frame twice, so its weights are summed
over time here: the same result at half the work. Text: a causal transformer of width 1024 over CLIP's tokens, read at
the end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from core_model.errors import ModelError
from core_model.vision.encoder import Features
from core_model.vision.vit import Block, VisionTransformer, ViTConfig


@dataclass(frozen=True, kw_only=True)
class ImageBindConfig:
    """Shapes of both towers; the defaults are ImageBind-Huge's."""

    vision: ViTConfig = field(
        default_factory=lambda: ViTConfig(
            width=1280, layers=32, heads=16, patch=14, grid=16, layer_scale=False, patch_bias=False, pre_norm=True
        )
    )
    text_width: int = 1024
    text_layers: int = 24
    text_heads: int = 16
    vocab: int = 49408
    context: int = 77
    joint: int = 1024


HUGE = ImageBindConfig()


class TextTower(nn.Module):
    """Token ids (n, T), each row ended by the end token (the largest id), to joint embeddings (n, joint)."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab, config.text_width)
        self.positions = nn.Parameter(torch.zeros(1, config.context, config.text_width))
        self.blocks = nn.ModuleList(
            Block(
                config.text_width,
                config.text_heads,
                4 * config.text_width,
                layer_scale=False,
                norm_eps=1e-6,
                causal=True,
            )
            for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(config.text_width, eps=1e-6)
        self.project = nn.Linear(config.text_width, config.joint, bias=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        x = self.token_embedding(token_ids) + self.positions[:, : token_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        ends = token_ids.argmax(dim=1)
        return self.project(self.norm(x[torch.arange(len(x), device=x.device), ends]))


class ImageBind(nn.Module):
    """Trunk for `core_model.vision.encoder.Encoder`, with the text tower beside it.

    tokenizer: CLIP's (begin and end tokens as bos and eos). taps: 0-based blocks; (7, 15, 23, 31) in AnomalyGPT.
    """

    def __init__(self, config: ImageBindConfig, taps: tuple[int, ...], tokenizer: Any = None) -> None:
        super().__init__()
        if not taps or min(taps) < 0 or max(taps) >= config.vision.layers:
            raise ModelError(f"tapped blocks {list(taps)}: the encoder has blocks 0 to {config.vision.layers - 1}")
        self.config = config
        self.vision = VisionTransformer(config.vision)
        self.project = nn.Linear(config.vision.width, config.joint, bias=False)
        self.text = TextTower(config)
        self.tokenizer: Any = tokenizer
        self.taps = tuple(sorted(taps))
        self.channels = (config.vision.width,) * len(taps)
        self.embedding = config.joint
        self.multiple = config.vision.patch

    def forward(self, pixels: Tensor) -> Features:
        grid = (pixels.shape[-2] // self.multiple, pixels.shape[-1] // self.multiple)
        tapped, last = self.vision(pixels, self.taps)
        return Features(
            tokens=tuple(tokens[:, 1:] for tokens in tapped),
            grids=(grid,) * len(tapped),
            pooled=self.project(last[:, 0]),
        )

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(len, joint) embeddings of sentences."""
        tokenizer, context = self.tokenizer, self.config.context
        rows = [[tokenizer.bos_id, *tokenizer.encode(text)[: context - 2], tokenizer.eos_id] for text in texts]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        return self.text(ids.to(self.text.positions.device))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None, std: float = 0.02) -> None:
        """Normal weights of standard deviation `std`."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, std, generator=generator)
