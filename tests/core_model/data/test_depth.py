"""Pictures of more than 8 bits: one white for all of a type, and what would be nearly black is refused by name."""

import cv2
import numpy as np
import pytest
from PIL import Image

from core_model.batch import unit_range
from core_model.data import DataError, open_dataset
from core_model.data.decode import bit_depth
from core_model.data.decode.pictures import FilePicture, check, read_rgb
from core_model.data.generated_sets import write_mvtec

RAMP = np.linspace(0, 1, 48 * 40).reshape(40, 48)
EIGHT = np.floor(RAMP * 255.999).astype(np.uint8)


def save(path, values):
    if values.ndim == 3:
        assert cv2.imwrite(str(path), values[..., ::-1].copy())  # JPEG 2000: nearly lossless
    else:
        Image.fromarray(values).save(path)


def coloured(grey):
    return np.stack([grey, grey // 2, grey // 4], axis=-1) if grey.dtype.kind == "u" else np.stack([grey] * 3, axis=-1)


KINDS = {
    "12 of 16.png": (np.floor(RAMP * 4095.999).astype(np.uint16), 4095),
    "12 of 16.tif": (np.floor(RAMP * 4095.999).astype(np.uint16), 4095),
    "12 of 16, colour.png": (coloured(np.floor(RAMP * 4095.999).astype(np.uint16)), 4095),
    "12 of 16, colour.tif": (coloured(np.floor(RAMP * 4095.999).astype(np.uint16)), 4095),
    "12 of 16, colour.jp2": (coloured(np.floor(RAMP * 4095.999).astype(np.uint16)), 4095),
    "16.png": (np.floor(RAMP * 65535.999).astype(np.uint16), 0),
    "16, colour.tif": (coloured(np.floor(RAMP * 65535.999).astype(np.uint16)), 0),
    "float.tif": (RAMP.astype(np.float32), 0),
    "float, colour.tif": (coloured(RAMP.astype(np.float32)), 0),
    "float to 255.tif": ((RAMP * 255).astype(np.float32), 255),
    "32 bits.tif": (np.floor(RAMP * 65535.999).astype(np.int32), 65535),
    "12 of 16.ppm": (np.floor(RAMP * 4095.999).astype(np.uint16), 4095),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_whole_range_is_used_and_no_value_invented(tmp_path, name):
    values, white = KINDS[name]
    path = tmp_path / name
    save(path, values)
    found = read_rgb(path, white)
    assert found.dtype == np.uint8
    assert found.shape == (40, 48, 3)
    assert np.abs(found[..., 0].astype(int) - EIGHT).max() <= 1
    check([FilePicture(id="a", category="", kind="", path=path, white=white)])


REFUSED = {
    "12 bits.png": (np.uint16, 4000, "brightest value 4000 of 65535", "white=4095"),
    "14 bits.png": (np.uint16, 16383, "brightest value 16383 of 65535", "white=16383, or 65535 if they are to be"),
    "32 bits.tif": (np.int32, 60000, "brightest value 60000 of 2147483647", "white=65535$"),
    "dim float.tif": (np.float32, 0.0625, "brightest value 0.0625 of 1", "white=0.0625, or 1 if"),
    "float to 255.tif": (np.float32, 250.0, "float values up to 250, not 1", "white=255$"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_black_is_refused_with_the_remedy(tmp_path, name):
    kind, highest, said, remedy = REFUSED[name]
    save(tmp_path / name, (RAMP * highest).astype(kind))
    with pytest.raises(DataError, match=f"{name}: {said}.*--set data_options.{remedy}"):
        check([FilePicture(id="a", category="", kind="", path=tmp_path / name)])


def test_values_without_a_brightness_are_refused(tmp_path):
    for name, values, said in (
        ("a.tif", np.full((8, 8), np.nan, np.float32), "not finite"),
        ("b.tif", RAMP.astype(np.float32) - 0.5, r"negative values \(down to -0.5\)"),
        ("c.tif", np.full((8, 8), -3, np.int32), "negative values"),
    ):
        save(tmp_path / name, values)
        with pytest.raises(DataError, match=f"{name}: .*{said}"):
            read_rgb(tmp_path / name)
    save(tmp_path / "d.tif", RAMP.astype(np.float32))
    with pytest.raises(DataError, match=r"brightest value 1 of 4095 .*they would be black: "):
        bit_depth.question([tmp_path / "d.tif"], 4095)


def deep_data(root):
    """A data set of 12 bits in 16, its third picture half as bright as the others."""
    write_mvtec(root, size=(48, 40))
    for path in sorted(root.glob("plate/t*/*/*.png")):
        eight = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        shift = 1 if path.parent.name == "good" and path.name == "002.png" else 0
        Image.fromarray(eight << 4 >> shift).save(path)
    return root


def test_a_data_set_has_one_white(tmp_path):
    root = deep_data(tmp_path)
    with pytest.raises(DataError, match=r"brightest value \d+ of 65535 .* data_options.white=4095"):
        open_dataset(f"mvtec:{root}", split="train", image_size=40, seed=0)
    options = {"white": 4095, "defective_share": 0}
    train = open_dataset(f"mvtec:{root}", split="train", image_size=40, seed=0, options=options)
    means = [float(unit_range(train.get(index).image).mean()) for index in range(3)]
    assert means[0] == pytest.approx(means[1], rel=0.1)
    assert means[2] == pytest.approx(means[0] / 2, rel=0.1), "no picture is brightened by itself"
    assert train.describe()["options"]["white"] == 4095
    test = open_dataset(f"mvtec:{root}", split="test", image_size=40, seed=0, options=options)
    assert float(unit_range(test.get(0).image).mean()) > 0.3
    for wrong in (-1, "nan", "inf"):
        with pytest.raises(DataError, match="data option white"):
            open_dataset(f"mvtec:{root}", split="train", image_size=40, seed=0, options={"white": wrong})


def test_records_of_ordinary_data_do_not_change():
    options = open_dataset("textures", split="train", image_size=32, seed=0).describe()["options"]
    assert "white" not in options


def test_only_some_of_many_are_decoded(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(70)]
    for path in paths:
        save(path, (RAMP * 65535).astype(np.uint16))
    read, seen = bit_depth.opener.read, []
    monkeypatch.setattr("core_model.data.decode.opener.read", lambda path: seen.append(path) or read(path))
    bit_depth.question(paths)
    assert len(seen) == 24
    monkeypatch.setattr("core_model.data.decode.opener.LOOK_PIXELS", RAMP.size)
    bit_depth.question(paths)
    assert len(seen) == 26
