"""What travels from the data to the model: `Sample` (one picture with its conversation) and `Batch` (several)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch


def unit_range(images: torch.Tensor) -> torch.Tensor:
    """float32 pixels in [0, 1] of uint8 (0..255) or floating (in [0, 1] already) ones, on the device where they are.

    Pictures are made, sent between processes and copied to the GPU as bytes: a quarter of the traffic, and nothing for
    the host to convert.
    """
    return images.float().div_(255.0) if images.dtype == torch.uint8 else images.float()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture with its defect mask and its conversation.

    Args:
        id: unique and stable in the data set (``train/good/000#3`` is the 4th simulated variant of a file); metrics
            drop repeats by it.
        image: (3, S, S), uint8 0..255 as the data sets give it, or floating in [0, 1]; not normalized (the encoder does
            that, on its device).
        mask: (1, S, S), uint8 or floating, 1 = defect.
        turns: (question, answer) pairs; the loss is on answers only.
        place: name of the 3x3 grid cell(s) of the defect ("" = none).
        kind: defect kind ("good", "blowhole", "poisson", ...).
        has_mask: False where the picture is defective and nobody has drawn the defect: `mask` is empty then, `place`
            "", and neither says anything.
    """

    id: str
    category: str
    image: torch.Tensor
    mask: torch.Tensor
    is_defective: bool
    turns: tuple[tuple[str, str], ...]
    place: str = ""
    kind: str = "good"
    has_mask: bool = True


class TensorBatch:
    """What the training loop does to the tensors of any batch, whatever holds them."""

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same batch with `change` done to every tensor."""
        raise NotImplementedError

    def double(self) -> Self:
        """The same batch with its floating-point tensors in fp64, for controls of rounding."""
        return self._map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def pin_memory(self) -> Self:
        """Called by torch's DataLoader where ``pin_memory=True``."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tells CUDA's allocator that `stream` uses the tensors, which another stream has made."""

        def record(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(record)


@dataclass(frozen=True, kw_only=True)
class Batch(TensorBatch):
    """B samples, stacked. The model puts the embeddings of picture and prompts before the tokens.

    Args:
        token_ids: int64 (B, T) question and answer tokens padded on the right with the pad id.
        labels: int64 (B, T), -100 where there is no loss (everything but the answers).
        lengths: int64 (B,) true lengths.
        extras: anything else; tensors in it move with the batch (the collator leaves the answers' places there).
    """

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    images: torch.Tensor  # (B, 3, S, S) uint8 0..255, or floating in [0, 1]
    masks: torch.Tensor  # (B, 1, S, S) uint8 or floating, 1 = defect
    is_defective: torch.Tensor  # (B,) bool
    token_ids: torch.Tensor  # (B, T) int64
    labels: torch.Tensor  # (B, T) int64
    lengths: torch.Tensor  # (B,) int64
    samples: Sequence[Sample] = field(default=(), repr=False)
    extras: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device` (non-blocking where the memory is pinned)."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same batch with `change` done to every tensor, those in `extras` too."""
        names = ("images", "masks", "is_defective", "token_ids", "labels", "lengths")
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        extras = {k: change(v) if isinstance(v, torch.Tensor) else v for k, v in self.extras.items()}
        return replace(self, extras=extras, **changed)
