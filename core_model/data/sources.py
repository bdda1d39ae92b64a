"""The data sets by name, and how a specification such as ``mvtec:/data/mvtec+aebad:/data/AeBAD_S`` is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from core_model.data import aebad, mvtec, textures, visa
from core_model.data.errors import DataError
from core_model.data.layout import Layout
from core_model.data.pictures import Picture

LAYOUTS: Mapping[str, Callable[[str], Layout]] = {
    "textures": textures.read,
    "mvtec": mvtec.read,
    "visa": visa.read,
    "aebad": aebad.read,
}
_JOINT = re.compile(r"\+(?=(?:" + "|".join(LAYOUTS) + r")(?::|$))")


def read_sources(spec: str) -> list[Layout]:
    """The data sets named in `spec`, joined by ``+``. Raises DataError, also where two share a category's name."""
    layouts = [_read(part) for part in _JOINT.split(spec)]
    owner: dict[str, str] = {}
    for layout in layouts:
        for category in layout.categories:
            if category in owner:
                raise DataError(f"'{spec}': both {owner[category]} and {layout.source} have a category '{category}'")
            owner[category] = layout.source
        _refuse_equal_ids(layout)
    return layouts


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
    return LAYOUTS[name](folder)
