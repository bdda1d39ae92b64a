"""Samples depend on (seed, epoch, id) alone; splits do not overlap; augmentation follows the study's tables."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import core_model.data.defects
from core_model.data import open_dataset
from core_model.data.augment import COUNTS, TABLE, augmented
from core_model.data.generated_sets import write_mvtec
from core_model.data.questions import PLACES, places_of
from core_model.data.readers import builtin_textures
from core_model.metrics import judge, places_in


def opened(spec="textures", split="train", seed=0, size=48, simulation="", **options):
    return open_dataset(spec, split=split, image_size=size, seed=seed, simulation=simulation, options=options)


def same(a, b):
    return a.turns == b.turns and torch.equal(a.image, b.image) and torch.equal(a.mask, b.mask)


def test_a_sample_depends_on_seed_epoch_and_id_alone():
    first, again = opened(), opened()
    order = np.random.default_rng(0).permutation(len(first))[:40]
    for index in order:
        first.get(int(index), 0)  # another history of calls
    for index in sorted(order):
        assert same(first.get(int(index), 3), again.get(int(index), 3))
    assert any(not same(first.get(int(i), 3), first.get(int(i), 4)) for i in order)
    assert any(not same(first.get(int(i), 3), opened(seed=1).get(int(i), 3)) for i in order)


def test_training_samples_are_half_defective_with_fitting_answers():
    data = opened()
    samples = [data.get(index, epoch) for epoch in (0, 1) for index in range(len(data))]
    defective = [sample for sample in samples if sample.is_defective]
    assert 0.42 < len(defective) / len(samples) < 0.58
    for sample in samples:
        answer = sample.turns[0][1]
        assert judge(answer) == ("yes" if sample.is_defective else "no")
        assert bool(sample.mask.any()) == sample.is_defective == (sample.kind != "good")
        assert places_in(answer) == places_in(sample.place) == places_of(sample.mask[0].numpy())
    assert len({sample.turns[0][0] for sample in samples}) > 8
    assert {len(sample.turns) for sample in samples} == {1, 2}


def test_places_of_a_mask():
    mask = np.zeros((90, 90), np.uint8)
    for cell, name in enumerate(PLACES):
        row, column = divmod(cell, 3)
        mask[:] = 0
        mask[30 * row + 3 : 30 * row + 9, 30 * column + 3 : 30 * column + 9] = 1
        assert places_of(mask) == (name,)
    mask[:] = 0
    mask[0:10, 20:42] = 1  # 10 columns at the top left, 12 at the top
    assert places_of(mask) == ("top", "top left")
    assert places_of(np.zeros((9, 9))) == ()


def test_textures_train_and_test_share_no_pixel():
    layout = builtin_textures.read()
    for part, columns in ((layout.train, range(320)), (layout.test, range(320, 512))):
        for picture in part:
            _, left = picture.window()
            assert left in columns
            assert left + builtin_textures.CROP - 1 in columns
    assert {picture.kind for picture in layout.test} == {"good", "crack", "hole", "stain", "swirl"}


def test_texture_test_defects_are_visible_and_masked():
    for picture in builtin_textures.read().test:
        if picture.kind == "good":
            continue
        spoiled, mask = picture._drawn()
        good, _ = builtin_textures.TexturePicture(
            id=picture.id, category=picture.category, kind="good", number=0, columns=picture.columns
        )._drawn()
        change = np.abs(spoiled.astype(int) - good).max(axis=2)
        assert mask.any(), picture.id
        assert change[mask > 0].mean() > 10, picture.id
        assert change[mask == 0].mean() < 1.5, picture.id


def test_training_defects_never_use_the_test_generators():
    folder = Path(core_model.data.defects.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            assert "core_model.data.readers.builtin_textures" not in " ".join(names), path.name


def test_val_is_held_out_and_never_changes(tmp_path):
    root = write_mvtec(tmp_path, categories=("bolt", "nut"), train=10)
    train = opened(f"mvtec:{root}", holdout=0.3)
    val = opened(f"mvtec:{root}", "val", holdout=0.3, variants=2)
    kept, held = set(train.ids), {name.split("#")[0] for name in val.ids}
    assert not kept & held
    assert len(kept) == 14
    assert len(held) == 6
    assert len(val) == 18
    assert sum(val.get(index).is_defective for index in range(len(val))) == 12
    disturbing = open_dataset(
        f"mvtec:{root}",
        split="val",
        image_size=val.image_size,
        seed=0,
        simulation="thorough",
        options={"holdout": 0.3, "variants": 2},
    )
    for index, name in enumerate(disturbing.ids):
        if name.endswith("#0"):  # thresholds come from these: a recipe's harmless changes have no place in them
            assert np.array_equal(disturbing.get(index).image, val.get(index).image)
            assert np.array_equal(
                disturbing.get(index).image.permute(1, 2, 0), val._cache.image(val._entries[index].position)
            )
    other_seed = opened(f"mvtec:{root}", "val", seed=9, holdout=0.3, variants=2)
    assert all(same(val.get(index, 0), other_seed.get(index, 5)) for index in range(len(val)))


def test_folds_hold_out_every_picture_once(tmp_path):
    root = write_mvtec(tmp_path, categories=("bolt", "nut"), train=7)
    held = []
    for fold in range(3):
        train = opened(f"mvtec:{root}", folds=3, fold=fold)
        val = {name.split("#")[0] for name in opened(f"mvtec:{root}", "val", folds=3, fold=fold).ids}
        assert not val & set(train.ids)
        assert len(val) + len(train) == 14
        held += sorted(val)
    assert len(held) == len(set(held)) == 14


def test_limit_is_even_over_the_categories(tmp_path):
    root = write_mvtec(tmp_path, categories=("bolt", "nut", "pin"), train=5)
    pictures = opened(f"mvtec:{root}", limit=7).describe()["pictures"]
    assert sorted(kinds["good"] for kinds in pictures.values()) == [2, 2, 3]


# -- type-2 augmentation --------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "count"), [("v4", 3), ("v5", 1000), ("v6", 400)])
def test_counts_of_the_versions(tmp_path, version, count):
    root = write_mvtec(tmp_path, categories=("screw", "blade"), train=3, defective=2)
    train = opened(f"mvtec:{root}", augment=version)
    assert train.describe()["pictures"] == {"blade": {"good": 3}, "screw": {"good": count}}
    assert COUNTS[version] == (count if count > 3 else 0)
    test = opened(f"mvtec:{root}", "test", augment=version).describe()["pictures"]
    times = 1 if version == "v4" else 2
    assert test["screw"] == {"dent": 2 * times, "good": 3, "hole": 2 * times}
    assert test["blade"] == {"dent": 2, "good": 3, "hole": 2}


def test_augmented_copies_are_fixed_and_differ(tmp_path):
    root = write_mvtec(tmp_path, categories=("tile",), train=2)
    data = opened(f"mvtec:{root}", augment="v6", defective_share=0)
    again = opened(f"mvtec:{root}", augment="v6", seed=5, defective_share=0)
    copies = [data.get(index, 0).image for index in range(2, 12)]
    assert all(torch.equal(copy, again.get(2 + i, 7).image) for i, copy in enumerate(copies))
    assert len({round(float(copy.double().sum()), 4) for copy in copies}) == 10


def test_operations_do_what_they_are_called():
    image = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, axis=2)
    mask = (image[..., 0] > 200).astype(np.uint8)
    rng = np.random.default_rng(0)
    turned, turned_mask = augmented((TABLE["hazelnut"][0].__class__(90),), image, mask, rng)
    assert np.array_equal(turned, np.rot90(image))
    assert np.array_equal(turned_mask, np.rot90(mask))
    vertical, _ = augmented((TABLE["bottle"][3],), image, mask, rng)
    assert np.array_equal(vertical, image[::-1])
    horizontal, _ = augmented((TABLE["cable"][2],), image, mask, rng)
    assert np.array_equal(horizontal, image[:, ::-1])
    zoomed, zoomed_mask = augmented((TABLE["tile"][1],), image, mask, rng)
    assert zoomed.shape == image.shape
    assert not np.array_equal(zoomed, image)
    assert zoomed[..., 0].min() > image.min()  # the corners are cut off
    assert set(np.unique(zoomed_mask)) <= {0, 1}


STUDY_TABLE_2 = """
bottle: turn180 .8, turn90 .6, h .5, v 1
cable: turn180 .8, turn90 .6, h 1, b.9-1.1 .7
capsule: turn270 .5, turn180 .5, b.9-1.1 .7
carpet: turn180 .5, turn270 .5, v .5, b.9-1.1 .7
grid: turn180 .5, turn270 .5, v .5, b.9-1.1 .7
hazelnut: turn90 .5, turn270 .5, h .5, b.9-1.1 .7
leather: turn90 .5, turn180 .5, v 1, b.9-1.1 .7
metal_nut: turn90 .5, turn180 .5, v 1
pill: tilt35 1, z0.0-0.2 1, h .6, v .7
screw: tilt35 1, z0.2-0.5 1, h .6, v .6
tile: tilt35 1, z0.2-0.4 1
toothbrush: v 1, tilt20 1
transistor: tilt15 1, v .6
wood: tilt50 1, z0.5-0.8 1, v .7
zipper: tilt15 1, z0.4-0.6 1, v .7
"""


def written(operation):
    name, chance = type(operation).__name__, f"{operation.chance:g}".lstrip("0")
    text = {
        "Turn": lambda: f"turn{operation.degrees}",
        "Tilt": lambda: f"tilt{operation.degrees}",
        "Zoom": lambda: f"z{operation.low}-{operation.high}",
        "Brightness": lambda: f"b{operation.low}-{operation.high}".replace("b0.", "b."),
        "MirrorHorizontal": lambda: "h",
        "MirrorVertical": lambda: "v",
    }[name]()
    return f"{text} {chance}"


def test_the_table_is_the_studys():
    ours = {category: ", ".join(written(operation) for operation in row) for category, row in TABLE.items()}
    theirs = dict(line.split(": ") for line in STUDY_TABLE_2.strip().splitlines())
    assert ours == theirs
