"""Which mask belongs to which picture, by other names too; data sets without masks, and without a test."""

import shutil

import numpy as np
import pytest
from PIL import Image

from core_model.data import DataError, open_dataset
from core_model.data.generated_sets import write_aebad, write_instructions, write_mvtec, write_visa


def opened(spec, split="test", **options):
    return open_dataset(spec, split=split, image_size=32, seed=0, options=options)


def renamed(root, change):
    for path in sorted(root.glob("plate/ground_truth/*/*_mask.png")):
        image = Image.open(path)
        image.load()
        path.unlink()
        image.save(path.with_name(change(path.name.split("_")[0])))
    return root


PLAIN = {
    "capitals": "{}_mask.PNG", "bmp": "{}_mask.bmp", "tif": "{}_mask.tif", "gt": "{}_gt.png", "stem": "{}.png",
    "stem bmp": "{}.bmp", "dash": "{}-mask.png", "capital ending": "{}_MASK.png",
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_masks_by_other_names(tmp_path, name):
    before = opened(f"mvtec:{write_mvtec(tmp_path / 'a')}")
    after = opened(f"mvtec:{renamed(write_mvtec(tmp_path / 'b'), PLAIN[name].format)}")
    assert before.ids == after.ids
    for index in range(len(before)):
        assert np.array_equal(before.get(index).mask, after.get(index).mask)


def rename(root, old, new):
    (root / "plate/ground_truth" / old).rename(root / "plate/ground_truth" / new)


def text(root):
    (root / "plate/ground_truth/dent/000_mask.png").unlink()
    (root / "plate/ground_truth/dent/000.json").write_text("{}")


def twice(root):
    shutil.copy(root / "plate/ground_truth/dent/000_mask.png", root / "plate/ground_truth/dent/000_mask.bmp")


def two_stems(root):
    Image.open(root / "plate/test/dent/000.png").save(root / "plate/test/dent/000.jpg")


def beside(root):
    shutil.copy(root / "plate/ground_truth/dent/000_mask.png", root / "plate/test/dent/000_mask.png")


NEAR = {
    "digits": (lambda root: rename(root, "dent/000_mask.png", "dent/0_mask.png"), "there is 0_mask.png: rename it"),
    "words": (lambda root: rename(root, "dent/000_mask.png", "dent/defect_000.png"), "there is defect_000.png"),
    "kind": (lambda root: rename(root, "dent", "Dents"), "there is a folder .*Dents: rename it to dent"),
    "folder": (lambda root: rename(root, ".", "../masks"), "no masks in ground_truth, but pictures in masks"),
    "folder's case": (lambda root: rename(root, ".", "../Ground Truth"), "rename it to ground_truth"),
    "json": (text, "there is 000.json: save it as a picture"),
    "two files": (twice, "two masks, 000_mask.bmp and 000_mask.png"),
    "two pictures": (two_stems, r"000\.png and 000\.jpg would share the mask"),
    "beside": (beside, "000_mask.png: by its name the mask of a picture beside it"),
}


@pytest.mark.parametrize("name", NEAR)
def test_a_near_match_is_named(tmp_path, name):
    root = write_mvtec(tmp_path)
    damage, said = NEAR[name]
    damage(root)
    with pytest.raises(DataError, match=said) as raised:
        opened(f"mvtec:{root}")
    assert "\n" not in str(raised.value)


def test_two_pictures_of_one_stem_have_masks_of_their_whole_names(tmp_path):
    root = renamed(write_mvtec(tmp_path), "{}.png".format)
    two_stems(root)
    other = np.zeros((40, 48), np.uint8)
    other[:5, :5] = 255
    Image.fromarray(other).save(root / "plate/ground_truth/dent/000.jpg", quality=100)
    test = opened(f"mvtec:{root}")
    first, second = (test.get(index).mask for index in range(2))
    assert test.ids[:2] == ("plate/test/dent/000.jpg", "plate/test/dent/000.png")
    assert not np.array_equal(first, second)


def without_masks(tmp_path):
    mvtec, aebad, visa = write_mvtec(tmp_path / "m"), write_aebad(tmp_path / "a"), write_visa(tmp_path / "v")
    shutil.rmtree(mvtec / "plate/ground_truth")
    shutil.rmtree(aebad / "AeBAD_S/ground_truth")
    table = visa / "split_csv/1cls.csv"
    table.write_text("\n".join(",".join([*line.split(",")[:4], ""]) for line in table.read_text().splitlines()[1:]))
    table.write_text("object,split,label,image,mask\n" + table.read_text())
    return f"mvtec:{mvtec}", f"aebad:{aebad}", f"visa:{visa}"


def test_no_masks_is_said_and_no_good_surface(tmp_path):
    for spec in without_masks(tmp_path):
        test = opened(spec)
        samples = [test.get(index) for index in range(len(test))]
        assert {sample.has_mask for sample in samples if sample.is_defective} == {False}
        assert {sample.has_mask for sample in samples if not sample.is_defective} == {True}
        assert "no masks" in test.lacks(range(len(test)))[0]
        assert all(sample.turns[0][1].startswith("Yes, there is a defect") for sample in samples if sample.is_defective)


def test_one_sided_tests_are_said(tmp_path):
    root = write_mvtec(tmp_path, categories=("bolt", "nut"))
    assert opened(f"mvtec:{root}").lacks(range(14)) == []
    shutil.rmtree(root / "nut/test/good")
    test = opened(f"mvtec:{root}")
    assert test.lacks(range(len(test))) == [
        "all test pictures of nut are defective: image AUROC and F1 are undefined without the other kind"
    ]
    assert "of bolt are good" in test.lacks(range(2, 5))[0]


def test_training_needs_no_test(tmp_path):
    root = write_mvtec(tmp_path)
    shutil.rmtree(root / "plate/test")
    shutil.rmtree(root / "plate/ground_truth")
    assert len(opened(f"mvtec:{root}", "train")) == 6
    with pytest.raises(DataError, match="or train without an evaluation"):
        opened(f"mvtec:{root}")


def test_json_with_a_byte_order_mark(tmp_path):
    talks = write_instructions(tmp_path / "t")
    talks.write_bytes(b"\xef\xbb\xbf" + talks.read_bytes())
    train = opened(f"mvtec:{write_mvtec(tmp_path / 'm')}", "train", instructions=str(talks))
    assert train.groups == (6, 4)
