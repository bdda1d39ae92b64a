"""Elastic Horovod: training that survives a lost worker and takes in new ones.

``horovodrun --min-np A --max-np B --host-discovery-script S`` starts and stops workers; `train` is what each of them
runs after `HorovodBackend.prepare`. State is committed to host memory every few steps. When a worker dies, the others
go back to the last commit, form a new world, take the new rank 0's state, and go on from there; when hosts appear or
leave, this happens right after a commit, so that nothing is repeated.

The global batch of a step stays the same whatever the world: ranks share its samples as evenly as they can, and each
sample keeps its weight (`part`), so the weights are those of an unbroken run up to rounding.

Horovod's own TorchState is not used: its optimizer handler broadcasts through ``broadcast_optimizer_state``, which
takes a step with zero gradients on a fresh optimizer (see backends.horovod.backend).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from backends.base import BackendError, StepReport
from backends.horovod.backend import HorovodBackend

# (step, rank, world size) -> this rank's micro-batches and how many samples each holds
ElasticBatches = Callable[[int, int, int], tuple[Sequence[Any], Sequence[int]]]


def part(total: int, index: int, parts: int) -> range:
    """Part `index` of `total` samples split into `parts` contiguous parts whose sizes differ by at most one."""
    size, rest = divmod(total, parts)
    start = index * size + min(index, rest)
    return range(start, start + size + (index < rest))


def micro_parts(global_batch: int, *, rank: int, world_size: int, accumulation: int) -> list[range]:
    """The sample positions of this rank's micro-batches. Raises BackendError where one would be empty."""
    if global_batch < world_size * accumulation:
        raise BackendError(
            f"a global batch of {global_batch} has no sample for each of {world_size} workers x {accumulation} "
            f"accumulation steps: use --max-np {max(1, global_batch // accumulation)} or a larger batch"
        )
    shares = world_size * accumulation
    return [part(global_batch, rank * accumulation + index, shares) for index in range(accumulation)]


@dataclass(frozen=True, kw_only=True)
class ElasticSummary:
    """How an elastic training went, the same on every rank.

    Args:
        steps: finished optimizer steps.
        worlds: (first step, world size) of each world that trained, in order.
        replayed: steps that were trained again after a worker was lost.
    """

    steps: int
    worlds: list[tuple[int, int]] = field(default_factory=list)
    replayed: int = 0


def train(
    backend: HorovodBackend,
    batches: ElasticBatches,
    *,
    steps: int,
    commit_every: int = 10,
    on_step: Callable[[int, StepReport], None] | None = None,
    on_world: Callable[[int, int], None] | None = None,
) -> ElasticSummary:
    """Trains on the workers that there are. Call it before any other collective of the job.

    Args:
        backend: prepared.
        batches: makes any rank's micro-batches of any step.
        steps: optimizer steps in all.
        commit_every: steps between the states that a lost worker costs at most.
        on_step: called on every rank after a step with its number; a number comes again when its step is replayed.
        on_world: called on every rank when a world begins, with the next step and the world size; records of later
            steps are void then.

    Raises:
        BackendError: where the job is not elastic, or a setting cannot be used in such a job.
    """
    _check_elastic(backend)
    import horovod.torch as hvd

    state = _make_state(backend, hvd)

    @hvd.elastic.run
    def go_on(state: Any) -> None:
        state.begin_world()
        if on_world is not None:
            on_world(backend.step, backend.world_size)
        while backend.step < steps:
            step = backend.step
            micro_batches, counts = batches(step, backend.rank, backend.world_size)
            report = backend.weighted_step(micro_batches, counts)
            state.reached = max(state.reached, step + 1)
            if on_step is not None:
                on_step(step, report)
            if backend.step % commit_every == 0 and backend.step < steps:
                state.commit()

    go_on(state)
    return ElasticSummary(steps=backend.step, worlds=list(state.worlds), replayed=state.replayed)


def _check_elastic(backend: HorovodBackend) -> None:
    """Raises BackendError for a job that `train` cannot train."""
    if not backend.elastic:
        raise BackendError(
            "this is not an elastic job: start it with horovodrun --min-np, --max-np and a discovery script"
        )
    if backend.settings.num_groups:
        raise BackendError(
            "horovod: num_groups broadcasts while it prepares, which an elastic job cannot: leave it at 0"
        )


