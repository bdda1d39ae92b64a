"""Each layout is read as it is documented, and what is wrong with a folder is said in one line that names it."""

import numpy as np
import pytest
import torch
from PIL import Image

from core_model.batch import unit_range
from core_model.data import DataError, open_dataset
from core_model.data.generated_sets import write_aebad, write_instructions, write_mvtec, write_visa


def opened(spec, split="train", **options):
    return open_dataset(spec, split=split, image_size=32, seed=0, options=options)


def test_mvtec_one_category_or_all(tmp_path):
    root = write_mvtec(tmp_path, categories=("bolt", "nut"))
    both = opened(f"mvtec:{root}")
    assert both.categories == ("bolt", "nut")
    assert len(both) == 12
    one = opened(f"mvtec:{root / 'nut'}", "test")
    assert one.describe()["pictures"] == {"nut": {"dent": 2, "good": 3, "hole": 2}}
    assert one.ids[0] == "nut/test/dent/000.png"
    assert opened(f"mvtec:{root}", categories="nut").categories == ("nut",)


def test_real_masks_places_and_standard_question(tmp_path):
    test = opened(f"mvtec:{write_mvtec(tmp_path, size=(32, 32))}", "test")
    for index in range(len(test)):
        sample = test.get(index)
        mask_file = tmp_path / sample.id.replace("/test/", "/ground_truth/").replace(".png", "_mask.png")
        assert sample.is_defective == mask_file.exists()
        assert bool(sample.mask.any()) == sample.is_defective == bool(sample.place)
        if sample.is_defective:
            assert np.array_equal(sample.mask[0].numpy() > 0, np.asarray(Image.open(mask_file)) > 0)
        (question, answer) = sample.turns[0]
        assert question == test.get(0).turns[0][0]
        assert answer.startswith("Yes" if sample.is_defective else "No")
        assert sample.image.shape == (3, 32, 32)
        assert sample.image.dtype == sample.mask.dtype == torch.uint8
        assert sample.image.min() < sample.image.max()


def test_visa_by_its_csv(tmp_path):
    root = write_visa(tmp_path, objects=("candle", "pcb1"), train=4, test=3)
    train, test = opened(f"visa:{root}"), opened(f"visa:{root}", "test")
    assert train.describe()["pictures"] == {"candle": {"good": 4}, "pcb1": {"good": 4}}
    assert test.describe()["pictures"]["pcb1"] == {"anomaly": 3, "good": 3}
    masks = [test.get(i).mask for i in range(len(test)) if test.get(i).is_defective]
    assert all(set(mask.unique().tolist()) == {0.0, 1.0} for mask in masks)  # whatever number the file holds
    assert opened(f"visa:{root / 'pcb1'}").categories == ("pcb1",)


@pytest.mark.parametrize("options", [{"holdout": 0.3}, {"folds": 2, "fold": 0}])
def test_aebad_never_trains_on_what_it_holds_out(tmp_path, options):
    root = write_aebad(tmp_path, train=4)
    kept, held = (opened(f"aebad:{root}", split, **options) for split in ("train", "val"))
    files = [{sample_id.split("/", 1)[1] for sample_id in each.ids} for each in (kept, held)]
    assert all(files)
    assert not files[0] & files[1]


def test_a_limit_takes_other_pictures_of_each_aebad_category(tmp_path):
    few = opened(f"aebad:{write_aebad(tmp_path, train=4)}", limit=8)
    assert len({name.split("/", 1)[1] for name in few.ids}) > 2, "not the same two for all four"


def test_aebad_makes_its_defects_categories_that_share_the_good_pictures(tmp_path):
    root = write_aebad(tmp_path, train=2, test=1)
    train, test = opened(f"aebad:{root}"), opened(f"aebad:{root}", "test")
    assert train.categories == ("ablation", "breakdown", "fracture", "groove")
    assert train.describe()["pictures"]["groove"] == {"good": 6}  # 2 in each domain but "same"
    assert test.describe()["pictures"]["fracture"] == {"fracture": 4, "good": 4}
    assert len(set(train.ids)) == len(train)
    only = opened(f"aebad:{root / 'AeBAD_S'}", "test", domains="view")
    assert all("/view/" in name for name in only.ids)
    assert len(only) == 8


def test_data_sets_join(tmp_path):
    mvtec, aebad = write_mvtec(tmp_path / "m"), write_aebad(tmp_path / "a+b")
    joint = opened(f"mvtec:{mvtec}+aebad:{aebad}+textures")
    assert "plate" in joint.categories
    assert {"groove", "brick"} <= set(joint.categories)
    with pytest.raises(DataError, match=r"both .* have a category 'plate'"):
        opened(f"mvtec:{mvtec}+mvtec:{write_mvtec(tmp_path / 'again')}")


def test_instructions_take_turns_and_have_no_mask(tmp_path):
    root, talks = write_mvtec(tmp_path / "m"), write_instructions(tmp_path / "t")
    train = opened(f"mvtec:{root}", instructions=str(talks))
    assert train.groups == (6, 4)
    sample = train.get(7)
    assert sample.kind == "instruction"
    assert not sample.is_defective
    assert sample.turns == (("What is in the picture?", "A striped surface."), ("How many stripes?", "Several."))
    assert str(tmp_path) not in str(train.describe())


def remove(root, pattern):
    for path in root.glob(pattern):
        path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


