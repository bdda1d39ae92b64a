"""The data sets by name, and how a specification such as ``mvtec:/data/mvtec+aebad:/data/AeBAD_S`` is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from core_model.data.decode.pictures import FilePicture, Picture
from core_model.data.errors import DataError
from core_model.data.readers import aebad, builtin_textures, mvtec, visa
from core_model.data.readers.layout import Layout

LAYOUTS: Mapping[str, Callable[[str], Layout]] = {
    "textures": builtin_textures.read,
    "mvtec": mvtec.read,
    "visa": visa.read,
    "aebad": aebad.read,
}
_JOINT = re.compile(r"\+(?=(?:" + "|".join(LAYOUTS) + r")(?::|$))")


def read_sources(spec: str) -> list[Layout]:
    """The data sets named in `spec`, joined by ``+``. Raises DataError, also where two share a category's name."""
    layouts = [_with_shared_files(_read(part)) for part in _JOINT.split(spec)]
    owner: dict[str, str] = {}
    for layout in layouts:
        for category in layout.categories:
            if category in owner:
                raise DataError(f"'{spec}': both {owner[category]} and {layout.source} have a category '{category}'")
            owner[category] = layout.source
        _refuse_equal_ids(layout)
    return layouts


def _with_shared_files(layout: Layout) -> Layout:
    """With a note where links make a file both a training and a test picture: figures on it show memory."""

    def files(pictures: Iterable[Picture]) -> dict[tuple[int, int], Path]:
        paths = [picture.path for picture in pictures if isinstance(picture, FilePicture)]
        return {(stat.st_dev, stat.st_ino): path for path in paths for stat in [path.stat()]}

    test = files(layout.test)
    shared = sorted(test[key] for key in files(layout.train).keys() & test.keys())
    if not shared:
        return layout
    some = "1 test picture is" if len(shared) == 1 else f"{len(shared)} test pictures are"
    note = f"{some} trained on too, by links to the same files, such as {shared[0]}: the figures flatter"
    return replace(layout, notes=(*layout.notes, note))


def _refuse_equal_ids(layout: Layout) -> None:
    """Figures drop repeats of an id and random states follow from it: whatever the reader, each picture has its own."""
    seen: dict[str, Picture] = {}
    for picture in (*layout.train, *layout.test):
        other = seen.setdefault(picture.id, picture)
        if other is not picture:
            files = " and ".join(str(getattr(each, "path", each.id)) for each in (other, picture))
            raise DataError(
                f"{layout.name}:{layout.source}: two pictures are called '{picture.id}': {files}: rename one"
            )


def _read(spec: str) -> Layout:
    name, _, folder = spec.partition(":")
    if name not in LAYOUTS:
        known = ", ".join(layout if layout == "textures" else f"{layout}:DIR" for layout in LAYOUTS)
        raise DataError(f"unknown data set '{spec}': use one of {known}")
    if name == "textures":
        if folder:
            raise DataError(f"'{spec}': textures is built in and takes no folder")
    elif not folder:
        raise DataError(f"'{spec}' names no folder: write {name}:DIR")
    try:
        return LAYOUTS[name](folder)
    except OSError as error:
        raise DataError(f"{error.filename or spec}: cannot be read ({error.strerror or error})") from None
