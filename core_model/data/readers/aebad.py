"""AeBAD-S's layout (Zhang et al., 2023): blades of aero-engines, with a folder for each domain below each kind.

::

    DIR/train/good/DOMAIN/*.png
    DIR/test/good/DOMAIN/*.png
    DIR/test/KIND/DOMAIN/*.png             KIND: ablation, breakdown, fracture, groove
    DIR/ground_truth/KIND/DOMAIN/*.png     same name as the picture (other names: `core_model.data.readers.masks`)
    DOMAIN: same, background, illumination, view

DIR may also be the folder above, which holds ``AeBAD_S``. As in the study, each defect kind is a category of its own:
it has the good pictures of all, and its own defects. A domain shows in a picture's id, not in its category.
"""

from __future__ import annotations

from pathlib import Path

from core_model.data.decode.pictures import GOOD, FilePicture, content_hash
from core_model.data.errors import DataError
from core_model.data.readers.layout import Layout, files_of, folder_of
from core_model.data.readers.listing import LeftOut, folders_in, list_pictures, pictures_below, plural
from core_model.data.readers.masks import masks_of
from core_model.data.readers.recognize import remedy

FOLDER = "AeBAD_S"


def read(name: str) -> Layout:
    """The data set in folder `name`. Only names are read. Raises DataError."""
    root = folder_of(name)
    if (root / FOLDER).is_dir():
        root = root / FOLDER
    left_out = LeftOut(root)
    good = root / "train" / GOOD
    if not good.is_dir():
        raise DataError(f"{root}: no train/good (AeBAD's layout: DIR/train/good/DOMAIN/*.png): {remedy(root)}")
    kinds = [path.name for path in folders_in(root / "test") if path.name != GOOD]
    if not kinds:
        raise DataError(f"{root / 'test'}: no defect folders (ablation, breakdown, fracture, groove) in it")
    for path in folders_in(root / "train"):
        if path != good:
            left_out.folder(path, "training uses train/good alone")
    loose = list_pictures(root / "test")
    if loose:
        left_out.say(f"test: {plural(len(loose), 'picture')} directly in it left out: put them into test/KIND/DOMAIN")
    masks = masks_of(root, first="")
    good_train = pictures_below(good, left_out)
    good_test = pictures_below(root / "test" / GOOD, left_out) if (root / "test" / GOOD).is_dir() else []
    train, test = [], []
    for kind in kinds:
        train += [_picture(root, kind, GOOD, path, ()) for path in good_train]
        test += [_picture(root, kind, GOOD, path, ()) for path in good_test]
        for path in pictures_below(root / "test" / kind, left_out):
            test.append(_picture(root, kind, kind, path, masks.of(path, path.parent.relative_to(root / "test"))))
    if not train:
        raise DataError(f"{good}: no pictures in its domain folders (background, illumination, view)")
    return Layout(
        name="aebad",
        source=root.resolve().name,
        train=tuple(train),
        test=tuple(test),
        content=content_hash(root, sorted(set(files_of([*train, *test])))),
        notes=left_out.notes(),
    )


def _picture(root: Path, category: str, kind: str, path: Path, masks: tuple[Path, ...]) -> FilePicture:
    file = path.relative_to(root).as_posix()
    return FilePicture(id=f"{category}/{file}", category=category, kind=kind, path=path, mask_paths=masks, file=file)
