"""What the memory formula and the time formula must know of a model, whatever kind it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of one model with one worker's micro-batch.

    trained: trained parameters. frozen_bytes: of frozen weights and buffers, as they are stored. block: trained
    parameters of the largest block that FSDP2 gathers at once. table: elements of the largest trained tensor.
    forward_bytes: what lives from the forward pass until the backward pass has used it, casts of weights included.
    """

    trained: int
    frozen_bytes: float = 0.0
    block: int = 0
    table: int = 0
    forward_bytes: float = 0.0
