"""The order of the samples is the job's, not the world's; the loader delivers it, stops cleanly, raises what fails."""

import threading
import time

import numpy as np
import pytest
import torch

from core_model.batch import Batch, Sample
from core_model.data import DataError, open_dataset
from core_model.data.batches import BatchLoader, GlobalBatches
from core_model.data.generated_sets import write_mvtec

SPLITS = [(1, 1), (2, 1), (4, 1), (1, 4), (2, 3), (3, 2), (6, 1), (12, 1)]


def collate(samples):
    """A batch without a tokenizer: the loader does not look inside."""
    count = len(samples)
    return Batch(
        ids=tuple(sample.id for sample in samples),
        categories=tuple(sample.category for sample in samples),
        images=torch.stack([sample.image for sample in samples]),
        masks=torch.stack([sample.mask for sample in samples]),
        is_defective=torch.tensor([sample.is_defective for sample in samples]),
        token_ids=torch.zeros((count, 1), dtype=torch.int64),
        labels=torch.zeros((count, 1), dtype=torch.int64),
        lengths=torch.ones(count, dtype=torch.int64),
        samples=tuple(samples),
    )


def loader(dataset, **changes):
    settings = {"rank": 0, "world": 1, "steps": 5, "collate": collate, **changes}
    return BatchLoader(dataset, GlobalBatches(dataset.ids, global_batch=4, seed=0), **settings)


@pytest.mark.parametrize(("world", "accumulation"), SPLITS)
def test_the_global_batch_does_not_depend_on_the_split(world, accumulation):
    plan = GlobalBatches(31, global_batch=12, seed=3)
    for step in range(9):
        shares = [plan.rank_share(step, rank, world, accumulation) for rank in range(world)]
        assert all(len(share) == accumulation for share in shares)
        seen = [ref for part in range(accumulation) for share in shares for ref in share[part]]
        assert seen == plan.ids_of(step)


def test_every_sample_once_an_epoch_even_where_batches_straddle_epochs():
    plan = GlobalBatches(31, global_batch=12, seed=3)
    refs = [ref for step in range(31) for ref in plan.ids_of(step)]  # 31 x 12 = 12 epochs
    for epoch in range(12):
        assert sorted(index for index, of in refs if of == epoch) == list(range(31))
    orders = [[index for index, of in refs if of == epoch] for epoch in range(12)]
    assert len({tuple(order) for order in orders}) == 12


def test_groups_take_turns():
    plan = GlobalBatches(10, global_batch=3, seed=0, groups=(7, 3))
    for step in range(14):
        assert all((index >= 7) == bool(step % 2) for index, _ in plan.ids_of(step))
    first = [ref for step in range(0, 14, 2) for ref in plan.ids_of(step)]
    assert sorted(index for index, epoch in first if epoch == 0) == list(range(7))


def test_fingerprint_tells_orders_apart():
    plan = GlobalBatches(31, global_batch=12, seed=3)
    assert plan.fingerprint(50) == GlobalBatches(31, global_batch=12, seed=3).fingerprint(50)
    others = [
        GlobalBatches(31, global_batch=12, seed=4).fingerprint(50),
        GlobalBatches(32, global_batch=12, seed=3).fingerprint(50),
        GlobalBatches(31, global_batch=6, seed=3).fingerprint(50),
        GlobalBatches([str(n) for n in range(31)], global_batch=12, seed=3).fingerprint(50),
        plan.fingerprint(51),
    ]
    assert len({plan.fingerprint(50), *others}) == 6


def test_a_split_that_cannot_work_is_refused_before_anything_starts():
    dataset = open_dataset("textures", split="train", image_size=16, seed=0)
    with pytest.raises(DataError, match="use a multiple of 3"):
        loader(dataset, world=3)
    with pytest.raises(DataError, match="no samples"):
        GlobalBatches(0, global_batch=4, seed=0)


def test_threads_and_processes_deliver_the_same_in_the_same_order(tmp_path):
    dataset = open_dataset(f"mvtec:{write_mvtec(tmp_path)}", split="train", image_size=24, seed=0)
    runs = {}
    for workers in (0, 2):
        steps = list(loader(dataset, workers=workers, world=2, rank=1, accumulation=2, start_step=2, steps=9))
        runs[workers] = [(b.ids, b.images, b.masks) for step in steps for b in step]
        assert len(steps) == 7
        assert all(len(step) == 2 for step in steps)
    for (ids, images, masks), (other, other_images, other_masks) in zip(runs[0], runs[2], strict=True):
        assert ids == other
        assert torch.equal(images, other_images)
        assert torch.equal(masks, other_masks)


def test_resuming_continues_the_same_sequence():
    dataset = open_dataset("textures", split="train", image_size=16, seed=0)
    whole = [step[0].ids for step in loader(dataset, steps=6)]
    assert [step[0].ids for step in loader(dataset, start_step=4, steps=6)] == whole[4:]
    assert list(loader(dataset, start_step=6, steps=6)) == []


class Failing:
    """A data set whose sample number 5 cannot be made."""

    ids = tuple(f"plate/{n}" for n in range(8))

    def __init__(self, error):
        self.error = error

    def get(self, index, epoch):
        if index == 5:
            raise self.error
        image = torch.zeros(3, 8, 8)
        return Sample(id=self.ids[index], category="plate", image=image, mask=image[:1], is_defective=False, turns=())


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_arrive_with_the_samples_name(workers):
    with pytest.raises(RuntimeError, match=r"sample plate/5: KeyError: 'x'"):
        list(loader(Failing(KeyError("x")), workers=workers))
    with pytest.raises(DataError) as raised:
        list(loader(Failing(DataError("plate/5.png: corrupt image: replace it")), workers=workers))
    assert str(raised.value) == "plate/5.png: corrupt image: replace it"


def test_a_corrupt_file_found_while_training_is_named(tmp_path):
    root = write_mvtec(tmp_path)
    dataset = open_dataset(f"mvtec:{root}", split="train", image_size=24, seed=0)
    path = root / "plate/train/good/003.png"
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)  # header and end are in order: only decoding finds it
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"003\.png: corrupt image"):
        list(loader(dataset))


def test_leaving_early_ends_the_thread():
    dataset = open_dataset("textures", split="train", image_size=16, seed=0)
    iterator = iter(loader(dataset, steps=1000))
    next(iterator)
    assert any(thread.name == "batch-loader" for thread in threading.enumerate())
    iterator.close()
    assert not any(thread.name == "batch-loader" for thread in threading.enumerate())


def test_a_hanging_file_system_is_an_error_not_a_hang():
    class Hanging(Failing):
        def get(self, index, epoch):
            time.sleep(0.4)
            return super().get(0, epoch)

    begin = time.monotonic()
    with pytest.raises(DataError, match="no batch for"):
        next(iter(loader(Hanging(KeyError()), timeout_s=0.3)))
    assert time.monotonic() - begin < 10


def test_prefetch_is_bounded():
    made = []

    class Counting(Failing):
        def get(self, index, epoch):
            made.append(index)
            return super().get(0, epoch)

    iterator = iter(loader(Counting(KeyError()), steps=100, prefetch=2))
    next(iterator)
    time.sleep(0.5)
    assert len(made) <= 4 * (1 + 2 + 2)  # taken, queued, and in the making or waiting to be queued
    iterator.close()


def test_permutations_are_numpys_and_stable():
    """Pinned: a change of the order would make new runs incomparable with recorded ones."""
    assert [index for index, _ in GlobalBatches(10, global_batch=5, seed=0).ids_of(0)] == [
        int(value) for value in np.random.default_rng([0, 0, 0]).permutation(10)[:5]
    ]
