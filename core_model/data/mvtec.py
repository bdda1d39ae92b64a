"""MVTec AD's layout (Bergmann et al., 2019), which many other data sets follow.

::

    DIR/CATEGORY/train/good/000.png
    DIR/CATEGORY/test/good/000.png
    DIR/CATEGORY/test/KIND/000.png
    DIR/CATEGORY/ground_truth/KIND/000_mask.png    (or 000.png)

DIR may also be one category's folder.
"""

from __future__ import annotations

from pathlib import Path

from core_model.data.errors import DataError
from core_model.data.layout import Layout, files_of, folder_of
from core_model.data.pictures import FilePicture, content_hash, list_pictures

GOOD = "good"


def read(name: str) -> Layout:
    """The data set in folder `name`. Only names are read, no pixels. Raises DataError."""
    root = folder_of(name)
    folders = _category_folders(root)
    train = [picture for folder in folders for picture in _train(folder)]
    test = [picture for folder in folders for picture in _test(folder)]
    return Layout(
        name="mvtec",
        source=root.resolve().name,
        train=tuple(train),
        test=tuple(test),
        content=content_hash(root, files_of([*train, *test])),
    )


def _category_folders(root: Path) -> list[Path]:
    if (root / "train").is_dir():
        return [root]
    folders = sorted(path for path in root.iterdir() if (path / "train").is_dir() or (path / "test").is_dir())
    if not folders:
        raise DataError(
            f"{root}: no train/good in it or in its folders: MVTec AD's layout is DIR/CATEGORY/train/good/*.png"
        )
    return folders


def _train(folder: Path) -> list[FilePicture]:
    good = folder / "train" / GOOD
    if not good.is_dir():
        raise DataError(f"{folder}: no train/good: put good pictures for training into {good}")
    paths = list_pictures(good)
    if not paths:
        raise DataError(f"{good}: no pictures in it: put good pictures (png, jpg, bmp, tif, webp) there")
    return [_picture(folder, path, GOOD, None) for path in paths]


def _test(folder: Path) -> list[FilePicture]:
    """Test pictures with masks; empty where there is no test folder (training needs none)."""
    pictures = []
    if not (folder / "test").is_dir():
        return []
    for kind_folder in sorted(path for path in (folder / "test").iterdir() if path.is_dir()):
        kind = kind_folder.name
        for path in list_pictures(kind_folder):
            pictures.append(_picture(folder, path, kind, None if kind == GOOD else _mask_of(folder, path, kind)))
    return pictures


def _mask_of(folder: Path, path: Path, kind: str) -> Path:
    masks = folder / "ground_truth" / kind
    for candidate in (masks / f"{path.stem}_mask.png", masks / f"{path.stem}.png"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{path}: no mask: expected {masks / (path.stem + '_mask.png')}")


def _picture(folder: Path, path: Path, kind: str, mask: Path | None) -> FilePicture:
    category = folder.resolve().name
    return FilePicture(
        id=f"{category}/{path.relative_to(folder).as_posix()}", category=category, kind=kind, path=path, mask_path=mask
    )
