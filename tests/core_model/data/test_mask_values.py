"""A mask says the same whatever kind of file it is in, and one that covers most of its picture is questioned."""

import numpy as np
import pytest
from PIL import Image

from core_model.data import DataError, open_dataset
from core_model.data.decode.mask_values import questioned, read_mask
from core_model.data.generated_sets import write_mvtec

TRUE = np.zeros((40, 48), np.uint8)
TRUE[10:20, 12:30] = 1
TRUE[30:34, 40:44] = 1


def grey(scale, kind=np.uint8):
    return Image.fromarray(TRUE.astype(kind) * kind(scale))


def palette(white_index):
    image = Image.fromarray(np.where(TRUE == 1, white_index, 1 - white_index).astype(np.uint8), "P")
    image.putpalette([255] * 3 + [0] * 3 if white_index == 0 else [0] * 3 + [255] * 3)
    return image


def red():
    return Image.fromarray(TRUE[..., None] * np.array([200, 0, 0], np.uint8))


def with_alpha(colour, alpha):
    image = colour.copy()
    image.putalpha(alpha)
    return image


def labels():
    return Image.fromarray(np.where(np.arange(48) < 40, TRUE * 7, TRUE * 253).astype(np.uint8))


OPAQUE, ALL_WHITE = Image.new("L", (48, 40), 255), Image.new("L", (48, 40), 255)
KINDS = {
    "grey.png": lambda: grey(255),
    "defect kind 1.png": lambda: grey(1),
    "labels.png": labels,
    "one bit.png": lambda: grey(255).convert("1"),
    "one bit.tif": lambda: grey(255).convert("1"),
    "16 bits.png": lambda: grey(65535, np.uint16),
    "16 bits, low.png": lambda: grey(1, np.uint16),
    "float.tif": lambda: grey(1, np.float32),
    "32 bits.tif": lambda: grey(1, np.int32),
    "rgb.png": lambda: grey(255).convert("RGB"),
    "red.bmp": red,
    "palette, index 0 white.png": lambda: palette(0),
    "palette, index 1 white.png": lambda: palette(1),
    "grey with opaque alpha.png": lambda: with_alpha(grey(255), OPAQUE),
    "rgb with opaque alpha.png": lambda: with_alpha(red(), OPAQUE),
    "clear ground.png": lambda: with_alpha(red(), grey(255)),
    "in alpha alone.png": lambda: with_alpha(ALL_WHITE, grey(255)),
    "black, in alpha alone.png": lambda: with_alpha(Image.new("RGB", (48, 40)), grey(255)),
    "ringing.jpg": lambda: grey(255),
    "lossy.webp": lambda: grey(255).convert("RGB"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_says_the_same(tmp_path, name):
    path = tmp_path / name
    KINDS[name]().save(path)
    found = read_mask(path)
    assert found.dtype == np.uint8
    assert (found != TRUE).mean() < (0.005 if path.suffix in (".jpg", ".webp") else 1e-9), "only lossy edges may move"


def test_ringing_stays_out_when_a_jpeg_was_saved_again_as_png(tmp_path):
    grey(255).save(tmp_path / "a.jpg", quality=50)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    assert (np.asarray(Image.open(tmp_path / "a.png")) > 0).mean() > 1.2 * TRUE.mean(), "there is ringing"
    assert (read_mask(tmp_path / "a.png") != TRUE).mean() < 0.02


def test_many_numbered_defects_are_all_defect(tmp_path):
    numbers = np.arange(48 * 40, dtype=np.uint16).reshape(40, 48)
    Image.fromarray(numbers).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").sum() == numbers.size - 1
    eight = (numbers // 10).astype(np.uint8)
    Image.fromarray(eight).save(tmp_path / "b.png")
    assert read_mask(tmp_path / "b.png").sum() == (eight > 0).sum()


def test_a_mask_is_turned_as_it_says(tmp_path):
    tag = Image.Exif()
    tag[0x0112] = 6
    stored = grey(255).transpose(Image.Transpose.ROTATE_90)  # orientation 6 turns it back
    stored.save(tmp_path / "a.png", exif=tag)
    assert np.array_equal(read_mask(tmp_path / "a.png"), TRUE)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("a.tif", np.full((8, 8), np.nan, np.float32), "not finite"),
        ("b.tif", np.full((8, 8), -1, np.int32), "negative"),
        ("c.jpg", (TRUE * 3).astype(np.uint8), "lossy file whose brightest value is"),
    ],
)
def test_values_that_say_nothing_are_refused(tmp_path, name, values, said):
    Image.fromarray(values).save(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: mask .*{said}"):
        read_mask(tmp_path / name)


def test_an_inverted_mask_is_questioned_by_name_once(tmp_path):
    root = write_mvtec(tmp_path)
    for path in sorted(root.glob("plate/ground_truth/dent/*.png")):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    (note,) = open_dataset(f"mvtec:{root}", split="test", image_size=32, seed=0).questions
    assert note.startswith("ground_truth/dent/000_mask.png: the mask covers 9")
    assert "(so do 1 more of 4 looked at)" in note
    assert questioned(sorted(root.glob("plate/ground_truth/hole/*.png"))) == ""


def test_one_of_many_large_masks_is_looked_at_in_bounded_time(tmp_path, monkeypatch):
    monkeypatch.setattr("core_model.data.decode.opener.LOOK_PIXELS", TRUE.size)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path in paths:
        ALL_WHITE.save(path)
    assert "(so do 1 more of 2 looked at)" in questioned(paths)
