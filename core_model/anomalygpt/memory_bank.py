"""The few-shot branch: how far is each patch from every patch of k good pictures? (AnomalyGPT, section 3.2)

A bank holds, category by category, the tapped patch tokens of good pictures and of their rotations by 90, 180 and 270
degrees. A patch's anomaly is its distance to the nearest of them: ``1 - max cosine`` (the paper's) or the smallest L2
distance; the map is the mean over blocks. No training is involved. Alone it is the paper's few-shot map; with the rule
``both`` it is added to a trained decoder's map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from core_model.errors import ModelError
from core_model.vision.encoder import Features

if TYPE_CHECKING:
    from core_model.anomalygpt.model import AnomalyGPT

DISTANCES = ("cosine", "l2")
COMBINATIONS = ("memory", "both")
ROTATIONS = (0, 90, 180, 270)
CHUNK = 16_384  # bank rows compared at once: bounds the similarity matrix to (B * N) x 16384 numbers


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """How the memory is made and used.

    rotations: degrees, multiples of 90. distance: ``cosine`` or ``l2``. blocks: which of the tapped blocks, by their
    place in the list, () = all. combination: ``memory`` alone or ``both``. weight: of the memory's calibrated map
    beside the decoder's in ``both``. limit: most tokens kept of a category and block, evenly chosen (0 = all).
    """

    rotations: tuple[int, ...] = ROTATIONS
    distance: str = "cosine"
    blocks: tuple[int, ...] = ()
    combination: str = "memory"
    weight: float = 1.0
    limit: int = 0

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ModelError(f"unknown memory distance '{self.distance}': choose one of {', '.join(DISTANCES)}")
        if self.combination not in COMBINATIONS:
            raise ModelError(f"unknown combination '{self.combination}': choose one of {', '.join(COMBINATIONS)}")
        if not self.rotations or any(degrees % 90 for degrees in self.rotations):
            raise ModelError(f"rotations {list(self.rotations)}: only multiples of 90 degrees keep the patch grid")


@dataclass(frozen=True, kw_only=True)
class _Category:
    tokens: tuple[Tensor, ...]  # (M, C_k) a block
    owners: tuple[Tensor, ...]  # (M,) index of the good picture of each token
    scale: float  # a high distance among the good pictures themselves (of one alone: to its turned copies)


class MemoryBank:
    """Tokens of good pictures. Make one with `MemoryBank.build`."""

    def __init__(self, categories: Mapping[str, _Category], options: MemoryOptions) -> None:
        self.categories = dict(categories)
        self.options = options

    @property
    def uses_decoder(self) -> bool:
        return self.options.combination == "both"

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        model: AnomalyGPT,
        images: Tensor,
        categories: Sequence[str],
        *,
        options: MemoryOptions | None = None,
        batch_size: int = 8,
    ) -> MemoryBank:
        """From good pictures (k, 3, S, S) in [0, 1], on the model's device or the CPU, and the category of each."""
        options = options or MemoryOptions()
        if len(images) == 0 or len(images) != len(categories):
            counts = f"{len(images)} good pictures and {len(categories)} categories"
            raise ModelError(f"{counts}: the memory needs as many of each, and one at least")
        device = model.encoder.mean.device
        banks = {}
        for category in sorted(set(categories)):
            chosen = images[[index for index, name in enumerate(categories) if name == category]]
            tokens: list[list[Tensor]] = []
            owners: list[Tensor] = []
            for start in range(0, len(chosen), batch_size):
                part = chosen[start : start + batch_size].to(device)
                for degrees in options.rotations:
                    tokens.append(_looked(model, part, degrees, options))
                    owners.append(torch.arange(start, start + len(part), device=device))
            turned: list[list[Tensor]] = []
            if len(chosen) == 1:
                turned = tokens[1:] or [
                    _looked(model, chosen.to(device), degrees, options) for degrees in ROTATIONS[1:]
                ]
            banks[category] = _category(tokens, owners, options, turned)
        return cls(banks, options)

    @torch.no_grad()
    def maps(self, features: Features, categories: Sequence[str], side: int) -> Tensor:
        """(B, side, side) fp32 distances, mean over blocks. Raises ModelError for a category that the bank lacks."""
        for name in categories:
            if name not in self.categories:
                known = ", ".join(self.categories)
                raise ModelError(f"no good pictures of '{name}' in the memory: it has {known}")
        blocks, grids = _selected(features, self.options)
        total = torch.zeros((), device=features.pooled.device)
        for index, (block, grid) in enumerate(zip(blocks, grids, strict=True)):
            query = _prepared(block, self.options)
            distance = torch.empty(query.shape[:2], device=query.device)
            for name in set(categories):
                rows = [row for row, category in enumerate(categories) if category == name]
                distance[rows] = _nearest(query[rows], self.categories[name].tokens[index], self.options.distance)
            places = distance.view(-1, 1, *grid)
            grown = F.interpolate(places, size=(side, side), mode="bilinear", align_corners=False)[:, 0]
            total = total + grown
        return total / len(blocks)

    def combine(self, memory_maps: Tensor, decoder_maps: Tensor, categories: Sequence[str]) -> Tensor:
        """(B, S, S): the decoder's map plus the memory's, the latter in units of the high (99th percentile) distance
        that the good pictures have among themselves."""
        scales = torch.tensor([self.categories[name].scale for name in categories], device=memory_maps.device)
        return decoder_maps + self.options.weight * memory_maps / scales[:, None, None]


