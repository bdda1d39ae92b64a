"""Frozen parts as CUDA graphs: one launch instead of thousands.

A frozen transformer does the same kernels on the same weights in every step. Launched one by one they cost the host
more than the GPU: `small` needs 2,750 kernels a step, 94 ms of launching for 37 ms of computing (H100, batch 64; 123 ms
a step were 40 ms with graphs). Captured once for each shape and replayed
(https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), they cost one launch.

Memory: all graphs of a part share one pool, and all passes before a capture run on one stream. PyTorch keeps what a
stream has freed for that stream alone: with a stream for each capture, a shape's activations (13 GiB of
`anomalygpt-7b`) would be kept once more for each.

Only where that is sound: on CUDA, in training, with weights that are frozen, whole and in place (ZeRO-3 and FSDP2 take
them away between uses), without autocast or hooks. Everywhere else the part runs as it always did; the arithmetic is
the same kernels either way.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

WARMUP = 3  # passes before the capture: cuBLAS and cuDNN choose their kernels and workspaces there
SHAPES = 16  # graphs kept of one part; a further shape runs without


@dataclass(kw_only=True)
class _Captured:
    """One shape's graphs with their fixed buffers. others: of the tensors beside the first, which have no gradient."""

    forward: Any
    given: Tensor
    made: tuple[Tensor, ...]
    others: tuple[Tensor, ...] = ()
    backward: Any = None
    made_grad: Tensor | None = None
    given_grad: Tensor | None = None
    passes: int = 0  # forward replays: the buffers are those of the last one

    def fill(self, x: Tensor, others: tuple[Any, ...]) -> None:
        """Copies what a call was given into the buffers."""
        self.given.copy_(x)
        for buffer, other in zip(self.others, _tensors(others), strict=True):
            buffer.copy_(other)


class _Open:
    """A forward pass whose backward may still come: it lives as long as autograd's record of the pass."""


