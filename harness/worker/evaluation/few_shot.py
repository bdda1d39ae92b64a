"""k-shot use: the memory bank of k good pictures a category, as every command and the worker make it.

AnomalyGPT's few-shot setting (section 3.2): k normal pictures of an object stand for its whole normality, each looked
at in four rotations. The pictures come from train/good alone; which ones, the seed decides, so that two engines (and
two calls) compare with the same bank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.job.declaration import Job, JobError
from harness.worker.model_and_data import build_dataset

if TYPE_CHECKING:
    from core_model.anomalygpt.memory_bank import MemoryOptions


def good_pictures(model: Any, job: Job) -> tuple[Tensor, list[str]]:
    """float32 (N, 3, S, S) in 0..1 and the category of each: `job.shots` a category, fewer where train/good has fewer.

    Raises DataError for what is wrong with the data, JobError where no picture is asked for.
    """
    if job.shots < 1:
        raise JobError(f"shots is {job.shots}: the memory needs at least one good picture a category")
    return pictures_of(build_dataset(job, model, "train"), job.shots, job.seed)


def pictures_of(dataset: Any, shots: int, seed: int) -> tuple[Tensor, list[str]]:
    """`shots` good pictures a category of a training set, all where there are fewer, and the category of each."""
    found = {name: dataset.good_images(name, shots, seed=seed) for name in dataset.categories}
    names = [name for name, images in found.items() for _ in range(len(images))]
    return torch.cat(list(found.values())), names


def memory_of(model: Any, job: Job, device: torch.device, *, combination: str = "memory") -> Any:
    """The `core_model.anomalygpt.memory_bank.MemoryBank` of the job's shots, on `device`, with rotations by 0, 90, 180
    and 270 degrees. combination: ``memory`` (its map alone, the paper's) or ``both`` (added to the trained
    decoder's)."""
    images, names = good_pictures(model, job)
    return bank(model, images, names, device, combination=combination)


def bank(
    model: Any,
    images: Tensor,
    names: list[str],
    device: torch.device,
    *,
    combination: str = "memory",
    options: MemoryOptions | None = None,
) -> Any:
    """A memory bank of the given pictures (N, 3, S, S) and the category of each, made in evaluation mode. options: all
    that can be chosen of it (then `combination` is theirs)."""
    from core_model.anomalygpt.memory_bank import MemoryBank, MemoryOptions

    options = options or MemoryOptions(combination=combination)
    was_training = model.training
    model.eval()
    try:
        return MemoryBank.build(model, images.to(device), names, options=options)
    finally:
        model.train(was_training)
