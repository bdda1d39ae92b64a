"""AeBAD-S's layout (Zhang et al., 2023): blades of aero-engines, with a folder for each domain below each kind.

::

    DIR/train/good/DOMAIN/*.png
    DIR/test/good/DOMAIN/*.png
    DIR/test/KIND/DOMAIN/*.png             KIND: ablation, breakdown, fracture, groove
    DIR/ground_truth/KIND/DOMAIN/*.png     same name as the picture
    DOMAIN: same, background, illumination, view

DIR may also be the folder above, which holds ``AeBAD_S``. As in the study, each defect kind is a category of its own:
it has the good pictures of all, and its own defects. A domain shows in a picture's id, not in its category.
"""

from __future__ import annotations

from pathlib import Path

from core_model.data.errors import DataError
from core_model.data.layout import Layout, files_of, folder_of
from core_model.data.pictures import FilePicture, content_hash, list_pictures

GOOD = "good"
FOLDER = "AeBAD_S"


def read(name: str) -> Layout:
    """The data set in folder `name`. Only names are read. Raises DataError."""
    root = folder_of(name)
    if (root / FOLDER).is_dir():
        root = root / FOLDER
    good = root / "train" / GOOD
    if not good.is_dir():
        raise DataError(f"{root}: no train/good: AeBAD's layout is DIR/train/good/DOMAIN/*.png")
    kinds = sorted(path.name for path in _folders(root / "test") if path.name != GOOD)
    if not kinds:
        raise DataError(f"{root / 'test'}: no defect folders (ablation, breakdown, fracture, groove) in it")
    train, test = [], []
    for kind in kinds:
        train += [_picture(root, kind, GOOD, path, None) for path in _by_domain(good)]
        for path in _by_domain(root / "test" / GOOD):
            test.append(_picture(root, kind, GOOD, path, None))
        for path in _by_domain(root / "test" / kind):
            test.append(_picture(root, kind, kind, path, _mask_of(root, path)))
    if not train:
        raise DataError(f"{good}: no pictures in its domain folders (background, illumination, view)")
    return Layout(
        name="aebad",
        source=root.resolve().name,
        train=tuple(train),
        test=tuple(test),
        content=content_hash(root, sorted(set(files_of([*train, *test])))),
    )


def _by_domain(folder: Path) -> list[Path]:
    """The pictures in the domain folders of `folder`, and those directly in it."""
    if not folder.is_dir():
        return []
    return [*list_pictures(folder), *(path for domain in _folders(folder) for path in list_pictures(domain))]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _mask_of(root: Path, path: Path) -> Path:
    expected = root / "ground_truth" / path.relative_to(root / "test")
    for candidate in (expected, expected.with_suffix(".png"), expected.with_name(f"{path.stem}_mask.png")):
        if candidate.is_file():
            return candidate
    raise DataError(f"{path}: no mask: expected {expected}")


def _picture(root: Path, category: str, kind: str, path: Path, mask: Path | None) -> FilePicture:
    file = path.relative_to(root).as_posix()
    return FilePicture(id=f"{category}/{file}", category=category, kind=kind, path=path, mask_path=mask, file=file)
