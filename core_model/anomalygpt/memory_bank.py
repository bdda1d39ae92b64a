"""The few-shot branch: how far is each patch from every patch of k good pictures? (AnomalyGPT, section 3.2)

A bank holds, category by category, the tapped patch tokens of good pictures and of their rotations by 90, 180 and 270
degrees. A patch's anomaly is its distance to the nearest of them: ``1 - max cosine`` (the paper's) or the smallest L2
distance; the map is the mean over blocks. No training is involved. Alone it is the paper's few-shot map; with the rule
``both`` it is added to a trained decoder's map.

`PEERS` are the rules of two published detectors of this kind, on this model's own encoder: how they differ from the
paper's few-shot map is a matter of options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from core_model.anomalygpt.coreset import k_centre
from core_model.anomalygpt.scoring import RULES, score
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

    Args:
        rotations: degrees, multiples of 90.
        distance: ``cosine`` or ``l2``.
        blocks: which of the tapped blocks, by their place in the list, () = all.
        combination: ``memory`` alone or ``both``.
        weight: of the memory's calibrated map beside the decoder's in ``both``.
        limit: most tokens kept of a category and block, evenly chosen (0 = all).
        coreset: share of the tokens kept, those that leave none far from a kept one (0 = all).
        neighbourhood: a token is the mean over this many patches squared around it (1 = itself).
        joined: the blocks are one long token, compared at once, where otherwise each block finds a neighbour of its
            own.
        balanced: each block's distances in units of those that good pictures have among themselves, before the mean
            over blocks.
        smooth: standard deviation in pixels of a Gaussian over the map (0 = none).
        score: rule of `core_model.anomalygpt.scoring` for this memory, "" = the model's.
    """

    rotations: tuple[int, ...] = ROTATIONS
    distance: str = "cosine"
    blocks: tuple[int, ...] = ()
    combination: str = "memory"
    weight: float = 1.0
    limit: int = 0
    coreset: float = 0.0
    neighbourhood: int = 1
    joined: bool = False
    balanced: bool = False
    smooth: float = 0.0
    score: str = ""

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ModelError(f"unknown memory distance '{self.distance}': choose one of {', '.join(DISTANCES)}")
        if self.combination not in COMBINATIONS:
            raise ModelError(f"unknown combination '{self.combination}': choose one of {', '.join(COMBINATIONS)}")
        if not self.rotations or any(degrees % 90 for degrees in self.rotations):
            raise ModelError(f"rotations {list(self.rotations)}: only multiples of 90 degrees keep the patch grid")
        if self.neighbourhood < 1 or self.neighbourhood % 2 == 0:
            raise ModelError(f"memory neighbourhood {self.neighbourhood}: give an odd number of patches, such as 3")
        if not 0 <= self.coreset <= 1:
            raise ModelError(f"memory coreset {self.coreset}: give the share of tokens to keep, from 0 (all) to 1")
        if self.score and self.score not in RULES:
            raise ModelError(f"unknown scoring rule '{self.score}': choose one of {', '.join(RULES)}")
        if self.smooth < 0:
            raise ModelError(f"memory smooth {self.smooth}: give a standard deviation in pixels, 0 = none")


# PatchCore (Roth et al., 2022, equations 1 to 6): tokens averaged over 3x3 patches, two middle blocks joined, a greedy
# coreset of 1 %, s(patch) = min over the bank of the L2 distance, s(picture) = the largest (without the reweighting of
# its equation 7), the map smoothed by a Gaussian of 4 px. On this model's encoder, where the paper has a WideResNet-50.
# AnomalyDINO (Damm et al., 2025, equations 1 to 3): tokens of the last block, s(patch) = 1 - largest cosine, good
# pictures in turned copies, s(picture) = mean of the highest 1 %, the same smoothing. Its masking of the ground is left
# out, as the paper does for textures.
PEERS: Mapping[str, MemoryOptions] = {
    "patchcore": MemoryOptions(
        rotations=(0,),
        distance="l2",
        blocks=(1, 2),
        coreset=0.01,
        neighbourhood=3,
        joined=True,
        smooth=4.0,
        score="max",
    ),
    "anomalydino": MemoryOptions(distance="cosine", blocks=(-1,), smooth=4.0, score="top1"),
}


