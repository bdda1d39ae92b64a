"""What a reader of a folder layout returns: the pictures of a data set before any is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core_model.data.decode.pictures import FilePicture, Picture
from core_model.data.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a reader found in a folder.

    Args:
        name: ``mvtec``, ``visa``, ``aebad`` or ``textures``.
        source: name of the folder, without its path.
        train: good pictures.
        test: good and defective pictures.
        content: sha256 of what the data set consists of.
        notes: sentences about what lies in the folder and is not read.
    """

    name: str
    source: str
    train: tuple[Picture, ...]
    test: tuple[Picture, ...]
    content: str
    notes: tuple[str, ...] = ()

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted({picture.category for picture in (*self.train, *self.test)}))


def folder_of(name: str) -> Path:
    """The folder that the user named. Raises DataError where it is missing, not a folder or empty."""
    folder = Path(name).expanduser()
    if not folder.exists():
        raise DataError(f"{name}: no such data folder: check the path after the colon")
    if not folder.is_dir():
        raise DataError(f"{name}: not a folder: give the folder that holds the data set")
    if not any(folder.iterdir()):
        raise DataError(f"{name}: the data folder is empty: unpack the data set into it")
    return folder


def own_name(folder: Path) -> str:
    """The name of the folder's own entry, also where that is a link: targets of several links may share a name."""
    return Path(os.path.abspath(folder)).name


def files_of(pictures: Iterable[Picture]) -> list[Path]:
    """Every file that the pictures are read from."""
    files = []
    for picture in pictures:
        if isinstance(picture, FilePicture):
            files.append(picture.path)
            files += picture.mask_paths
    return files
