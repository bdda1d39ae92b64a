"""The data sets: `open_dataset` finds the pictures, checks them, and gives samples with masks and conversations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core_model.data import mvtec, textures
from core_model.data.anomalies import recipe_named
from core_model.data.dataset import Dataset
from core_model.data.errors import DataError
from core_model.data.layout import Layout
from core_model.data.options import DataOptions
from core_model.data.pictures import FilePicture, Picture, check
from core_model.data.splits import divide, take

__all__ = ["LAYOUTS", "SPLITS", "DataError", "DataOptions", "Dataset", "open_dataset"]

SPLITS = ("train", "val", "test")
LAYOUTS: Mapping[str, Callable[[str], Layout]] = {"textures": textures.read, "mvtec": mvtec.read}


def open_dataset(
    spec: str,
    *,
    split: str,
    image_size: int,
    seed: int,
    simulation: str = "",
    options: Mapping[str, Any] | DataOptions | None = None,
) -> Dataset:
    """The data set that `spec` names: ``textures``, or ``LAYOUT:DIR`` where DIR holds one category or several.

    split: ``train``, ``val`` (needs option ``holdout``) or ``test``. simulation: a recipe of
    `core_model.data.anomalies.RECIPES`, "" = the default. options: fields of `DataOptions`.
    Every file of the split is looked at (headers only), so that a job fails before it starts. Raises DataError.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}': choose one of {', '.join(SPLITS)}")
    if image_size < 8:
        raise DataError(f"image size {image_size} is too small: use at least 8 pixels")
    recipe = recipe_named(simulation)
    chosen = options if isinstance(options, DataOptions) else DataOptions.from_mapping(options or {})
    layout = _read(spec)
    pictures = _select(layout, spec, split, chosen)
    check(picture for picture in pictures if isinstance(picture, FilePicture))
    return Dataset(layout, pictures, split=split, image_size=image_size, seed=seed, recipe=recipe, options=chosen)


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


def _select(layout: Layout, spec: str, split: str, options: DataOptions) -> Sequence[Picture]:
    """The pictures of the split, by the options."""
    unknown = sorted(set(options.categories) - set(layout.categories))
    if unknown:
        raise DataError(f"'{spec}' has no category '{unknown[0]}': it has {', '.join(layout.categories)}")

    def wanted(pictures: Sequence[Picture]) -> list[Picture]:
        return [picture for picture in pictures if not options.categories or picture.category in options.categories]

    if split == "test":
        pictures = wanted(layout.test)
        if not pictures:
            raise DataError(f"'{spec}' has no test pictures: put them into CATEGORY/test/good and CATEGORY/test/KIND")
        return pictures
    train, held_out = divide(wanted(layout.train), share=options.holdout)
    if split == "val":
        if not held_out:
            raise DataError("the val split is empty: set the data option holdout to a share such as 0.2")
        return held_out
    if not train:
        raise DataError(f"'{spec}' has no training pictures left: lower the data option holdout")
    return take(train, options.limit)
