from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core_model.anomalygpt.coreset import k_centre
from core_model.anomalygpt.memory_bank import PEERS, MemoryBank, MemoryOptions, _category
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
        ({"neighbourhood": 2}, "odd number"),
        ({"coreset": 1.5}, "share of tokens"),
        ({"score": "best"}, "max, top1"),
        ({"smooth": -1.0}, "standard deviation"),
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


def test_patchcores_rule_step_by_step(tiny) -> None:
    """Against its equations: 3x3 means, blocks joined, the nearest of the bank, a Gaussian of 4 px, the max."""
    good, query = pictures(3), pictures(2, seed=4)
    options = MemoryOptions(**{**vars(PEERS["patchcore"]), "blocks": (0, 1), "coreset": 0.0})
    bank = MemoryBank.build(tiny, good, ["tile"] * 3, options=options)

    def tokens(images):
        looks = []
        for block in tiny.encoder(images).tokens:
            places = block.transpose(1, 2).reshape(len(images), 32, 8, 8)
            around = torch.zeros_like(places)
            for row in range(8):
                for column in range(8):
                    rows, columns = slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2)
                    around[:, :, row, column] = places[:, :, rows, columns].mean(dim=(2, 3))
            looks.append(around)
        return torch.cat(looks, dim=1).flatten(2).transpose(1, 2)

    nearest = torch.cdist(tokens(query), tokens(good).reshape(1, -1, 64)).amin(dim=2).view(2, 1, 8, 8)
    grown = F.interpolate(nearest, size=(56, 56), mode="bilinear")
    places = torch.arange(-16, 17.0)
    line = torch.exp(-(places**2) / 32) / torch.exp(-(places**2) / 32).sum()
    expected = F.conv2d(F.pad(grown, (16,) * 4, mode="replicate"), (line[:, None] * line[None])[None, None])[:, 0]
    maps = tiny.anomaly_maps(query, ["tile"] * 2, memory=bank)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(bank.scores(maps, "median"), maps.flatten(1).amax(dim=1))


def test_anomalydinos_rule_is_the_last_blocks_cosine_and_the_highest_hundredth(tiny) -> None:
    good, query = pictures(2), pictures(2, seed=4)
    plain = MemoryOptions(blocks=(1,), smooth=4.0)
    maps = MemoryBank.build(tiny, good, ["tile"] * 2, options=PEERS["anomalydino"])
    last = MemoryBank.build(tiny, good, ["tile"] * 2, options=plain)
    names = ["tile"] * 2
    made = tiny.anomaly_maps(query, names, memory=maps)
    torch.testing.assert_close(made, tiny.anomaly_maps(query, names, memory=last))
    torch.testing.assert_close(maps.scores(made, "max"), tiny.scores(made, "top1"))
    torch.testing.assert_close(last.scores(made, "max"), tiny.scores(made, "max"))


def test_a_coreset_keeps_what_lies_apart() -> None:
    """Clusters of very unlike sizes: each is kept once before any is kept twice; the whole is kept where all fit."""
    draw = torch.Generator().manual_seed(0)
    centres = 10 * torch.eye(5, 200)
    of = torch.tensor([0] * 300 + [1] * 50 + [2] * 5 + [3, 4])
    tokens = centres[of] + 0.01 * torch.randn(len(of), 200, generator=draw)
    kept = k_centre(tokens, 5)
    assert set(of[kept].tolist()) == {0, 1, 2, 3, 4}
    assert len(set(k_centre(tokens, 60).tolist())) == 60
    assert k_centre(tokens[:3], 8).tolist() == [0, 1, 2]
    far = torch.cdist(tokens, tokens[k_centre(tokens, 5)]).amin(dim=1).max()
    assert far < 1


def test_balanced_blocks_weigh_alike(tiny) -> None:
    """A block whose tokens are a hundred times as long has no hundred times the say."""
    good, query = pictures(4), pictures(1, seed=5)
    options = MemoryOptions(distance="l2", balanced=True, rotations=(0,))
    before = MemoryBank.build(tiny, good, ["tile"] * 4, options=options)
    maps = tiny.anomaly_maps(query, ["tile"], memory=before)
    vit = tiny.encoder.trunk.vit
    own = vit.forward
    vit.forward = lambda pixels, taps: (
        [(1, 100)[i] * t for i, t in enumerate(own(pixels, taps)[0])],
        own(pixels, taps)[1],
    )
    tiny._last = None
    after = MemoryBank.build(tiny, good, ["tile"] * 4, options=options)
    torch.testing.assert_close(tiny.anomaly_maps(query.clone(), ["tile"], memory=after), maps, rtol=1e-3, atol=1e-3)
