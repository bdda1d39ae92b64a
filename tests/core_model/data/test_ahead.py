"""Batches on their way to the device: all of them, in order, and the loader is closed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from core_model.batch import Batch
from core_model.training.prefetch import on_device

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: copies beside kernels")


def batch(number: int, pinned: bool = False) -> Batch:
    made = Batch(
        ids=(str(number),),
        categories=("tile",),
        images=torch.full((1, 3, 512, 512), float(number)),
        masks=torch.zeros(1, 1, 512, 512),
        is_defective=torch.zeros(1, dtype=torch.bool),
        token_ids=torch.full((1, 4), number),
        labels=torch.full((1, 4), -100),
        lengths=torch.tensor([4]),
        extras={"answer_rows": torch.tensor([number])},
    )
    return made.pin_memory() if pinned else made


class Source:
    """Two micro-batches a step; remembers that it was closed."""

    def __init__(self, steps: int, pinned: bool = False) -> None:
        self.steps, self.pinned, self.closed, self.asked_past_its_end = steps, pinned, False, False

    def __iter__(self) -> Iterator[list[Batch]]:
        try:
            for step in range(self.steps):
                yield [batch(2 * step, self.pinned), batch(2 * step + 1, self.pinned)]
            self.asked_past_its_end = True
        finally:
            self.closed = True


def test_every_step_comes_in_order_and_the_source_is_closed() -> None:
    source = Source(3)
    seen = [[int(made.images[0, 0, 0, 0]) for made in step] for step in on_device(source, torch.device("cpu"))]
    assert seen == [[0, 1], [2, 3], [4, 5]]
    assert source.closed


def test_source_is_closed_where_training_ends_early() -> None:
    source = Source(3)
    steps = on_device(source, torch.device("cpu"))
    next(steps)
    steps.close()
    assert source.closed


class Counted(Source):
    """Knows how many steps it has, as a loader does."""

    def __len__(self) -> int:
        return self.steps


def test_a_loader_is_not_asked_past_its_last_step() -> None:
    """There it would end its processes, within the last step's time."""
    source = Counted(3)
    assert len(list(on_device(source, torch.device("cpu")))) == 3
    assert source.closed
    assert not source.asked_past_its_end


@GPU
def test_kernels_see_their_own_step_although_the_next_is_on_its_way() -> None:
    device = torch.device("cuda")
    busy = torch.randn(4096, 4096, device=device)
    source, sums = Counted(20, pinned=True), []
    for step in on_device(source, device):
        for _ in range(5):
            busy = busy @ busy / 4096  # the host runs ahead: the copies of later steps are queued meanwhile
        for made in step:
            assert made.images.is_cuda
            assert made.extras["answer_rows"].is_cuda
            sums.append(made.images.mean() + made.token_ids.float().mean())
    assert [float(value) for value in sums] == [2.0 * number for number in range(40)]
    assert source.closed
    assert not source.asked_past_its_end
