"""How many bytes a step exchanges: counted where an engine hands tensors to its collectives, and by theory.

Payload = bytes of the tensor that is reduced (or of the whole that is gathered). Wire = bytes one rank SENDS under a
ring algorithm (`mpi.ring`): 2(n-1)/n x payload for an all-reduce, (n-1)/n for a reduce-scatter or an all-gather.
Counting costs a Python call a collective: never in a timed region.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mpi.ring import sent_share


@dataclass
class Exchange:
    """Calls and payload bytes by collective, since counting began."""

    calls: dict[str, int] = field(default_factory=dict)
    payload: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, nbytes: int, calls: int = 1) -> None:
        self.calls[kind] = self.calls.get(kind, 0) + calls
        self.payload[kind] = self.payload.get(kind, 0) + nbytes

    def wire_bytes(self, world_size: int) -> float:
        """Bytes one rank sends under ring algorithms."""
        return sum(sent_share(kind, world_size) * nbytes for kind, nbytes in self.payload.items())

    def to_dict(self, world_size: int) -> dict[str, Any]:
        return {
            "calls": dict(self.calls),
            "payload_bytes": dict(self.payload),
            "wire_bytes": self.wire_bytes(world_size),
        }


# ProcessGroup method -> (collective, argument that holds the whole tensor). torch 2.13 renamed the *_base methods.
_METHODS = {
    "allreduce": ("all_reduce", 0),
    "allreduce_coalesced": ("all_reduce", 0),
    "reduce": ("reduce", 0),
    "broadcast": ("broadcast", 0),
    "allgather": ("all_gather", 0),
    "allgather_coalesced": ("all_gather", 0),
    "_allgather_base": ("all_gather", 0),
    "all_gather_single": ("all_gather", 0),
    "allgather_into_tensor_coalesced": ("all_gather", 0),
    "all_gather_single_coalesced": ("all_gather", 0),
    "reduce_scatter": ("reduce_scatter", 1),
    "_reduce_scatter_base": ("reduce_scatter", 1),
    "reduce_scatter_single": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 1),
    "reduce_scatter_single_coalesced": ("reduce_scatter", 1),
    "alltoall_base": ("all_to_all", 1),
    "all_to_all_single": ("all_to_all", 1),
}


def _nbytes(value: Any) -> int:
    if torch.is_tensor(value):
        return value.numel() * value.element_size()
    return sum(map(_nbytes, value)) if isinstance(value, (list, tuple)) else 0


@contextlib.contextmanager
def counting_torch() -> Iterator[Exchange]:
    """Counts what Python code hands to torch process groups (DeepSpeed, FSDP2). DDP's reducer is C++ and not seen."""
    from torch.distributed import ProcessGroup

    exchange, saved = Exchange(), {}
    for name, (kind, position) in _METHODS.items():
        if name not in vars(ProcessGroup):
            continue
        saved[name] = vars(ProcessGroup)[name]  # pybind's descriptor itself: getattr would give an unbound function
        setattr(ProcessGroup, name, _counted(getattr(ProcessGroup, name), kind, position, exchange))
    try:
        yield exchange
    finally:
        for name, original in saved.items():
            setattr(ProcessGroup, name, original)


def _counted(original: Any, kind: str, position: int, exchange: Exchange) -> Any:
    def call(group: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) > position:
            exchange.add(kind, _nbytes(args[position]))
        return original(group, *args, **kwargs)

    return call


@contextlib.contextmanager
def counting_horovod() -> Iterator[Exchange]:
    """Counts the gradients (after compression) that Horovod's optimizer hands over."""
    import horovod.torch.optimizer as module

    exchange = Exchange()
    single, grouped = module.allreduce_async_, module.grouped_allreduce_async_

    def one(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        exchange.add("all_reduce", _nbytes(tensor))
        return single(tensor, *args, **kwargs)

    def several(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        exchange.add("all_reduce", sum(_nbytes(t) for t in tensors))
        return grouped(tensors, *args, **kwargs)

    module.allreduce_async_, module.grouped_allreduce_async_ = one, several
    try:
        yield exchange
    finally:
        module.allreduce_async_, module.grouped_allreduce_async_ = single, grouped


def expected_bytes(
    description: Mapping[str, Any],
    *,
    world_size: int,
    gradient_bytes: int,
    weight_bytes: int,
    gathered_bytes: int | None = None,
) -> float:
    """Bytes one rank must send in one step, from what `Backend.describe` says.

    Args:
        gradient_bytes: the trainable gradients in their wire type.
        weight_bytes: the trainable weights in the type they are gathered in (ZeRO-1/2).
        gathered_bytes: all weights that ZeRO-3 / FSDP2 gathers before use (frozen ones too where they are sharded;
            default: weight_bytes).

    Returns:
        Bytes under ring algorithms. ZeRO-1 and 2: reduce-scatter of gradients + all-gather of weights = an all-reduce;
        ZeRO-2 repeats the reduce-scatter every micro-batch. ZeRO-3 gathers forward and backward every micro-batch, so
        3x (Rajbhandari et al., 2020, section 7).
    """
    share, micro = sent_share("all_gather", world_size), int(description.get("accumulation", 1))
    gathered = weight_bytes if gathered_bytes is None else gathered_bytes
    engine, stage = description["engine"], description.get("zero_stage")
    if engine == "single":
        return 0.0
    if engine == "fsdp2":
        gathers = 2 if description.get("reshard_after_forward", True) else 1
        return share * (gathers * micro * gathered + gradient_bytes)
    if engine == "deepspeed" and stage == 3:
        return share * micro * (2 * gathered + gradient_bytes)
    if engine == "deepspeed" and stage in (1, 2):
        return share * ((micro if stage == 2 else 1) * gradient_bytes + weight_bytes)
    return sent_share("all_reduce", world_size) * gradient_bytes
