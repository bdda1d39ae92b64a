"""Scores a model on a test set, spread over the ranks; figures are computed once, on rank 0, from gathered scores.

AUROC is not an average over ranks and a padded shard repeats samples, so the ranks' entries are gathered, repeats are
dropped by sample id and only then is anything computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core_model.batch import Sample
from core_model.data.splits import subset
from core_model.execution.compile import eager
from core_model.metrics import evaluate as figures_of
from harness.job.declaration import Job

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


def evaluate_job(
    job: Job, model: Any, weights: Mapping[str, Tensor], test_set: Any, backend: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Collective: `evaluate` of a trained model. The consolidated `weights` are what is evaluated, in the raw model
    where it still holds plain fp32 parameters, else in a freshly built one (ZeRO-3, FSDP2, native half precision).
    test_set: None for a job of the user's own, which evaluates itself."""
    from harness.worker.model_and_data import build_model, put_weights

    if not _plain(model):
        model = build_model(job, device=backend.device)
    put_weights(model, weights, "the engine's weights")
    if test_set is None:  # a job of the user's own has figures of its own, or none
        figures = model.evaluate()
        return ({"mean": figures, "categories": {}}, []) if figures else None
    memory = None
    if job.shots:
        from harness.worker.evaluation.few_shot import memory_of

        memory = memory_of(model, job, backend.device)
    with eager() if job.compile else nullcontext():
        return evaluate(
            model,
            test_set,
            device=backend.device,
            rank=backend.rank,
            world_size=backend.world_size,
            gather=backend.gather,
            indices=subset(len(test_set), job.eval_samples, job.seed),
            memory=memory,
            batch_size=32 if backend.device.type == "cuda" else 8,
        )


def batch_statistics(model: torch.nn.Module) -> dict[str, Tensor]:
    """Running statistics of batch-norm layers: trained, though no parameters. They differ by rank."""
    kept = ("running_mean", "running_var", "num_batches_tracked")
    return {name: buffer.detach().cpu() for name, buffer in model.named_buffers() if name.rsplit(".", 1)[-1] in kept}


def _plain(model: torch.nn.Module) -> bool:
    """Whether every trainable parameter is a whole fp32 tensor of this process (no ZeRO-3 shard, no DTensor)."""
    return all(
        parameter.dtype == torch.float32 and not hasattr(parameter, "ds_id") and not hasattr(parameter, "placements")
        for parameter in model.parameters()
        if parameter.requires_grad
    )
