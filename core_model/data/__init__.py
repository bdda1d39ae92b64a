"""The data sets: `open_dataset` finds the pictures, checks them, and gives samples with masks and conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from core_model.data.dataset import Dataset
from core_model.data.decode.pictures import GOOD, FilePicture, Picture, check
from core_model.data.defects import recipe_named
from core_model.data.entries import Entry, instruction_entries, test_entries, train_entries, val_entries
from core_model.data.errors import DataError
from core_model.data.options import DataOptions
from core_model.data.readers import instructions
from core_model.data.readers.layout import Layout
from core_model.data.readers.sources import LAYOUTS, read_sources
from core_model.data.splits import divide, take

__all__ = ["LAYOUTS", "SPLITS", "DataError", "DataOptions", "Dataset", "open_dataset"]

SPLITS = ("train", "val", "test")


def open_dataset(
    spec: str,
    *,
    split: str,
    image_size: int,
    seed: int,
    simulation: str = "",
    options: Mapping[str, Any] | DataOptions | None = None,
) -> Dataset:
    """The data set that `spec` names: ``textures``, ``LAYOUT:DIR`` (one category or several), or such joined by ``+``.

    Args:
        split: ``train``, ``val`` (needs option ``holdout`` or ``folds``) or ``test``.
        simulation: a recipe of `core_model.data.defects.RECIPES`, "" = the default.
        image_size: side that pictures are brought to, pixels.
        seed: of the order and of the simulated defects.
        options: fields of `DataOptions`.

    Raises:
        DataError: for what is wrong with the folder. Every file of the split is looked at (headers, and a few masks),
            so that a job fails before it starts.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split '{split}': choose one of {', '.join(SPLITS)}")
    if image_size < 8:
        raise DataError(f"image size {image_size} is too small: use at least 8 pixels")
    recipe = recipe_named(simulation)
    chosen = options if isinstance(options, DataOptions) else DataOptions.from_mapping(options or {})
    layouts = read_sources(spec)
    _check_categories(spec, layouts, chosen)
    if split == "test":
        pictures = _test_pictures(spec, [picture for layout in layouts for picture in layout.test], chosen)
        entries = test_entries(pictures, chosen)
    else:
        pictures, entries = _good(spec, layouts, chosen, split)
    pictures = _with_white(pictures, chosen.white)
    questions = check(picture for picture in pictures if isinstance(picture, FilePicture))
    return Dataset(
        layouts,
        pictures,
        entries,
        split=split,
        image_size=image_size,
        seed=seed,
        recipe=recipe,
        options=chosen,
        questions=questions,
    )


def _check_categories(spec: str, layouts: Sequence[Layout], options: DataOptions) -> None:
    """Raises DataError for a wanted category that is not there."""
    available = sorted({category for layout in layouts for category in layout.categories})
    unknown = sorted(set(options.categories) - set(available))
    if unknown:
        raise DataError(f"'{spec}' has no category '{unknown[0]}': it has {', '.join(available)}")


def _with_white(pictures: list[Picture], white: float) -> list[Picture]:
    """The pictures, those in files with the value that is white in them (0: by the file's type)."""
    if not white:
        return pictures
    return [replace(picture, white=white) if isinstance(picture, FilePicture) else picture for picture in pictures]


def _good(spec: str, layouts: Sequence[Layout], options: DataOptions, split: str) -> tuple[list[Picture], list[Entry]]:
    """The pictures and entries of a split that is cut from the training pictures, ``train`` or ``val``. Raises
    DataError where none are left."""
    good = _of_categories([picture for layout in layouts for picture in layout.train], options)
    kept, held_out = divide(good, share=options.holdout, folds=options.folds, fold=options.fold)
    if split == "val":
        if not held_out:
            raise DataError("the val split is empty: set the data option holdout (such as 0.2) or folds")
        return held_out, val_entries(held_out, options)
    if not kept:
        raise DataError(f"'{spec}' has no training pictures left: lower the data option holdout or folds")
    pictures = take(kept, options.limit)
    entries = train_entries(pictures, options)
    if options.instructions:
        talks = instructions.read(options.instructions)
        entries += instruction_entries(talks, len(pictures))
        pictures += [talk.picture for talk in talks]
    return pictures, entries


def _of_categories(pictures: Sequence[Picture], options: DataOptions) -> list[Picture]:
    return [picture for picture in pictures if not options.categories or picture.category in options.categories]


def _test_pictures(spec: str, pictures: Sequence[Picture], options: DataOptions) -> list[Picture]:
    """The test pictures of the wanted categories and domains (the folder above the file, in AeBAD)."""
    found = _of_categories(pictures, options)
    if not found:
        raise DataError(
            f"'{spec}' has no test pictures: put them into CATEGORY/test/{GOOD} and CATEGORY/test/KIND, or train "
            "without an evaluation (--eval-samples -1)"
        )
    if options.domains:
        found = [picture for picture in found if picture.id.rsplit("/", 2)[-2] in options.domains]
        if not found:
            raise DataError(f"'{spec}' has no test pictures of domain {' or '.join(options.domains)}")
    return found
