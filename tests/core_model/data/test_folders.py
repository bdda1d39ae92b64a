"""Nothing in a folder is passed by without a word: sub-folders, other formats, relatives of MVTec AD's layout."""

import shutil

import pytest
from PIL import Image

from core_model.data import DataError, open_dataset
from core_model.data.generated_sets import write_aebad, write_mvtec, write_visa
from core_model.data.readers.listing import SUFFIXES


def opened(spec, split="train", **options):
    return open_dataset(spec, split=split, image_size=32, seed=0, options=options)


def move(root, *pairs):
    """Renames in every category folder of `root`."""
    for old, new in pairs:
        for path in sorted(root.glob(f"*/{old}")):
            target = path.parents[old.count("/")] / new
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)


def convert(folder, suffix):
    for path in sorted(folder.glob("*.png")):
        Image.open(path).save(path.with_suffix(suffix))
        path.unlink()


def test_linked_categories_are_named_by_their_links(tmp_path):
    for name in ("bolt", "nut"):
        write_mvtec(tmp_path / name, categories=("v1",))
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(tmp_path / name / "v1")
    test = opened(f"mvtec:{tmp_path / 'data'}", "test")
    assert test.categories == ("bolt", "nut")
    assert len(test) == len(set(test.ids)) == 14
    assert opened(f"mvtec:{tmp_path / 'data' / 'nut'}").categories == ("nut",)


def test_an_object_of_visa_may_be_a_link(tmp_path):
    root = write_visa(tmp_path / "visa", objects=("candle", "pcb1"))
    (tmp_path / "mine").symlink_to(root / "pcb1")
    assert opened(f"visa:{tmp_path / 'mine'}").categories == ("pcb1",)


def test_rows_that_come_twice_are_refused_by_their_lines(tmp_path):
    table = write_visa(tmp_path) / "split_csv" / "1cls.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[1].replace("train", "test")]) + "\n")
    with pytest.raises(DataError, match=r"1cls\.csv line 13: image .*0000\.JPG stands in line 2 already"):
        opened(f"visa:{tmp_path}")
    anomaly = lines[-1].split(",")
    table.write_text("\n".join([*lines[:-2], ",".join([*lines[-2].split(",")[:4], anomaly[4]]), lines[-1]]) + "\n")
    with pytest.raises(DataError, match=r"mask .* stands in line 11 already"):
        opened(f"visa:{tmp_path}")


def test_a_csv_out_of_a_spreadsheet_is_read(tmp_path):
    root = write_visa(tmp_path)
    before = opened(f"visa:{root}", "test").ids
    table = root / "split_csv" / "1cls.csv"
    text = table.read_text().replace("object,split,label", "Object,Split,LABEL").replace("normal", "Normal")
    table.write_bytes(b"\xef\xbb\xbf" + text.replace(",", ";").encode())
    assert opened(f"visa:{root}", "test").ids == before
    table.write_text(table.read_text(encoding="utf-8-sig").replace(";", "\t").replace("/", "\\"))
    assert len(opened(f"visa:{root}", "test")) == len(before)


FORMATS = {".gif": {}, ".jfif": {"format": "JPEG"}, ".ppm": {}, ".jp2": {}, ".tga": {}, ".avif": {}, ".jpe": {}}


@pytest.mark.parametrize("suffix", FORMATS)
def test_formats_that_pillow_reads_are_pictures(tmp_path, suffix):
    root = write_mvtec(tmp_path)
    path = root / "plate/train/good/000.png"
    Image.open(path).save(path.with_suffix(suffix), **FORMATS[suffix])
    path.unlink()
    train = opened(f"mvtec:{root}", defective_share=0)
    assert train.ids[0] == f"plate/train/good/000{suffix}"
    assert train.get(0).image.max() > 0.3 * 255
    assert not train.notes


def test_every_suffix_is_one_that_pillow_opens():
    Image.init()
    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    assert readable >= SUFFIXES - {".avif"}  # of newer versions


