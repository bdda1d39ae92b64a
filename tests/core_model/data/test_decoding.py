"""Every picture file is read upright and in its true colours, or refused in one line before a job starts."""

import os
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from core_model.data import DataError, open_dataset
from core_model.data.decode import opener
from core_model.data.decode.opener import header
from core_model.data.decode.pictures import FilePicture, check, content_hash, read_mask, read_rgb
from core_model.data.generated_sets import picture, write_mvtec

# EXIF orientation -> how an upright picture is to be stored
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
UPRIGHT = np.zeros((40, 64, 3), np.uint8)
UPRIGHT[:8, :24], UPRIGHT[32:, :, 1] = (248, 0, 0), 200


def save_turned(path, image, orientation, **options):
    method, tag = STORED[orientation], Image.Exif()
    tag[0x0112] = orientation
    extra = {"tiffinfo": {0x0112: orientation}} if path.suffix == ".tif" else {"exif": tag}
    (image if method is None else image.transpose(method)).save(path, **extra, **options)


@pytest.mark.parametrize("orientation", STORED)
def test_photographs_are_upright_whatever_their_kind(tmp_path, orientation):
    deep = Image.fromarray(UPRIGHT[..., 1].astype(np.uint16) << 8)
    for suffix, options in ((".jpg", {"quality": 100}), (".png", {}), (".tif", {}), (".webp", {"lossless": True})):
        path = tmp_path / f"a{suffix}"
        save_turned(path, Image.fromarray(UPRIGHT), orientation, **options)
        found = read_rgb(path)
        assert found.shape == UPRIGHT.shape, suffix
        assert np.abs(found.astype(int) - UPRIGHT).mean() < (4 if suffix == ".jpg" else 1e-9), suffix
        assert header(path).size == (64, 40)
        if suffix in (".png", ".tif"):
            save_turned(path, deep, orientation)
            assert np.array_equal(read_rgb(path)[..., 0], UPRIGHT[..., 1]), suffix
            assert header(path).size == (64, 40)


