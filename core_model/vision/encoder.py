"""Image encoders, all frozen: pictures in, tapped patch tokens and one embedding out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core_model.batch import unit_range
from core_model.errors import ModelError
from core_model.execution.cuda_graphs import GraphedPart
from core_model.execution.frozen import own_precision
from core_model.vision.vit import VisionTransformer

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True, kw_only=True)
class Features:
    """What one look at the pictures gives; used by decoder, memory bank and language model alike.

    tokens: (B, N_k, C_k) for each tapped block k. grids: (h_k, w_k), N_k = h_k * w_k. pooled: (B, E).
    """

    tokens: tuple[Tensor, ...]
    grids: tuple[tuple[int, int], ...]
    pooled: Tensor

    def float(self) -> Features:
        return Features(tokens=tuple(t.float() for t in self.tokens), grids=self.grids, pooled=self.pooled.float())


class Encoder(nn.Module):
    """Normalizes pictures and runs a frozen trunk once, without gradient.

    trunk: gives `Features` from normalized pixels in its `features` method. channels: C_k of each tapped block.
    embedding: E. multiple: the picture's side must be a multiple of it. normalization: (mean, std) a channel, of the
    trunk's training. per_image: first brings every picture to that mean and spread by itself, which removes
    differences of exposure that are no defects. sizes: sides in pixels to which each picture is resampled, one look by
    the trunk each, their blocks one after another; () = one look at the picture as it comes. Enlarged, a patch covers
    less of the picture: a crack of 2 px is a seventh of a 14 px patch at 224 px, and two sevenths at 448.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: Any,
        *,
        normalization: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET,
        per_image: bool = False,
        sizes: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.sizes = sizes
        self.channels: tuple[int, ...] = trunk.channels * max(1, len(sizes))
        self.embedding: int = trunk.embedding
        self.multiple: int = trunk.multiple
        self.per_image = per_image
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in normalization)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.cuda_graphs = True
        self._grids: tuple[tuple[int, int], ...] = ()
        self._graphed = GraphedPart(trunk, self._flat, gradient=False)

    def sides(self, side: int) -> tuple[int, ...]:
        """Sides of the looks at a picture of `side` pixels. Raises ModelError for one that the trunk cannot read."""
        looks = self.sizes or (side,)
        for look in looks:
            if look % self.multiple:
                low = look // self.multiple * self.multiple
                raise ModelError(
                    f"image size {look} does not fit the encoder: use a multiple of {self.multiple}, "
                    f"such as {max(low, self.multiple)} or {low + self.multiple}"
                )
        return looks

    def normalize(self, images: Tensor) -> Tensor:
        """Pixels as the trunk saw them in training, fp32, from uint8 0..255 or floating [0, 1]."""
        images = unit_range(images)
        if self.per_image:
            spread = images.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)
            return (images - images.mean(dim=(1, 2, 3), keepdim=True)) / spread
        return (images - self.mean.float()) / self.std.float()

    @torch.no_grad()
    def forward(self, images: Tensor, *, one_at_a_time: bool = False) -> Features:
        """images: (B, 3, S, S), uint8 or floating in [0, 1]; raises ModelError where S is no multiple of `multiple`.

        one_at_a_time: the caller is done with the features (gradients through them included) before it calls again, as
        a training step is; they may then lie in a CUDA graph's own buffers (`core_model.execution.cuda_graphs`).
        """
        for side in images.shape[-2:]:
            self.sides(side)
        pixels = self.normalize(images)
        with own_precision(self.trunk):
            pixels = pixels.to(next(self.trunk.parameters()).dtype)
            if not (one_at_a_time and self.cuda_graphs and pixels.is_cuda):
                return self._looks(pixels)
            *tokens, pooled = self._graphed(pixels)
            return Features(tokens=tuple(tokens), grids=self._grids, pooled=pooled)

    @property
    def captures(self) -> int:
        """CUDA graphs captured so far."""
        return self._graphed.captures

    @torch.no_grad()
    def capture_ahead(self, images: Tensor) -> None:
        """Captures the CUDA graph of batches like `images`, so that no training step has to."""
        pixels = self.normalize(images)
        with own_precision(self.trunk):
            if self.cuda_graphs and pixels.is_cuda:
                self._graphed.capture(pixels.to(next(self.trunk.parameters()).dtype))

    def _flat(self, pixels: Tensor) -> tuple[Tensor, ...]:
        features = self._looks(pixels)
        self._grids = features.grids  # the pictures of a model are all of one size
        return (*features.tokens, features.pooled)

    def _looks(self, pixels: Tensor) -> Features:
        if not self.sizes:
            return self.trunk(pixels)
        looks = [self.trunk(_resampled(pixels, side)) for side in self.sizes]
        return Features(
            tokens=tuple(block for look in looks for block in look.tokens),
            grids=tuple(grid for look in looks for grid in look.grids),
            pooled=looks[0].pooled,
        )

    def train(self, mode: bool = True) -> Encoder:
        """Stays in evaluation mode: the trunk is frozen."""
        return super().train(False)


def _resampled(pixels: Tensor, side: int) -> Tensor:
    """(B, 3, side, side), bicubic where that is another size."""
    if pixels.shape[-2:] == (side, side):
        return pixels
    grown = F.interpolate(pixels.float(), size=(side, side), mode="bicubic", align_corners=False, antialias=True)
    return grown.to(pixels.dtype)


class ViTTrunk(nn.Module):
    """A `VisionTransformer` with its taps. The embedding is the class token after the last norm."""

    def __init__(self, vit: VisionTransformer, taps: tuple[int, ...]) -> None:
        super().__init__()
        layers = len(vit.blocks)
        if not taps or min(taps) < 0 or max(taps) >= layers:
            raise ModelError(f"tapped blocks {list(taps)}: the encoder has blocks 0 to {layers - 1}")
        self.vit = vit
        self.taps = tuple(sorted(taps))
        self.channels = (vit.config.width,) * len(taps)
        self.embedding = vit.config.width
        self.multiple = vit.config.patch

    def forward(self, pixels: Tensor) -> Features:
        grid = (pixels.shape[-2] // self.multiple, pixels.shape[-1] // self.multiple)
        tapped, last = self.vit(pixels, self.taps)
        return Features(
            tokens=tuple(tokens[:, 1:] for tokens in tapped), grids=(grid,) * len(tapped), pooled=last[:, 0]
        )