BROKEN = {
    "missing": (lambda root: root / "elsewhere", "no such data folder"),
    "a file": (lambda root: next(root.glob("plate/train/good/*")), "not a folder"),
    "no good": (lambda root: remove(root, "plate/train/good/*"), "no pictures in it"),
    "cut image": (lambda root: cut(root / "plate/train/good/002.png"), "002.png: corrupt image"),
    "empty image": (lambda root: (root / "plate/train/good/001.png").write_bytes(b""), "001.png: corrupt image"),
    "text": (lambda root: (root / "plate/train/good/001.png").write_text("hello"), "001.png: corrupt image"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_folders_are_refused_before_the_job_starts(tmp_path, name):
    root = write_mvtec(tmp_path / "data")
    damage, said = BROKEN[name]
    named = damage(root) or root
    with pytest.raises(DataError, match=said) as raised:
        opened(f"mvtec:{named if not isinstance(named, int) else root}")
    assert "\n" not in str(raised.value)


BROKEN_TEST = {
    "no mask": (lambda root: (root / "plate/ground_truth/hole/001_mask.png").unlink(), "001.png: no mask: expected"),
    "other size": (
        lambda root: Image.new("L", (10, 10)).save(root / "plate/ground_truth/dent/000_mask.png"),
        "the mask is 10x10 but its image 000.png is 48x40",
    ),
    "cut mask": (lambda root: cut(root / "plate/ground_truth/dent/000_mask.png"), "000_mask.png: corrupt mask"),
    "none": (lambda root: remove(root, "plate/test/*/*"), "no test pictures"),
}


@pytest.mark.parametrize("name", BROKEN_TEST)
def test_bad_test_folders_are_refused(tmp_path, name):
    root = write_mvtec(tmp_path / "data")
    damage, said = BROKEN_TEST[name]
    damage(root)
    with pytest.raises(DataError, match=said) as raised:
        opened(f"mvtec:{root}", "test")
    assert "\n" not in str(raised.value)


def test_what_is_named_wrongly_is_said_with_the_choices(tmp_path):
    root = write_mvtec(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    for spec, said in (
        ("imagenet:/x", "use one of textures, mvtec:DIR, visa:DIR, aebad:DIR"),
        ("mvtec", "write mvtec:DIR"),
        ("textures:/x", "takes no folder"),
        (f"mvtec:{tmp_path / 'empty'}", "empty"),
        (f"mvtec:{tmp_path}", "no train/good"),
        (f"visa:{root}", "no such split file.*use mvtec:"),
        (f"aebad:{root}", "no train/good"),
    ):
        with pytest.raises(DataError, match=said):
            opened(spec)
    for options, said in (
        ({"colour": 1}, "unknown data option 'colour'"),
        ({"limit": "many"}, "limit: 'many' is not a whole number"),
        ({"holdout": 1.5}, "below 1"),
        ({"folds": 3, "fold": 3}, "fold 0..folds-1"),
        ({"folds": 3, "holdout": 0.2}, "give one of them"),
        ({"augment": "v9"}, "choose one of v4, v5, v6"),
        ({"categories": "cable"}, "no category 'cable': it has plate"),
        ({"instructions": "/nowhere.json"}, "no such instruction file"),
    ):
        with pytest.raises(DataError, match=said):
            opened(f"mvtec:{root}", **options)
    with pytest.raises(DataError, match="unknown defect simulation"):
        open_dataset("textures", split="train", image_size=32, seed=0, simulation="rust")


def test_visa_csv_mistakes_name_the_line(tmp_path):
    root = write_visa(tmp_path)
    table = root / "split_csv" / "1cls.csv"
    text = table.read_text()
    table.write_text(text.replace("candle,train,normal", "candle,learn,normal", 1))
    with pytest.raises(DataError, match=r"1cls\.csv line 2: expected split"):
        opened(f"visa:{root}")
    table.write_text(text.replace("0003.JPG", "9999.JPG", 1))
    with pytest.raises(DataError, match=r"line 5: no such file .*9999\.JPG"):
        opened(f"visa:{root}")
    table.write_text(text.replace("object,", "thing,", 1))
    with pytest.raises(DataError, match="no column 'object'"):
        opened(f"visa:{root}")


def test_sixteen_bit_grey_and_palette_pictures_are_read(tmp_path):
    root = write_mvtec(tmp_path)
    deep = np.linspace(0, 65535, 48 * 40).reshape(40, 48).astype(np.uint16)
    Image.fromarray(deep).save(root / "plate/train/good/000.png")
    Image.fromarray((deep >> 8).astype(np.uint8)).convert("P").save(root / "plate/train/good/001.png")
    train = opened(f"mvtec:{root}", defective_share=0)
    image = unit_range(train.get(0).image)
    assert image.max() > 0.9
    assert image.mean() == pytest.approx(0.5, abs=0.02)
    assert train.get(1).image.max() > 0.9 * 255


def test_thin_defects_survive_shrinking(tmp_path):
    root = write_mvtec(tmp_path, size=(320, 320), train=1)
    mask = np.zeros((320, 320), np.uint8)
    mask[101:102, 10:300] = 255
    Image.fromarray(mask).save(root / "plate/ground_truth/dent/000_mask.png")
    sample = opened(f"mvtec:{root}", "test").get(0)
    assert sample.kind == "dent"
    assert sample.mask.sum() > 20