def test_a_photograph_and_its_upright_mask_are_a_pair(tmp_path):
    """The mask was drawn over the picture as every viewer shows it."""
    root = write_mvtec(tmp_path, size=(48, 40))
    shown, mask = root / "plate/test/dent/000.png", root / "plate/ground_truth/dent/000_mask.png"
    before = open_dataset(f"mvtec:{root}", split="test", image_size=32, seed=0).get(0)
    save_turned(shown, Image.open(shown), 6)
    after = open_dataset(f"mvtec:{root}", split="test", image_size=32, seed=0).get(0)
    assert after.id.endswith("dent/000.png")
    assert np.array_equal(before.image, after.image)
    assert np.array_equal(before.mask, after.mask)
    Image.open(mask).transpose(Image.Transpose.ROTATE_90).save(mask)
    with pytest.raises(
        DataError, match=r"000_mask.png: the mask is 40x48 but its image 000.png is 48x40 upright .its EXIF"
    ):
        open_dataset(f"mvtec:{root}", split="test", image_size=32, seed=0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_part_hides_no_picture(tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.jpg", quality=100, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0")
    assert read_rgb(tmp_path / "a.jpg").shape == UPRIGHT.shape


def test_ordinary_files_are_read_as_they_always_were(tmp_path):
    """Bit by bit: figures of earlier runs stay comparable."""
    image, mask = picture(3, (72, 56), defective=True)
    coloured = np.ascontiguousarray(image + np.arange(3, dtype=np.uint8) * 20)
    for name, saved in {"a.png": image[..., 0], "b.png": coloured, "c.jpg": coloured, "d.jpg": image[..., 0]}.items():
        Image.fromarray(saved).save(tmp_path / name)
        assert np.array_equal(read_rgb(tmp_path / name), np.asarray(Image.open(tmp_path / name).convert("RGB")))
    for values in (mask, mask // 255 * 3):
        Image.fromarray(values).save(tmp_path / "m.png")
        assert np.array_equal(read_mask(tmp_path / "m.png"), values > 0)


def test_every_colour_mode_shows_the_same_colours(tmp_path):
    colours = Image.fromarray(UPRIGHT)
    alpha = Image.new("L", colours.size, 255)
    for name, image in {
        "palette.png": colours.quantize(4),
        "palette.bmp": colours.quantize(4),
        "palette.tif": colours.quantize(4),
        "cmyk.tif": colours.convert("CMYK"),
        "alpha.png": Image.merge("RGBA", [*colours.split(), alpha]),
        "alpha.webp": Image.merge("RGBA", [*colours.split(), alpha]),
    }.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        assert np.abs(read_rgb(tmp_path / name).astype(int) - UPRIGHT).max() <= 1, name
    shape = Image.new("RGBA", (64, 40), (9, 9, 9, 0))
    ImageDraw.Draw(shape).rectangle((10, 10, 20, 20), fill=(9, 9, 9, 255))
    shape.save(tmp_path / "cut-out.png")
    assert read_rgb(tmp_path / "cut-out.png")[15, 15].tolist() == [255] * 3
    assert read_rgb(tmp_path / "cut-out.png")[0, 0].tolist() == [0] * 3


KINDS = {
    "png": {},
    "jpg": {},
    "bmp": {},
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "tiled.tif": {"compression": "tiff_adobe_deflate", "tiffinfo": {322: 64, 323: 64}},
    "webp": {},
    "lossless.webp": {"lossless": True},
    "avif": {},
    "jp2": {},
    "gif": {},
    "ppm": {},
    "tga": {},
    "pcx": {},
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_off_is_found_without_decoding_the_rest(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(picture(1, (200, 160))[0]).save(path, **KINDS[kind])
    header(path)
    whole = path.read_bytes()
    for kept in (0.98, 0.5, 0.1):
        path.write_bytes(whole[: int(len(whole) * kept)])
        with pytest.raises(DataError, match=r"corrupt image .*: replace or remove it") as raised:
            header(path)
        assert "\n" not in str(raised.value)


def test_whole_files_are_not_decoded(tmp_path, monkeypatch):
    """What keeps the check of a large data set short."""
    paths = []
    for kind in set(KINDS) - {"gif", "ppm", "tga", "pcx"}:
        paths.append(tmp_path / f"a.{kind}")
        Image.fromarray(picture(1)[0]).save(paths[-1], **KINDS[kind])
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    check(FilePicture(id=str(path), category="", kind="", path=path) for path in paths)


def frames(path, **options):
    first, second = (Image.fromarray(picture(number)[0]) for number in (1, 2))
    first.save(path, save_all=True, append_images=[second], **options)


def test_several_pictures_in_a_file_are_refused_but_previews_are_not(tmp_path):
    for name in ("a.tif", "a.webp", "a.gif", "a.png"):
        frames(tmp_path / name)
        with pytest.raises(DataError, match=f"{name}: 2 pictures in one file .*: save one picture a file"):
            header(tmp_path / name)
    frames(tmp_path / "phone.jpg", format="MPO")
    assert header(tmp_path / "phone.jpg").size == (48, 40)


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_picture_of_192_megapixels_is_none_too_many_and_300_are_named(tmp_path):
    Image.new("1", (16000, 12000)).save(tmp_path / "big.png")
    assert header(tmp_path / "big.png").size == (16000, 12000)
    Image.new("1", (20000, 15000)).save(tmp_path / "bigger.png")
    Image.new("1", (30000, 20000)).save(tmp_path / "biggest.png")
    for name, said in {"bigger": "20000x15000 are 300 megapixels, at most 268", "biggest": "than 537 megapix"}.items():
        with pytest.raises(DataError, match=f"{name}.png: .*{said}.*: make the picture smaller or cut it"):
            opener.read(tmp_path / f"{name}.png")
        with pytest.raises(DataError, match=said):
            header(tmp_path / f"{name}.png")


def test_names_and_links_that_lead_nowhere_are_one_line(tmp_path):
    good = tmp_path / "a.png"
    Image.fromarray(UPRIGHT).save(good)
    nameless = tmp_path / os.fsdecode(b"caf\xe9.png")
    good.rename(nameless)
    (tmp_path / "lost.png").symlink_to("/nowhere/b.png")
    (tmp_path / "ring.png").symlink_to(tmp_path / "ring.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for path, said in {
        nameless: r"caf\\udce9.png: the name is not UTF-8: rename",
        tmp_path / "lost.png": r"lost.png: a link to nowhere \(/nowhere/b.png is not there\)",
        tmp_path / "ring.png": "ring.png: cannot be read",
        tmp_path / "pipe.png": "pipe.png: not a file",
        tmp_path / "folder.png": "folder.png: not a file",
    }.items():
        for act in (header, read_rgb, read_mask, lambda path: content_hash(path.parent, [path])):
            if act.__name__ == "<lambda>" and path.name in ("pipe.png", "folder.png"):
                continue  # they have a size
            with pytest.raises(DataError) as raised:
                act(path)
            assert re.search(said, str(raised.value)), str(raised.value)
            str(raised.value).encode()
