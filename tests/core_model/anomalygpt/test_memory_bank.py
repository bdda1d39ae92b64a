from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core_model.anomalygpt.memory_bank import MemoryBank, MemoryOptions, _category
from core_model.errors import ModelError


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 56, 56, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_known_pictures_and_their_rotations_are_not_anomalous(tiny, distance: str) -> None:
    good = pictures(2)
    bank = MemoryBank.build(tiny, good, ["tile"] * 2, options=MemoryOptions(distance=distance))
    for turns in range(4):
        turned = torch.rot90(good, turns, dims=(2, 3))
        assert tiny.anomaly_maps(turned, ["tile"] * 2, memory=bank).abs().max() < 2e-2
    assert tiny.anomaly_maps(pictures(1, seed=8), ["tile"], memory=bank).min() > 1e-3
    upright = MemoryOptions(distance=distance, rotations=(0,))
    bank = MemoryBank.build(tiny, good, ["tile"] * 2, options=upright)
    assert tiny.anomaly_maps(torch.rot90(good, 1, dims=(2, 3)), ["tile"] * 2, memory=bank).max() > 2e-2


def test_map_is_one_minus_the_largest_cosine_mean_over_blocks(tiny, monkeypatch) -> None:
    monkeypatch.setattr("core_model.anomalygpt.memory_bank.CHUNK", 50)  # several chunks give the same
    good, query = pictures(3), pictures(1, seed=4)
    options = MemoryOptions(rotations=(0,))
    bank = MemoryBank.build(tiny, good, ["tile"] * 3, options=options, batch_size=2)
    known, asked = tiny.encoder(good), tiny.encoder(query)
    total = 0
    for block, other in zip(asked.tokens, known.tokens, strict=True):
        similarity = F.normalize(block[0], dim=-1) @ F.normalize(other.flatten(0, 1), dim=-1).T
        total = total + (1 - similarity.amax(dim=1)).view(1, 1, 8, 8)
    expected = F.interpolate(total / 2, size=(56, 56), mode="bilinear")[:, 0]
    torch.testing.assert_close(tiny.anomaly_maps(query, ["tile"], memory=bank), expected, rtol=1e-4, atol=1e-5)


def test_categories_have_memories_of_their_own(tiny) -> None:
    good = pictures(2)
    bank = MemoryBank.build(tiny, good, ["tile", "cable"])
    right = tiny.anomaly_maps(good, ["tile", "cable"], memory=bank)
    wrong = tiny.anomaly_maps(good, ["cable", "tile"], memory=bank)
    assert right.max() < 2e-2 < wrong.max()
    with pytest.raises(ModelError, match=r"no good pictures of 'screw'.*cable, tile"):
        tiny.anomaly_maps(good, ["screw", "tile"], memory=bank)


def test_both_adds_the_calibrated_memory_to_the_decoder(tiny) -> None:
    good, query = pictures(4), pictures(2, seed=5)
    names = ["tile"] * 2
    memory = MemoryBank.build(tiny, good, ["tile"] * 4)
    both = MemoryBank.build(tiny, good, ["tile"] * 4, options=MemoryOptions(combination="both", weight=0.5))
    scale = both.categories["tile"].scale
    expected = tiny.anomaly_maps(query, names) + 0.5 * tiny.anomaly_maps(query, names, memory=memory) / scale
    torch.testing.assert_close(tiny.anomaly_maps(query, names, memory=both), expected)
    # the scale is a high distance of good pictures to EACH OTHER, never to themselves
    assert 0.5 * scale < tiny.anomaly_maps(pictures(1, seed=6), ["tile"], memory=memory).max() < 5 * scale


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("rotations", [(0, 90, 180, 270), (0,)])
def test_one_shot_is_calibrated_by_its_own_turned_copies(tiny, distance: str, rotations: tuple[int, ...]) -> None:
    """At scale 1 a cosine distance of some hundredths was added to probabilities: the memory was nearly silent."""
    options = MemoryOptions(distance=distance, rotations=rotations)
    for seed in (0, 3):
        good = pictures(2, seed=seed)
        one = MemoryBank.build(tiny, good[:1], ["tile"], options=options).categories["tile"]
        two = MemoryBank.build(tiny, good, ["tile"] * 2, options=options).categories["tile"].scale
        assert 0.5 * two < one.scale < 2 * two
        kept = MemoryBank.build(tiny, good, ["tile", "cable"], options=options).categories["tile"]
        assert kept.scale == pytest.approx(one.scale, rel=1e-4)  # each category by itself
        assert len(one.tokens[0]) == 64 * len(rotations)  # what calibrates alone is not remembered


def test_blocks_and_limit(tiny) -> None:
    options = MemoryOptions(blocks=(1,), limit=100)
    bank = MemoryBank.build(tiny, pictures(2), ["tile"] * 2, options=options)
    assert [tuple(t.shape) for t in bank.categories["tile"].tokens] == [(100, 32)]
    with pytest.raises(ModelError, match="2 tapped blocks"):
        MemoryBank.build(tiny, pictures(1), ["tile"], options=MemoryOptions(blocks=(2,)))


def test_wrong_options_are_refused(tiny) -> None:
    for wrong, words in (
        ({"distance": "l1"}, "cosine, l2"),
        ({"combination": "all"}, "memory, both"),
        ({"rotations": (45,)}, "multiples of 90"),
    ):
        with pytest.raises(ModelError, match=words):
            MemoryOptions(**wrong)
    with pytest.raises(ModelError, match="as many of each"):
        MemoryBank.build(tiny, pictures(2), ["tile"])


def test_blocks_of_unlike_grids_are_calibrated_together() -> None:
    """A convolutional encoder's blocks have fewer tokens the deeper they are (preset lite)."""
    torch.manual_seed(0)
    look = [torch.randn(3, 16, 8), torch.randn(3, 4, 8)]
    found = _category([look], [torch.arange(3)], MemoryOptions())
    assert [len(rows) for rows in found.tokens] == [48, 12]
    assert 0 < found.scale < 2