def _looked(model: AnomalyGPT, images: Tensor, degrees: int, options: MemoryOptions) -> list[Tensor]:
    """The prepared tokens (b, N, C) of each block of the images, turned."""
    features = model.encoder(torch.rot90(images, degrees // 90, dims=(2, 3)))
    return [_prepared(block, options) for block in _selected(features, options)[0]]


def _selected(features: Features, options: MemoryOptions) -> tuple[list[Tensor], list[tuple[int, int]]]:
    count = len(features.tokens)
    chosen = options.blocks or tuple(range(count))
    if max(chosen) >= count:
        raise ModelError(f"memory blocks {list(chosen)}: the encoder has {count} tapped blocks, 0 to {count - 1}")
    return [features.tokens[i] for i in chosen], [features.grids[i] for i in chosen]


def _prepared(tokens: Tensor, options: MemoryOptions) -> Tensor:
    tokens = tokens.float()
    return F.normalize(tokens, dim=-1) if options.distance == "cosine" else tokens


def _nearest(query: Tensor, bank: Tensor, distance: str, hidden: Tensor | None = None) -> Tensor:
    """(B, N) distance of each query token (B, N, C) to the nearest bank row (M, C). hidden: (B, M) bool rows that a
    picture may not see."""
    best = torch.full(query.shape[:2], -torch.inf, device=query.device)
    for start in range(0, len(bank), CHUNK):
        rows = bank[start : start + CHUNK]
        near = query @ rows.T if distance == "cosine" else -torch.cdist(query, rows[None])
        if hidden is not None:
            near = near.masked_fill(hidden[:, None, start : start + CHUNK], -torch.inf)
        best = torch.maximum(best, near.amax(dim=-1))
    return 1.0 - best if distance == "cosine" else -best


def _on_one_grid(distances: Sequence[Tensor]) -> Tensor:
    """(blocks, B, N) from (B, N) of each block: those of coarser grids (of a convolutional encoder) are repeated to the
    finest, as the maps are when they are averaged."""
    finest = max(each.shape[1] for each in distances)
    side = math.isqrt(finest)
    alike = []
    for each in distances:
        if each.shape[1] != finest:
            own = math.isqrt(each.shape[1])
            grid = F.interpolate(each.view(-1, 1, own, own), size=(side, side), mode="bilinear", align_corners=False)
            each = grid.flatten(1)
        alike.append(each)
    return torch.stack(alike)


def _category(
    tokens: list[list[Tensor]], owners: list[Tensor], options: MemoryOptions, turned: Sequence[list[Tensor]] = ()
) -> _Category:
    """tokens: per look (batch and rotation), per block (b, N, C). owners: per look (b,). turned: of a single good
    picture, looks at it from other sides than the first. No other picture says how far good patches lie apart; its own
    turned copies do, on textures nearly as two pictures would. (At scale 1 the map of `both` was a sum of two units.)
    """
    kept, whose = [], []
    distances = []
    for block in range(len(tokens[0])):
        rows = torch.cat([look[block].flatten(0, 1) for look in tokens])
        owner = torch.cat([o.repeat_interleave(look[block].shape[1]) for look, o in zip(tokens, owners, strict=True)])
        if options.limit and len(rows) > options.limit:
            keep = torch.linspace(0, len(rows) - 1, options.limit, device=rows.device).long()
            rows, owner = rows[keep], owner[keep]
        kept.append(rows)
        whose.append(owner)
        if int(owner.max()) > 0:  # each of the first good pictures against all the others
            look, owned = tokens[0][block], owners[0]
            distances.append(_nearest(look, rows, options.distance, hidden=owned[:, None] == owner[None]))
        else:
            others = torch.cat([look[block].flatten(0, 1) for look in turned])
            distances.append(_nearest(tokens[0][block], others, options.distance))
    scale = float(torch.quantile(_on_one_grid(distances).mean(dim=0).flatten()[:1_000_000], 0.99))
    return _Category(tokens=tuple(kept), owners=tuple(whose), scale=max(scale, 1e-6))
