"""Scores a model on a test set, spread over the ranks; figures are computed once, on rank 0, from gathered scores.

AUROC is not an average over ranks and a padded shard repeats samples, so the ranks' entries are gathered, repeats are
dropped by sample id and only then is anything computed (facts.md, trap 10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core_model.batch import Sample
from core_model.metrics import evaluate as figures_of

Gather = Callable[[Any], "list[Any] | None"]


def spread_indices(indices: Sequence[int], *, rank: int, world_size: int) -> list[int]:
    """Rank's share of `indices`, padded by repeats so that every rank has equally many (sharded models call
    collectives in forward)."""
    if not indices:
        return []
    padded = list(indices) + [indices[-1]] * (-len(indices) % world_size)
    return padded[rank::world_size]


@torch.no_grad()
def score_samples(
    model: Any,
    samples: Sequence[Sample],
    *,
    device: torch.device,
    memory: Any = None,
    answers: bool = True,
    max_new_tokens: int = 32,
) -> list[dict[str, Any]]:
    """One entry a sample: id, category, kind, is_defective, place, score, map (S, S) float16, mask (S, S) bool
    (None where the defect was not drawn), question, expected, answer."""
    images = torch.stack([sample.image for sample in samples]).to(device)
    categories = [sample.category for sample in samples]
    maps = model.anomaly_maps(images, categories, memory=memory)
    scores = model.scores(maps)
    questions = [sample.turns[0][0] for sample in samples]
    replies = model.answer(images, categories, questions, max_new_tokens=max_new_tokens) if answers else None
    return entries_of(samples, maps, scores, replies)


def entries_of(
    samples: Sequence[Sample], maps: Tensor, scores: Tensor, answers: Sequence[str] | None
) -> list[dict[str, Any]]:
    """What the metrics read of each sample (see `score_samples`), from maps (B, S, S), scores (B,) and the answers to
    each sample's first question, None = not asked."""
    grids = maps.float().cpu().numpy().astype(np.float16)
    replies = answers if answers is not None else [None] * len(samples)
    return [
        {
            "id": sample.id,
            "category": sample.category,
            "kind": sample.kind,
            "is_defective": bool(sample.is_defective),
            "place": sample.place,
            "score": score,
            "map": grid,
            "mask": sample.mask[0].numpy() > 0.5 if sample.has_mask else None,
            "question": sample.turns[0][0],
            "expected": sample.turns[0][1],
            "answer": reply,
        }
        for sample, score, grid, reply in zip(samples, scores.float().cpu().tolist(), grids, replies, strict=True)
    ]


def evaluate(
    model: Any,
    dataset: Any,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    gather: Gather | None = None,
    indices: Sequence[int] | None = None,
    batch_size: int = 8,
    memory: Any = None,
    answers: bool = True,
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Figures and entries on rank 0, None elsewhere. `gather` is Backend.gather; None = this process alone.

    model: an AnomalyGPT with plain (not sharded) weights. dataset: test split of `core_model.data.open_dataset`.
    """
    was_training = model.training
    model.eval()
    try:
        mine = spread_indices(
            list(range(len(dataset))) if indices is None else indices, rank=rank, world_size=world_size
        )
        entries: list[dict[str, Any]] = []
        for start in range(0, len(mine), batch_size):
            samples = [dataset.get(index, 0) for index in mine[start : start + batch_size]]
            entries += score_samples(model, samples, device=device, memory=memory, answers=answers)
    finally:
        model.train(was_training)
    gathered = [entries] if gather is None else gather(entries)
    if gathered is None:
        return None
    unique = {entry["id"]: entry for rank_entries in gathered for entry in rank_entries}
    ordered = [unique[name] for name in sorted(unique)]
    return figures_of(ordered), ordered