class GraphedPart:
    """``part(x, *others)`` by graphs where they can be used.

    owner: the frozen module whose weights `run` uses. run: a tensor in, tensors out (one, if `gradient`). gradient:
    whether the gradient flows back to the input; its graph is captured too. others: what `run` takes beside the tensor:
    tensors without gradient, copied into buffers of the graph, and constants, which are part of a graph (each value has
    one of its own). The outputs are the graph's own buffers: they hold until the next call, which a training step
    (forward, backward, forward ...) never outlives. A second forward before the first one's backward runs without the
    graph; a first one that died (an exception between the two, a lost peer) is not waited for.
    """

    def __init__(self, owner: nn.Module, run: Callable[..., tuple[Tensor, ...]], *, gradient: bool) -> None:
        self._owner, self._run, self._gradient = owner, run, gradient
        self._captured: dict[tuple[Any, ...], _Captured] = {}
        self._state: tuple[Any, ...] = ()
        self._pool: Any = None
        self._open: weakref.ref[_Open] | None = None
        self.replays = 0
        self.captures = 0  # graphs captured so far, those of weights that were replaced among them

    @property
    def awaits_backward(self) -> bool:
        """Whether a backward pass may still need the buffers. One that never comes (its step died, its loss was thrown
        away) is not waited for longer than autograd keeps its record."""
        return self._open is not None and self._open() is not None

    def _began(self) -> _Open:
        """Notes a forward pass; the caller keeps what is returned until its backward."""
        passing = _Open()
        self._open = weakref.ref(passing)
        return passing

    def _ended(self) -> None:
        self._open = None

    def __call__(self, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        captured = self._found(x, others)
        if captured is None:
            return self._run(x, *others)
        self.replays += 1
        if self._gradient:
            return (_Replay.apply(x, captured, self, others),)
        captured.fill(x, others)
        captured.forward.replay()
        return captured.made

    def clear(self) -> None:
        """Forgets all graphs: the weights lie elsewhere now."""
        self._captured.clear()
        self._state = ()

    def capture(self, x: Tensor, *others: Any) -> bool:
        """Captures now what calls with such arguments will replay, so that no training step has to. Returns whether
        there is a graph for them."""
        return self._found(x, others) is not None

    def capture_all(self, calls: Sequence[tuple[Any, ...]]) -> None:
        """`capture` for each of `calls`, the largest first: all passes that come before a capture, then, with their
        memory given back, all captures. So no more is needed at once than the largest needs."""
        new = [call for call in calls if self._usable(call[0]) and _key(*call) not in self._captured]
        new = new[: max(0, SHAPES - len(self._captured))]
        for x, *others in new:
            self._warm(x, others)
        if new:
            torch.cuda.empty_cache()
        for x, *others in new:
            self._found(x, tuple(others), warmed=True)

    def _found(self, x: Tensor, others: tuple[Any, ...], *, warmed: bool = False) -> _Captured | None:
        """The graphs for these arguments, captured here where they are new; None where none can be used."""
        if not self._usable(x):
            return None
        key = _key(x, *others)
        captured = self._captured.get(key)
        if captured is None and len(self._captured) < SHAPES:
            if not warmed:
                self._warm(x, others)
            captured = self._captured[key] = self._capture(x, others)
            self.captures += 1
        return captured

    @staticmethod
    def _on_gpu(x: Tensor) -> bool:
        return x.is_cuda and not torch.is_autocast_enabled("cuda") and not torch.cuda.is_current_stream_capturing()

    def _usable(self, x: Tensor) -> bool:
        if not self._on_gpu(x):
            return False
        if self._gradient and (not torch.is_grad_enabled() or not x.requires_grad or self.awaits_backward):
            return False
        weights = tuple(self._owner.parameters())
        first, last = weights[0], weights[-1]
        # moved, recast or newly loaded weights are other tensors, or the same with a higher version: look again
        state = (first.data_ptr(), last.data_ptr(), first.dtype, sum(weight._version for weight in weights))
        if state != self._state:
            self._captured.clear()
            self._pool = None  # a pool lives as long as its graphs
            self._state = state
            self._plain = all(type(w) is nn.Parameter and not w.requires_grad and w.numel() for w in weights)
        return self._plain and not any(m._forward_hooks or m._forward_pre_hooks for m in self._owner.modules())

    def _buffers(self, x: Tensor, others: Sequence[Any]) -> tuple[Tensor, tuple[Any, ...]]:
        """Copies of a call's tensors, the first with a gradient where it is to have one; constants as they are."""
        given = x.detach().clone().requires_grad_(self._gradient)
        return given, tuple(other.clone() if isinstance(other, Tensor) else other for other in others)

    def _warm(self, x: Tensor, others: Sequence[Any]) -> None:
        """The passes before a capture."""
        given, fixed = self._buffers(x, others)
        stream = _stream(x.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.set_grad_enabled(self._gradient):
            for _ in range(WARMUP):
                made = self._run(given, *fixed)
                if self._gradient:
                    torch.autograd.grad(made[0], given, torch.ones_like(made[0]))
            del made
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()

    def _capture(self, x: Tensor, others: tuple[Any, ...]) -> _Captured:
        """The graphs for such arguments. thread_local: other threads (loader, collectives) may use CUDA meanwhile."""
        given, fixed = self._buffers(x, others)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        forward = torch.cuda.CUDAGraph()
        mode = {"pool": self._pool, "stream": _stream(x.device), "capture_error_mode": "thread_local"}
        with torch.set_grad_enabled(self._gradient), torch.cuda.graph(forward, **mode):
            made = self._run(given, *fixed)
        captured = _Captured(forward=forward, given=given, made=made, others=_tensors(fixed))
        if self._gradient:
            captured.made_grad = torch.zeros_like(made[0])
            captured.backward = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured.backward, **mode):
                (captured.given_grad,) = torch.autograd.grad(made[0], given, captured.made_grad)
            captured.made = (made[0].detach(),)
        torch.cuda.synchronize()
        return captured


def _key(x: Tensor, *others: Any) -> tuple[Any, ...]:
    """What calls must share to share a graph."""
    shapes = ((tuple(o.shape), o.dtype) if isinstance(o, Tensor) else o for o in others)
    return (tuple(x.shape), x.dtype, x.device, *shapes)


@cache
def _stream(device: torch.device) -> Any:
    """The stream on which this process prepares and captures its graphs on `device`."""
    return torch.cuda.Stream(device)


def _tensors(values: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return tuple(value for value in values if isinstance(value, Tensor))


class _Replay(torch.autograd.Function):
    """Replays the forward graph, and the backward graph when the gradient comes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, captured: _Captured, part: GraphedPart, others: tuple[Any, ...]) -> Tensor:
        captured.passes += 1
        ctx.captured, ctx.part, ctx.number, ctx.open = captured, part, captured.passes, part._began()
        with torch.no_grad():
            captured.fill(x, others)
        captured.forward.replay()
        return captured.made[0].detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        captured = ctx.captured
        if ctx.number != captured.passes:
            raise RuntimeError("a second backward pass through a CUDA graph whose buffers another pass has taken")
        ctx.part._ended()
        captured.made_grad.copy_(gradient)
        captured.backward.replay()
        return captured.given_grad.detach(), None, None, None
