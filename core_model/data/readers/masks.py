"""Which file, or files, hold the mask of a picture, by their names.

Of a picture STEM.png in test/KIND, any of these in ground_truth/KIND, with any suffix of a picture::

    STEM_mask.png    STEM.png    STEM_gt.png (and other endings of `listing.MASK_ENDINGS`)
    STEM/000.png STEM/001.png ...    several masks of one picture (MVTec LOCO): their union

A name that is only like these is named in the error, never guessed.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from core_model.data.errors import DataError
from core_model.data.readers.listing import MASK_ENDINGS, folders_in, holds_pictures, is_junk, is_picture, list_pictures

NAME = "ground_truth"
# Names that other data sets give the folder of masks: a folder of one of these is not passed by without a word.
_OTHER_NAMES = frozenset(
    {"mask", "masks", "gt", "gts", "groundtruth", "ground-truth"}
    | {"label", "labels", "annotation", "annotations", "segmentation"}
)


class Masks:
    """The masks in `folder` (ground_truth).

    Args:
        first: the ending of the layout's own names, which wins over others.
    """

    def __init__(self, folder: Path, *, first: str = "_mask") -> None:
        self.folder = folder
        self._first = first
        self._endings = tuple(dict.fromkeys((first, "_mask", "", *MASK_ENDINGS)))
        self._listed: dict[Path, tuple[dict[str, list[Path]], dict[str, Path]]] = {}
        self._owner: dict[Path, Path] = {}
        self.any = holds_pictures(folder)

    def of(self, picture: Path, place: Path) -> tuple[Path, ...]:
        """The mask files of `picture`; none where the folder holds no mask at all.

        Args:
            place: where its masks lie below the folder, such as ``KIND`` or ``KIND/lot1``.

        Raises:
            DataError: where only this picture has none, two files could be it, or another picture has the same.
        """
        if not self.any:
            return ()
        for folder in [self.folder / place, *(self.folder / above for above in list(place.parents)[:-1])]:
            found = self._in(folder, picture)
            if found:
                self._claim(found, picture)
                return found
        expected = self.folder / place / f"{picture.stem}{self._first}.png"
        raise DataError(f"{picture}: no mask: expected {expected}{self._near(picture, place)}")

    def unused(self) -> list[Path]:
        """Masks in the folders looked at that no picture claimed."""
        files = [path for by_stem, _ in self._listed.values() for paths in by_stem.values() for path in paths]
        return sorted(path for path in files if path not in self._owner)

    def _in(self, folder: Path, picture: Path) -> tuple[Path, ...]:
        files, folders = self._list(folder)
        for ending in self._endings:
            found = files.get(f"{picture.stem}{ending}") or files.get(f"{picture.stem}{ending.upper()}") or []
            if len(found) > 1:
                found = [path for path in found if path.name == picture.name] or found
            if len(found) > 1:
                raise DataError(
                    f"{picture}: two masks, {found[0].name} and {found[1].name}, in {folder}: keep one of them"
                )
            if found:
                return tuple(found)
        for ending in self._endings:
            inside = folders.get(f"{picture.stem}{ending}")
            if inside is not None and (masks := list_pictures(inside)):
                return tuple(masks)
        return ()

    def _list(self, folder: Path) -> tuple[dict[str, list[Path]], dict[str, Path]]:
        """(files by stem, folders by name) directly in `folder`."""
        if folder not in self._listed:
            files: dict[str, list[Path]] = {}
            for path in list_pictures(folder) if folder.is_dir() else ():
                files.setdefault(path.stem, []).append(path)
            self._listed[folder] = files, {path.name: path for path in folders_in(folder)}
        return self._listed[folder]

    def _claim(self, masks: Sequence[Path], picture: Path) -> None:
        for mask in masks:
            owner = self._owner.setdefault(mask, picture)
            if owner != picture:
                raise DataError(
                    f"{picture} and {owner.name if owner.parent == picture.parent else owner} would share the mask "
                    f"{mask}: give each picture a name and a mask of its own"
                )

    def _near(self, picture: Path, place: Path) -> str:
        """What lies there instead, as the end of a sentence; "" where nothing is like it. What plainly belongs to
        another picture, or another folder of pictures, is not meant."""
        folder, beside = self.folder / place, picture.parent
        while not folder.is_dir():
            names = [path.name for path in folders_in(folder.parent) if not (beside.parent / path.name).is_dir()]
            near = _nearest(folder.name, names)
            if near:
                return f"; there is a folder {folder.parent / near}: rename it to {folder.name}"
            folder, beside = folder.parent, beside.parent
        stems = {path.stem for path in list_pictures(picture.parent)} - {picture.stem}
        others = {stem + ending for stem in stems for ending in self._endings}
        names = [path.name for path in sorted(folder.iterdir()) if not is_junk(path) and path.stem not in others]
        own = [name for name in names if picture.stem.lower() in name.lower()]
        name = own[0] if own else _nearest(f"{picture.stem}{self._first}.png", names)
        if not name:
            return ""
        unread = not (folder / name).is_dir() and not is_picture(folder / name)
        return f"; there is {name}: " + ("save it as a picture of that name" if unread else "rename it")


def masks_of(folder: Path, *, first: str = "_mask") -> Masks:
    """The masks in `folder`/ground_truth, where there is such a folder. Raises DataError where masks seem to lie in a
    folder of another name."""
    masks = Masks(folder / NAME, first=first)
    if not masks.any:
        for other in folders_in(folder):
            same = other.name.lower().replace(" ", "") in _OTHER_NAMES or _nearest(NAME, [other.name])
            if other != masks.folder and same and holds_pictures(other):
                raise DataError(f"{folder}: no masks in {NAME}, but pictures in {other.name}: rename it to {NAME}")
    return masks


def _nearest(name: str, known: Sequence[str]) -> str:
    """The one of `known` that is most like `name`, in capitals or not; "" where none is."""
    lower = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), lower, 1, 0.75)
    return lower[found[0]] if found else ""
