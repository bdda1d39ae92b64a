"""Where a step goes: data, forward, backward, the exchange that is not hidden, the update; the same for every engine.

No engine cooperates: the marks are set by PyTorch's own hooks on the model and on whatever optimizer steps, so that no
engine is measured by its own, kinder clock. On sampled steps only; on the others nothing is registered or costs.

    step begins .. forward begins          data        waiting for the batch and moving it to the device
    forward begins .. forward ends         forward     summed over the micro-batches
    forward ends .. last own gradient      backward    summed over the micro-batches
    last own gradient .. update begins     exchange    what was not hidden behind backward, waiting for slower ranks,
                                                       and gradient clipping
    update begins .. update ends           optimizer
    update ends .. step ends               other       of ZeRO 1 and 2 the gathering of the updated weights

Where an engine keeps its gradients outside autograd's leaves (FSDP2), the last gradient cannot be seen: backward then
holds the exchange, and the row says so (`exchange_in_backward`). On CUDA the marks are events in the compute stream.

Beside them, what the processor worked in the thread that runs forward, and in the one that runs backward between its
first and last own gradient (`forward_cpu_s`, `backward_cpu_s`). Where these come near the parts' own times on a GPU,
the GPU waits for its host to launch kernels, or the host for a queue full of launches: the GPU's own times on other
ranks tell which. Where one rank's are longer than another's for the same work, its core is slower or shared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from core_model.training.clock import Clock

_MIB = 2**20


@dataclass
class _Marks:
    """Marks of one sampled step, in the order in which they were set."""

    step: int
    begin: Any
    passes: list[list[Any]] = field(default_factory=list)  # per micro-batch: forward begins, ends, last gradient
    forward_cpu: list[float] = field(default_factory=list)  # CPU time of the thread: forward begins, ends, begins, ...
    backward_cpu: list[tuple[float, float]] = field(default_factory=list)  # per micro-batch: first, last gradient
    update_begin: Any = None
    update_end: Any = None
    end: Any = None


class StepSplit:
    """Splits every `every`-th step from `first` on. Call `before_step` and `after_step` on each rank around each step
    and `rows` after the last one.

    model: the raw module that the engine calls in the end.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device, *, every: int = 5, first: int = 0) -> None:
        if every < 1:
            raise ValueError(f"every is {every}: it must be at least 1")
        self._model, self._clock = model, Clock(device)
        self._every, self._first = every, first
        self._done: list[_Marks] = []
        self._now: _Marks | None = None
        self._handles: list[Any] = []
        self._kinds: dict[str, float] | None = None
        self.cost_s = 0.0  # host time spent in the hooks and in (un)registering them

    def before_step(self, step: int) -> None:
        """Begins the sampling of `step` where its turn has come."""
        if step >= self._first and (step - self._first) % self._every == 0:
            started = time.perf_counter()
            self._attach()
            self.cost_s += time.perf_counter() - started
            self._now = _Marks(step=step, begin=self._clock.mark())

    def after_step(self, _step: int) -> None:
        """Ends the sampling of the step."""
        if self._now is None:
            return
        started = time.perf_counter()
        self._now.end = self._clock.mark()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._done.append(self._now)
        self._now = None
        self.cost_s += time.perf_counter() - started

    def rows(self) -> list[dict[str, Any]]:
        """One row a sampled step of this rank, seconds. Waits for the device."""
        self._clock.settle()
        return [row for marks in self._done if (row := self._row(marks)) is not None]

    def memory_kinds(self) -> dict[str, float] | None:
        """MiB of this rank's weights, gradients and optimizer state (with the fp32 masters) as they were at the first
        sampled update; None if there was none. ZeRO-1 has dropped the gradients of others' partitions by then."""
        return None if self._kinds is None else {name: size / _MIB for name, size in self._kinds.items()}

    # -- hooks -------------------------------------------------------------------------------------------------------
    def _attach(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        handles = [
            self._model.register_forward_pre_hook(self._forward_begins),
            self._model.register_forward_hook(self._forward_ends),
            register_optimizer_step_pre_hook(self._update_begins),
            register_optimizer_step_post_hook(self._update_ends),
        ]
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(self._gradient))
        self._handles = handles

    def _forward_begins(self, *_: Any) -> None:
        if self._now is not None:
            self._now.passes.append([self._clock.mark(), None, None])
            self._now.forward_cpu.append(time.thread_time())

    def _forward_ends(self, *_: Any) -> None:
        if self._now is not None and self._now.passes:
            self._now.passes[-1][1] = self._clock.mark()
            self._now.forward_cpu.append(time.thread_time())

    def _gradient(self, _: Any) -> None:
        """In the thread that runs backward: on CUDA one of autograd's own."""
        if self._now is not None and self._now.passes:
            now, cpu = self._now, time.thread_time()
            now.passes[-1][2] = self._clock.mark()
            if len(now.backward_cpu) < len(now.passes):
                now.backward_cpu.append((cpu, cpu))
            else:
                now.backward_cpu[-1] = (now.backward_cpu[-1][0], cpu)

    def _update_begins(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._now is None:
            return
        if self._now.update_begin is None:  # a wrapped optimizer calls the hook twice, a partitioned one once a group
            self._now.update_begin = self._clock.mark()
        if self._kinds is None:
            self._kinds = {"weights": _weights(self._model), "gradients": _gradients(self._model, optimizer)}

    def _update_ends(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._now is None:
            return
        self._now.update_end = self._clock.mark()
        if self._kinds is not None and "optimizer" not in self._kinds:
            self._kinds["optimizer"] = _optimizer_state(self._model, optimizer)

    # -- reading -----------------------------------------------------------------------------------------------------
    def _row(self, marks: _Marks) -> dict[str, Any] | None:
        """None for a step that never got to its update (an overflow that the engine skipped)."""
        passes = marks.passes
        if not passes or marks.update_begin is None or marks.update_end is None or any(p[1] is None for p in passes):
            return None
        seconds = self._clock.seconds
        unseen = passes[-1][2] is None
        forward = backward = exchange = 0.0
        for index, (begins, ends, gradient) in enumerate(passes):
            next_begins = passes[index + 1][0] if index + 1 < len(passes) else marks.update_begin
            last = gradient if gradient is not None else next_begins
            forward += seconds(begins, ends)
            backward += seconds(ends, last)
            exchange += seconds(last, next_begins)
        row: dict[str, Any] = {
            "step": marks.step,
            "data_s": seconds(marks.begin, passes[0][0]),
            "forward_s": forward,
            "backward_s": backward,
            "exchange_s": max(0.0, exchange),
            "optimizer_s": seconds(marks.update_begin, marks.update_end),
            "other_s": seconds(marks.update_end, marks.end),
            "forward_cpu_s": sum(marks.forward_cpu[1::2]) - sum(marks.forward_cpu[::2]),
        }
        if unseen:
            return row | {"exchange_in_backward": True}
        return row | {"backward_cpu_s": sum(last - first for first, last in marks.backward_cpu)}


def _weights(model: torch.nn.Module) -> float:
    """Bytes of the parameters and buffers that this rank holds, shared storage counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    return _bytes([_local(tensor) for tensor in tensors])


def _gradients(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Bytes of the gradients held by the model's parameters and by the optimizer's (a partition of its own in ZeRO)."""
    parameters = [*model.parameters(), *_optimized(optimizer)]
    return _bytes([_local(p.grad) for p in parameters if p.grad is not None])


def _optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Bytes of the optimizer's state and of the copies of the weights that only it holds (fp32 masters)."""
    own = {_local(p).untyped_storage().data_ptr() for p in model.parameters()}
    state = [value for per in optimizer.state.values() for value in per.values() if isinstance(value, torch.Tensor)]
    masters = [p for p in _optimized(optimizer) if _local(p).untyped_storage().data_ptr() not in own]
    return _bytes([_local(tensor) for tensor in [*state, *masters]])


def _optimized(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _local(tensor: Any) -> torch.Tensor:
    """This rank's part of a sharded tensor (DTensor; ZeRO-3 keeps it in ds_tensor)."""
    if hasattr(tensor, "ds_tensor"):
        return tensor.ds_tensor
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _bytes(tensors: list[torch.Tensor]) -> float:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
    return float(sum(storages.values()))
