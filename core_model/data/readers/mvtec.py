"""MVTec AD's layout (Bergmann et al., 2019), which many other data sets follow, and its near relatives.

::

    DIR/CATEGORY/train/good/000.png                (sub-folders too: train/good/lot1/000.png)
    DIR/CATEGORY/test/good/000.png
    DIR/CATEGORY/test/KIND/000.png
    DIR/CATEGORY/ground_truth/KIND/000_mask.png    (other names: `core_model.data.readers.masks`)

DIR may also be one category's folder. Without ground_truth a category has no masks, without test it can only be trained
on. Relatives that are read as they are:

    BTAD          train/ok, test/ok, test/ko: ``ok`` and ``normal`` are other names of ``good``
    MVTec LOCO    ground_truth/KIND/000/000.png, 001.png ...: the union is the mask; validation is not read
    MVTec AD 2    test_public/KIND, test_public/ground_truth/KIND; validation and the private tests are not read
    MVTec 3D-AD   train/good/rgb, test/KIND/rgb, test/KIND/gt: colour pictures; xyz and validation are not read
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from core_model.data.decode.pictures import GOOD, FilePicture, content_hash
from core_model.data.errors import DataError
from core_model.data.readers.layout import Layout, files_of, folder_of, own_name
from core_model.data.readers.listing import LeftOut, folders_in, list_pictures, pictures_below, plural
from core_model.data.readers.masks import NAME as GROUND_TRUTH
from core_model.data.readers.masks import Masks, masks_of
from core_model.data.readers.recognize import remedy

GOOD_NAMES = frozenset({"good", "ok", "normal"})
TESTS = ("test", "test_public")
_READ = frozenset({"train", GROUND_TRUTH})
_UNREAD = {
    "validation": "training holds pictures out itself (data option holdout)",
    "test_private": "its labels are not public",
    "test_private_mixed": "its labels are not public",
}


def read(name: str) -> Layout:
    """The data set in folder `name`. Only names are read, no pixels. Raises DataError."""
    root = folder_of(name)
    left_out = LeftOut(root)
    train: list[FilePicture] = []
    test: list[FilePicture] = []
    for folder in _category_folders(root, left_out):
        category = own_name(folder)
        train += _train(folder, category, left_out)
        test += _test(folder, category, left_out)
    return Layout(
        name="mvtec",
        source=root.resolve().name,
        train=tuple(train),
        test=tuple(test),
        content=content_hash(root, files_of([*train, *test])),
        notes=left_out.notes(),
    )


def _category_folders(root: Path, left_out: LeftOut) -> list[Path]:
    if (root / "train").is_dir():
        return [root]
    inside = folders_in(root)
    folders = [path for path in inside if any((path / part).is_dir() for part in ("train", *TESTS))]
    if not folders:
        raise DataError(
            f"{root}: no train/{GOOD} in it or in its folders (MVTec AD's layout: DIR/CATEGORY/train/{GOOD}/*.png): "
            f"{remedy(root)}"
        )
    for path in inside:
        if path not in folders:
            left_out.folder(path, f"a category has train/{GOOD}")
    return folders


def _train(folder: Path, category: str, left_out: LeftOut) -> list[FilePicture]:
    inside = folders_in(folder / "train")
    good = [path for path in inside if path.name.lower() in GOOD_NAMES]
    if not good:
        held = f", which holds {', '.join(path.name for path in inside[:5])}" if inside else ""
        raise DataError(
            f"{folder}: no train/{GOOD}{held}: put good pictures for training into {folder / 'train' / GOOD}"
        )
    if len(good) > 1:
        raise DataError(f"{folder / 'train'}: {good[0].name} and {good[1].name} are both good: keep one of the folders")
    for path in inside:
        if path not in good:
            left_out.folder(path, f"training uses train/{good[0].name} alone")
    _loose(folder / "train", f"put them into train/{good[0].name}", left_out)
    paths = _pictures(good[0], left_out)
    if not paths:
        raise DataError(f"{good[0]}: no pictures in it: put good pictures (png, jpg, bmp, tif, webp ...) there")
    return [_picture(folder, category, path, GOOD) for path in paths]


def _test(folder: Path, category: str, left_out: LeftOut) -> list[FilePicture]:
    """Test pictures with masks; empty where there is no test folder (training needs none)."""
    test = next((folder / part for part in TESTS if (folder / part).is_dir()), None)
    for path in folders_in(folder):
        if path.name not in _READ and path != test:
            left_out.folder(path, _UNREAD.get(path.name.lower(), "train, test and ground_truth are read"))
    if test is None:
        return []
    masks = masks_of(folder if (folder / GROUND_TRUTH).is_dir() or test.name == TESTS[0] else test)
    _loose(test, f"put them into {test.name}/{GOOD} or {test.name}/KIND", left_out)
    pictures = []
    for kind_folder in folders_in(test):
        if kind_folder == masks.folder:
            continue
        kind = GOOD if kind_folder.name.lower() in GOOD_NAMES else kind_folder.name
        paths = _pictures(kind_folder, left_out)
        if not paths:
            left_out.say(f"{left_out.name(kind_folder)}: no pictures in it")
        own = Masks(kind_folder / "gt", first="") if _is_3d(kind_folder) else masks
        for path in paths:
            place = Path() if own is not masks else path.parent.relative_to(test)
            found = () if kind == GOOD else own.of(path, place)
            pictures.append(_picture(folder, category, path, kind, found))
    unused = masks.unused()
    if unused:
        left_out.say(
            f"{plural(len(unused), 'mask')} without a picture, such as {left_out.name(unused[0])}: is a test picture "
            "missing?"
        )
    return pictures


def _pictures(folder: Path, left_out: LeftOut) -> list[Path]:
    """The pictures of one kind: in its folder and below; of MVTec 3D-AD, the colour pictures."""
    if not _is_3d(folder):
        return pictures_below(folder, left_out)
    left_out.folder(folder / "xyz", "MVTec 3D-AD's colour pictures (rgb) are read, not its depth")
    return pictures_below(folder / "rgb", left_out)


def _is_3d(folder: Path) -> bool:
    return (folder / "rgb").is_dir() and (folder / "xyz").is_dir()


def _loose(folder: Path, what_to_do: str, left_out: LeftOut) -> None:
    """Says pictures that lie directly where only folders are read."""
    count = len(list_pictures(folder))
    if count:
        left_out.say(f"{left_out.name(folder)}: {plural(count, 'picture')} directly in it left out: {what_to_do}")


def _picture(folder: Path, category: str, path: Path, kind: str, masks: tuple[Path, ...] = ()) -> FilePicture:
    place = PurePosixPath(path.relative_to(folder))
    return FilePicture(id=f"{category}/{place}", category=category, kind=kind, path=path, mask_paths=masks)
