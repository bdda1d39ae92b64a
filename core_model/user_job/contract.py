"""What a user's ``make_job`` returns. No torch here: a user's file brings its own imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A training job of yours, as the harness trains it on every engine.

    Args:
        module: on the CPU, its trainable parameters in float32. ``module(batch)`` returns the loss: a 0-dim tensor, a
            mapping with the key ``loss``, or an object with the attribute ``loss``. It is the MEAN over the samples of
            the batch of a loss per sample: only then do all ways to split a global batch give the same gradient.
        dataset: map-style: ``len(dataset)`` and ``dataset[index]``, the same sample whenever it is read. Where it has a
            method ``get(index, epoch)``, that is called instead (augmentation that changes with the epoch).
        collate: ``collate(samples)`` makes a batch of one or more samples: tensors in any nesting of dict, list, tuple.
        evaluate: ``evaluate(module)`` returns figures by name; called once after training on every rank, in evaluation
            mode and without gradients, on the device. Rank 0's figures are recorded.
        optimizer: what you would train with, by the names of the job's options: ``{"lr": 3e-4, "weight_decay": 0.1}``.
            The harness says where the job differs; the options decide.
        facts: further facts for the record (JSON types).
    """

    module: nn.Module
    dataset: Any
    collate: Callable[[Sequence[Any]], Any]
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