def _make_state(backend: HorovodBackend, hvd: Any) -> Any:
    """What Horovod's elastic loop saves, restores and synchronizes (horovod.common.elastic.State)."""
    from horovod.common.elastic import State

    class BackendState(_Commits, State):
        """`_Commits` as Horovod's loop wants it."""

        def __init__(self) -> None:
            State.__init__(self, bcast_object=backend.broadcast, get_rank=hvd.rank)
            _Commits.__init__(self, backend, hvd)

    return BackendState()


class _Commits:
    """The backend's whole state and the history of worlds. The methods are those of Horovod's State."""

    def __init__(self, backend: HorovodBackend, hvd: Any) -> None:
        self._backend, self._hvd = backend, hvd
        self.worlds: list[tuple[int, int]] = []
        self.replayed = 0
        self.reached = 0  # the furthest step trained, committed or not
        self.save()

    def save(self) -> None:
        """A copy in host memory, of all of it: a second set of moments on the GPU would be twice the weights."""
        self._saved = host_copy(self._backend.state())

    def restore(self) -> None:
        """Back to the last copy; also clears what Horovod's optimizer holds of a step that was cut."""
        self._backend.load_state(host_copy(self._saved))

    def sync(self) -> None:
        """Rank 0's state on every rank: objects first, then tensors as tensors."""
        backend = self._backend
        backend.broadcast_weights(backend.model)
        skeleton, tensors = _taken_apart(backend.state())
        skeleton, self.worlds, self.replayed, self.reached = backend.broadcast(
            (skeleton, self.worlds, self.replayed, self.reached)
        )
        if backend.rank != 0:
            tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in _tensors_of(skeleton)]
        for index, tensor in enumerate(tensors):
            if tensor.numel():
                self._hvd.broadcast_(tensor, root_rank=0, name=f"elastic.state.{index}")
        if backend.rank != 0:
            backend.load_state(_put_together(skeleton, iter(tensors)))
        self.save()

    def reset(self) -> None:
        """After Horovod formed a new world: ranks have changed, and collectives are counted anew."""
        self._backend.join_world()

    def begin_world(self) -> None:
        """Notes the world that starts at the backend's step."""
        backend = self._backend
        backend.join_world()
        self.replayed += max(0, self.reached - backend.step)
        self.reached = backend.step
        if not self.worlds or self.worlds[-1][1] != backend.world_size:
            self.worlds = [*self.worlds, (backend.step, backend.world_size)]


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """The place of a tensor in a state that travels without its tensors."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def host_copy(value: Any) -> Any:
    """`value` with a copy of each of its tensors in host memory, which shares nothing with the original."""
    if torch.is_tensor(value):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: host_copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(host_copy(item) for item in value)
    return value


def _taken_apart(value: Any) -> tuple[Any, list[torch.Tensor]]:
    """`value` with its tensors replaced by `_Tensor`, and the tensors in the order of a depth-first walk."""
    tensors: list[torch.Tensor] = []

    def walk(node: Any) -> Any:
        if torch.is_tensor(node):
            tensors.append(node.detach().cpu().contiguous())
            return _Tensor(shape=tuple(node.shape), dtype=node.dtype)
        if isinstance(node, dict):
            return {key: walk(item) for key, item in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(walk(item) for item in node)
        return node

    return walk(value), tensors


def _tensors_of(skeleton: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    if isinstance(skeleton, _Tensor):
        return [(skeleton.shape, skeleton.dtype)]
    children = (
        skeleton.values() if isinstance(skeleton, dict) else skeleton if isinstance(skeleton, (list, tuple)) else ()
    )
    return [found for child in children for found in _tensors_of(child)]


def _put_together(skeleton: Any, tensors: Any) -> Any:
    if isinstance(skeleton, _Tensor):
        return next(tensors)
    if isinstance(skeleton, dict):
        return {key: _put_together(item, tensors) for key, item in skeleton.items()}
    if isinstance(skeleton, (list, tuple)):
        return type(skeleton)(_put_together(item, tensors) for item in skeleton)
    return skeleton