def test_sub_folders_are_read_with_their_masks(tmp_path):
    root = write_mvtec(tmp_path, defective=2)
    move(root, ("test/dent", "old"), ("old", "test/dent/lot1"))
    move(root, ("train/good", "old"), ("old", "train/good/lot1"))
    inside = root / "plate/ground_truth/dent"
    (inside / "lot1").mkdir()
    (inside / "000_mask.png").rename(inside / "lot1" / "000_mask.png")  # beside it, or in the kind's folder
    train, test = opened(f"mvtec:{root}"), opened(f"mvtec:{root}", "test")
    assert train.ids[0] == "plate/train/good/lot1/000.png"
    assert test.describe()["pictures"] == {"plate": {"dent": 2, "good": 3, "hole": 2}}
    assert all(test.get(index).mask.any() for index in range(2))
    lots = root / "plate/test/dent"
    (lots / "lot2").mkdir()
    shutil.copy(lots / "lot1" / "001.png", lots / "lot2")
    with pytest.raises(DataError, match=r"lot2/001\.png and .*lot1/001\.png would share the mask"):
        opened(f"mvtec:{root}", "test")


def test_a_link_that_leads_back_up_is_refused(tmp_path):
    root = write_mvtec(tmp_path)
    (root / "plate/train/good/again").symlink_to(root / "plate/train/good")
    with pytest.raises(DataError, match="again: a link to a folder that it lies in"):
        opened(f"mvtec:{root}")


def test_what_is_left_out_is_named_with_counts(tmp_path):
    root = write_mvtec(tmp_path)
    assert not opened(f"mvtec:{root}").notes
    for name in ("Thumbs.db", ".DS_Store", "._000.png", "desktop.ini"):
        (root / "plate/train/good" / name).write_bytes(b"x")
    (root / "plate/test/__MACOSX").mkdir()
    (root / "__MACOSX").mkdir()
    assert not opened(f"mvtec:{root}").notes
    for name in ("notes.txt", "more.txt", "depth.heic", "README"):
        (root / "plate/test/dent" / name).write_text("x")
    shutil.copy(root / "plate/test/good/000.png", root / "plate/test/000.png")
    shutil.copytree(root / "plate/test/dent", root / "plate/train/dent")
    shutil.copytree(root / "plate/test/good", root / "loose")
    (root / "plate/test/scratch").mkdir()
    (root / "plate/ground_truth/dent/007_mask.png").write_bytes(b"x")
    notes = "\n".join(opened(f"mvtec:{root}").notes)
    assert "4 files among the pictures are no pictures by name and left out: 2 .txt (plate/test/dent/more.txt)" in notes
    assert "1 .heic (plate/test/dent/depth.heic)" in notes
    assert "plate/test: 1 picture directly in it left out" in notes
    assert "plate/train/dent: 2 pictures left out: training uses train/good alone" in notes
    assert "loose: 3 pictures left out" in notes
    assert "plate/test/scratch: no pictures in it" in notes
    assert "1 mask without a picture, such as plate/ground_truth/dent/007_mask.png" in notes


def test_test_pictures_that_are_trained_on_are_named(tmp_path):
    root = write_mvtec(tmp_path)
    shutil.rmtree(root / "plate/test/good")
    (root / "plate/test/good").symlink_to(root / "plate/train/good")
    assert "6 test pictures are trained on too" in opened(f"mvtec:{root}").notes[0]