@dataclass(frozen=True, kw_only=True)
class _Category:
    tokens: tuple[Tensor, ...]  # (M, C_k) a block
    owners: tuple[Tensor, ...]  # (M,) index of the good picture of each token
    scale: float  # a high distance among the good pictures themselves (of one alone: to its turned copies)
    block_scales: tuple[float, ...] = ()  # the same, block by block


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
                raise ModelError(f"no good pictures of '{name}' in the memory: it has {', '.join(self.categories)}")
        blocks, grids = _views(features, self.options)
        total = torch.zeros((), device=features.pooled.device)
        for index, (query, grid) in enumerate(zip(blocks, grids, strict=True)):
            distance = torch.empty(query.shape[:2], device=query.device)
            for name in set(categories):
                rows = [row for row, category in enumerate(categories) if category == name]
                known = self.categories[name]
                own = _nearest(query[rows], known.tokens[index], self.options.distance)
                distance[rows] = own / known.block_scales[index] if self.options.balanced else own
            places = distance.view(-1, 1, *grid)
            grown = F.interpolate(places, size=(side, side), mode="bilinear", align_corners=False)[:, 0]
            total = total + grown
        return _smoothed(total / len(blocks), self.options.smooth)

    def scores(self, maps: Tensor, rule: str) -> Tensor:
        """(B,) one score a picture from (B, S, S) maps: by this memory's own rule, or by `rule` where it has none."""
        return score(maps, self.options.score or rule)

    def combine(self, memory_maps: Tensor, decoder_maps: Tensor, categories: Sequence[str]) -> Tensor:
        """(B, S, S): the decoder's map plus the memory's, the latter in units of the high (99th percentile) distance
        that the good pictures have among themselves."""
        scales = torch.tensor([self.categories[name].scale for name in categories], device=memory_maps.device)
        return decoder_maps + self.options.weight * memory_maps / scales[:, None, None]


def _looked(model: AnomalyGPT, images: Tensor, degrees: int, options: MemoryOptions) -> list[Tensor]:
    """The prepared tokens (b, N, C) of each block of the images, turned."""
    features = model.encoder(torch.rot90(images, degrees // 90, dims=(2, 3)))
    return _views(features, options)[0]


def _views(features: Features, options: MemoryOptions) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Tokens (B, N, C) as they are compared, and their grids (h, w): of the chosen blocks, or of all these joined."""
    count = len(features.tokens)
    chosen = options.blocks or tuple(range(count))
    if max(chosen) >= count or min(chosen) < -count:
        raise ModelError(f"memory blocks {list(chosen)}: the encoder has {count} tapped blocks, 0 to {count - 1}")
    tokens = [_averaged(features.tokens[i].float(), features.grids[i], options.neighbourhood) for i in chosen]
    grids = [features.grids[i] for i in chosen]
    if options.joined:
        finest = max(grids, key=lambda grid: grid[0] * grid[1])
        grown = [_as_grid(block, grid) for block, grid in zip(tokens, grids, strict=True)]
        alike = [
            each if each.shape[2:] == finest else F.interpolate(each, size=finest, mode="bilinear", align_corners=False)
            for each in grown
        ]
        tokens, grids = [torch.cat(alike, dim=1).flatten(2).transpose(1, 2)], [finest]
    if options.distance == "cosine":
        tokens = [F.normalize(block, dim=-1) for block in tokens]
    return tokens, grids


def _averaged(tokens: Tensor, grid: tuple[int, int], reach: int) -> Tensor:
    """Each token the mean over `reach` x `reach` patches around it; at the border over those that there are."""
    if reach == 1:
        return tokens
    around = F.avg_pool2d(_as_grid(tokens, grid), reach, stride=1, padding=reach // 2, count_include_pad=False)
    return around.flatten(2).transpose(1, 2)


def _as_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *grid)


def _smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Maps (B, S, S) under a Gaussian of `sigma` pixels, cut at four of them; the border is repeated."""
    if not sigma:
        return maps
    reach = max(1, round(4 * sigma))
    places = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    grown = F.pad(maps[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(grown, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))[:, 0]


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
        if options.coreset:
            keep = k_centre(rows, max(1, round(options.coreset * len(rows))))
            rows, owner = rows[keep], owner[keep]
        kept.append(rows)
        whose.append(owner)
        if int(owner.max()) > 0:  # each of the first good pictures against all the others
            look, owned = tokens[0][block], owners[0]
            distances.append(_nearest(look, rows, options.distance, hidden=owned[:, None] == owner[None]))
        else:
            others = torch.cat([look[block].flatten(0, 1) for look in turned])
            distances.append(_nearest(tokens[0][block], others, options.distance))
    alone = tuple(_high(each) for each in distances)
    if options.balanced:
        distances = [each / own for each, own in zip(distances, alone, strict=True)]
    scale = _high(_on_one_grid(distances).mean(dim=0))
    return _Category(tokens=tuple(kept), owners=tuple(whose), scale=scale, block_scales=alone)


def _high(distances: Tensor) -> float:
    """The 99th percentile, never 0. One that no token of another picture answers (a coreset of one picture) is left
    out."""
    found = distances[torch.isfinite(distances)]
    return max(float(torch.quantile(found[:1_000_000], 0.99)), 1e-6) if len(found) else 1.0
