"""Who sees which sample when: `GlobalBatches` fixes the order, `BatchLoader` delivers one rank's share of it.

The order is a property of the job (number of samples, global batch, seed), not of the engine or the world size; that is
what lets runs on different engines and worker counts be compared step by step.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import forkserver
from typing import Any, NoReturn, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from core_model.batch import Batch, Sample
from core_model.data.errors import DataError

SampleRef = tuple[int, int]  # (index in the data set, epoch)
Collate = Callable[[Sequence[Sample]], Batch]


class SampleSource(Protocol):
    """What the loader needs of a data set."""

    ids: Sequence[str]

    def get(self, index: int, epoch: int) -> Sample: ...


class GlobalBatches:
    """The endless sequence of global batches: epoch after epoch, each a fresh permutation of all samples.

    A batch may straddle two epochs, so each sample is used exactly once an epoch whatever the batch size.

    Args:
        dataset: number of samples, or their ids (which then enter the fingerprint).
        groups: sizes of consecutive groups of samples that take turns, a whole batch each (pictures, then general
            conversations), each with epochs of its own; empty = one group.
    """

    def __init__(
        self, dataset: int | Sequence[str], *, global_batch: int, seed: int, groups: Sequence[int] = ()
    ) -> None:
        self._names = None if isinstance(dataset, int) else tuple(dataset)
        self.samples = dataset if isinstance(dataset, int) else len(dataset)
        self.global_batch, self.seed = global_batch, seed
        self.groups = tuple(groups) or (self.samples,)
        if sum(self.groups) != self.samples or min(self.groups) < min(1, self.samples):
            raise ValueError(f"groups {self.groups} do not divide {self.samples} samples")
        if self.samples < 1:
            raise DataError("the data set has no samples to train on")
        if global_batch < 1:
            raise DataError(f"global batch {global_batch}: it must be at least 1")
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def ids_of(self, step: int) -> list[SampleRef]:
        """(index, epoch) of the samples of optimizer step `step` (0-based), over all ranks."""
        group = step % len(self.groups)
        size, start = self.groups[group], sum(self.groups[:group])
        first = (step // len(self.groups)) * self.global_batch
        refs = []
        for position in range(first, first + self.global_batch):
            epoch, place = divmod(position, size)
            refs.append((start + int(self._order(group, epoch)[place]), epoch))
        return refs

    def rank_share(self, step: int, rank: int, world: int, accumulation: int = 1) -> list[list[SampleRef]]:
        """`accumulation` micro-batches for `rank`. Over all ranks and micro-batches they are `ids_of(step)`, each once.

        Micro-batch a of all ranks together is the a-th contiguous part of the global batch.
        """
        shares = world * accumulation
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not in 0..{world - 1}")
        if self.global_batch % shares:
            raise DataError(
                f"global batch {self.global_batch} cannot be split over {world} workers x {accumulation} accumulation "
                f"steps: use a multiple of {shares}"
            )
        refs, size = self.ids_of(step), self.global_batch // shares
        starts = [(part * world + rank) * size for part in range(accumulation)]
        return [refs[start : start + size] for start in starts]

    def fingerprint(self, steps: int) -> str:
        """sha256 of the order of the first `steps` steps: equal fingerprints, equal data in equal order."""
        digest = hashlib.sha256(f"{self.groups} {self.global_batch} {steps}\n".encode())
        for name in self._names or ():
            digest.update(f"{name}\n".encode())
        for step in range(steps):
            digest.update(np.asarray(self.ids_of(step), dtype="<i8").tobytes())
        return digest.hexdigest()

    def _order(self, group: int, epoch: int) -> np.ndarray:
        """int64 (samples of the group,): the permutation of one epoch. Only the last few are kept."""
        key = (group, epoch)
        found = self._orders.get(key)
        if found is None:
            found = np.random.default_rng([self.seed, epoch, group]).permutation(self.groups[group])
            while len(self._orders) > 3 * len(self.groups):
                self._orders.pop(next(iter(self._orders)))
            self._orders[key] = found
        return found


def start_server() -> None:
    """Starts the process from which loading processes are forked, which then imports what they need (5 s). The first
    loader would otherwise wait for it."""
    _context()
    forkserver.ensure_running()


def _context() -> Any:
    # forkserver: a fork of a process in which MPI, NCCL or OpenMP threads live can deadlock.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["core_model.data.batches"])  # import torch once, not once a worker
    return context


class BatchLoader:
    """Iterates over the optimizer steps ``start_step .. steps - 1``; each item is this rank's list of micro-batches.

    workers 0: one thread prepares up to `prefetch` steps ahead. workers > 0: that many processes do (torch's
    DataLoader), each a whole step at a time, in order. Which it is changes no value: samples depend on (seed, epoch,
    id) alone. An error while a sample is made is raised here, naming the sample; every wait ends after `timeout_s`.
    ``close`` (also called by leaving the iterator) stops thread or processes.
    """

    def __init__(
        self,
        dataset: SampleSource,
        plan: GlobalBatches,
        *,
        rank: int,
        world: int,
        accumulation: int = 1,
        start_step: int = 0,
        steps: int,
        collate: Collate,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        timeout_s: float = 300.0,
    ) -> None:
        if prefetch < 1:
            raise DataError(f"prefetch is {prefetch}: it must be at least 1 step")
        plan.rank_share(0, rank, world, accumulation)  # refuse a split that cannot work before anything starts
        self._steps = _Steps(dataset, plan, rank, world, accumulation, start_step, steps, collate)
        self._workers, self._prefetch = workers, prefetch
        self._pin_memory, self._timeout_s = pin_memory, timeout_s

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Batch]]:
        if self._workers > 0:
            return self._by_processes()
        return self._by_thread()

    def _by_processes(self) -> Iterator[list[Batch]]:
        loader: DataLoader[Any] = DataLoader(
            _InWorker(self._steps),
            batch_size=None,
            shuffle=False,
            num_workers=self._workers,
            prefetch_factor=self._prefetch,
            timeout=self._timeout_s,
            multiprocessing_context=_context(),
            collate_fn=_as_it_is,
            pin_memory=self._pin_memory,
        )
        iterator = iter(loader)
        try:
            for made in iterator:
                if isinstance(made, _Failure):
                    made.throw()
                yield made
        finally:
            shutdown = getattr(iterator, "_shutdown_workers", None)
            if shutdown is not None:
                shutdown()

    def _by_thread(self) -> Iterator[list[Batch]]:
        ready: queue.Queue[list[Batch] | _Failure | None] = queue.Queue(maxsize=self._prefetch)
        stop = threading.Event()

        def put(item: list[Batch] | _Failure | None) -> bool:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            for number in range(len(self._steps)):
                made = self._steps.attempt(number)
                if not isinstance(made, _Failure) and self._pin_memory:
                    made = [batch.pin_memory() for batch in made]
                if not put(made) or isinstance(made, _Failure):
                    return
            put(None)

        thread = threading.Thread(target=work, name="batch-loader", daemon=True)
        thread.start()
        try:
            while True:
                try:
                    made = ready.get(timeout=self._timeout_s)
                except queue.Empty:
                    raise DataError(
                        f"no batch for {self._timeout_s:g} s, the limit of one wait (--timeout): raise it where "
                        "samples take that long to make; else reading the data hangs (a lost network file system?)"
                    ) from None
                if made is None:
                    return
                if isinstance(made, _Failure):
                    made.throw()
                yield made
        finally:
            stop.set()
            thread.join(timeout=5.0)


class _Failure:
    """An error on its way from where samples are made to where they are used."""

    def __init__(self, error: Exception, sample: str) -> None:
        # DataErrors name their file already. Anything else is a bug of ours: keep its trace for the log.
        self.text = str(error) if isinstance(error, DataError) else f"sample {sample}: {type(error).__name__}: {error}"
        self.is_data = isinstance(error, DataError)
        self.trace = "".join(traceback.format_exception(error))

    def throw(self) -> NoReturn:
        if self.is_data:
            raise DataError(self.text)
        raise RuntimeError(f"{self.text}\n{self.trace}")


class _Steps:
    """Step number (from 0) -> this rank's micro-batches. Picklable, so that worker processes can have it."""

    def __init__(
        self,
        dataset: SampleSource,
        plan: GlobalBatches,
        rank: int,
        world: int,
        accumulation: int,
        start_step: int,
        steps: int,
        collate: Collate,
    ) -> None:
        self.dataset, self.plan, self.collate = dataset, plan, collate
        self.rank, self.world, self.accumulation = rank, world, accumulation
        self.start_step, self.steps = start_step, steps

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def attempt(self, number: int) -> list[Batch] | _Failure:
        name = "(none)"
        try:
            batches = []
            for refs in self.plan.rank_share(self.start_step + number, self.rank, self.world, self.accumulation):
                samples = []
                for index, epoch in refs:
                    name = self.dataset.ids[index]
                    samples.append(self.dataset.get(index, epoch))
                batches.append(self.collate(samples))
            return batches
        except Exception as error:
            return _Failure(error, name)


class _InWorker(Dataset[Any]):
    """`_Steps` as torch's DataLoader takes it. The samples stay behind: their pictures are in the batch already, and
    would cross the process border twice."""

    def __init__(self, steps: _Steps) -> None:
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, number: int) -> Any:
        made = self._steps.attempt(number)
        return made if isinstance(made, _Failure) else [replace(batch, samples=()) for batch in made]


def _as_it_is(made: Any) -> Any:
    """The steps come ready-made: torch's own conversion would only walk through them."""
    return made