def test_a_link_to_nowhere_is_one_line(tmp_path):
    root = write_mvtec(tmp_path)
    (root / "plate/train/good/000.png").unlink()
    (root / "plate/train/good/000.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"000\.png"):
        opened(f"mvtec:{root}")


def test_btad(tmp_path):
    root = write_mvtec(tmp_path, categories=("01", "02"), kinds=("ko",))
    move(root, ("train/good", "train/ok"), ("test/good", "test/ok"))
    for path in root.glob("*/ground_truth/ko/*_mask.png"):
        path.rename(path.with_name(path.name.replace("_mask", "")))
    convert(root / "01/train/ok", ".bmp")
    convert(root / "01/ground_truth/ko", ".bmp")
    test = opened(f"mvtec:{root}", "test")
    assert opened(f"mvtec:{root}").ids[0] == "01/train/ok/000.bmp"
    assert test.describe()["pictures"] == {name: {"good": 3, "ko": 2} for name in ("01", "02")}
    assert all(test.get(index).mask.any() == test.get(index).is_defective for index in range(len(test)))


def test_mvtec_loco_joins_the_masks_of_a_picture(tmp_path):
    root = write_mvtec(tmp_path, size=(32, 32), kinds=("logical_anomalies",))
    shutil.copytree(root / "plate/train/good", root / "plate/validation/good")
    for path in sorted(root.glob("plate/ground_truth/*/*_mask.png")):
        whole = Image.open(path)
        inside = path.with_name(path.name.split("_")[0])
        inside.mkdir()
        for half, box in enumerate([(0, 0, 16, 32), (16, 0, 32, 32)]):
            part = Image.new("L", (32, 32))
            part.paste(whole.crop(box), box)
            part.save(inside / f"{half:03d}.png")
    before = {path.parent.name: Image.open(path).getbbox() for path in root.glob("plate/ground_truth/*/000/*.png")}
    test = opened(f"mvtec:{root}", "test")
    masks = {test.get(index).id[-7:-4]: test.get(index).mask[0] for index in range(len(test)) if index >= 3}
    parts = [path.parent for path in root.glob("plate/ground_truth/*/*/000.png")]
    assert before
    assert len(parts) == 2
    for part in parts:
        drawn = sum((Image.open(path).histogram()[255] for path in part.iterdir()), 0)
        assert masks[part.name].sum() == drawn
    assert "plate/validation: 6 pictures left out: training holds pictures out itself" in test.notes[0]


def test_mvtec_ad_2(tmp_path):
    root = write_mvtec(tmp_path, categories=("can",), kinds=("bad",))
    move(root, ("test", "test_public"), ("ground_truth", "test_public/ground_truth"))
    shutil.copytree(root / "can/test_public/bad", root / "can/test_private")
    test = opened(f"mvtec:{root}", "test")
    assert test.describe()["pictures"] == {"can": {"bad": 2, "good": 3}}
    assert test.get(0).mask.any()
    assert "can/test_private: 2 pictures left out: its labels are not public" in test.notes


def test_mvtec_3d_gives_its_colour_pictures(tmp_path):
    root = write_mvtec(tmp_path, categories=("bagel",), kinds=("hole",))
    for part in ("train/good", "test/good", "test/hole"):
        move(root, (part, "old"), ("old", f"{part}/rgb"))
        shutil.copytree(root / "bagel" / part / "rgb", root / "bagel" / part / "xyz")
        convert(root / "bagel" / part / "xyz", ".tiff")
    move(root, ("ground_truth/hole", "test/hole/gt"))
    for path in root.glob("bagel/test/hole/gt/*"):
        path.rename(path.with_name(path.name.replace("_mask", "")))
    (root / "bagel/ground_truth").rmdir()
    test = opened(f"mvtec:{root}", "test")
    assert opened(f"mvtec:{root}").describe()["pictures"] == {"bagel": {"good": 6}}
    assert test.describe()["pictures"] == {"bagel": {"good": 3, "hole": 2}}
    assert test.get(3).is_defective
    assert test.get(3).mask.any()
    assert any("bagel/test/hole/xyz: 2 pictures left out" in note for note in test.notes)


def test_a_folder_that_cannot_be_read_is_recognized(tmp_path):
    mvtec = write_mvtec(tmp_path / "up" / "mvtec")
    visa, aebad = write_visa(tmp_path / "visa"), write_aebad(tmp_path / "aebad")
    capital = write_mvtec(tmp_path / "capital")
    move(capital, ("train", "Train"), ("test", "Testing"))
    loose = tmp_path / "loose"
    shutil.copytree(mvtec / "plate/train/good", loose)
    (tmp_path / "up" / "__MACOSX").mkdir()
    for spec, said in (
        (f"mvtec:{visa}", "it looks like VisA: use visa:DIR"),
        (f"mvtec:{tmp_path / 'up'}", f"one level down, in mvtec, it looks like MVTec AD: use mvtec:{mvtec}"),
        (f"mvtec:{mvtec / 'plate/train'}", "give the category's folder or the one above it"),
        (f"mvtec:{capital}", "there is plate/Train: rename it to train"),
        (f"mvtec:{loose}", "pictures such as 000.png lie directly in it"),
        (f"aebad:{mvtec}", "it looks like MVTec AD: use mvtec:DIR"),
        (f"aebad:{visa}", "it looks like VisA"),
        (f"visa:{aebad}", "it looks like AeBAD: use aebad:DIR"),
    ):
        with pytest.raises(DataError) as raised:
            opened(spec)
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
