"""Bytes that live beside a model's weights and gradients while it trains a batch, by watching every storage.

It works on real and on fake tensors alike (shapes without memory), where an allocator would have nothing to count.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts storages from the operation that makes them until nothing refers to them. peak: bytes at the highest
    moment, without those that were there before and without gradients of parameters."""

    def __init__(self, own: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._known = {_key(tensor) for tensor in own}
        self._sizes: dict[int, int] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return made

    def forget(self, gradient: torch.Tensor) -> None:
        """Takes a parameter's gradient out of the count: engines hold those in their own ways."""
        key = _key(gradient)
        self._now -= self._sizes.pop(key, 0)
        self._known.add(key)

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = _key(tensor)
        if key in self._known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self._now += self._sizes[key]
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._freed, key).atexit = False

    def _freed(self, key: int) -> None:
        self._known.discard(key)
        self._now -= self._sizes.pop(key, 0)


@contextlib.contextmanager
def live_bytes(model: torch.nn.Module, trained: Sequence[torch.nn.Parameter]) -> Iterator[Live]:
    """Counts what is done inside, gradients of `trained` left out."""
    live = Live([*model.parameters(), *model.buffers()])

    def accumulated(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        live.forget(parameter.grad)

    hooks = [parameter.register_post_accumulate_grad_hook(accumulated) for parameter in trained]
    try:
        with live:
            yield live
    finally:
        for hook in hooks:
            hook.remove()


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
