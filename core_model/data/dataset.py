"""The data set that trainer and evaluation see: samples by index, each with mask and conversation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from core_model.batch import Sample
from core_model.data import questions as dialogue
from core_model.data.augment import augmented, operations_for
from core_model.data.cache import PictureCache
from core_model.data.decode.pictures import GOOD, Picture
from core_model.data.defects import Canvas, Recipe, simulate
from core_model.data.defects.foreground import foreground, has_ground
from core_model.data.entries import Entry
from core_model.data.errors import DataError
from core_model.data.options import DataOptions
from core_model.data.readers.layout import Layout
from core_model.data.splits import lacks

JUDGED_PICTURES = 8  # of a category, to see whether it shows objects on a ground


class Dataset:
    """Map-style: ``get(index, epoch)`` is a pure function of (seed, epoch, the sample's id), whoever calls it.

    Args:
        split: ``train`` (good pictures, some given a simulated defect, a new one every epoch), ``val`` (held-out good
            pictures, each as it is and with simulated defects that never change) or ``test`` (real pictures and masks).
        pictures: those that the entries point to.
        entries: what the samples are.
        questions: what the check of the files found doubtful, a line each.

    Attribute `groups`: sizes of the consecutive groups of samples that take turns in training
    (`core_model.data.batches.GlobalBatches`): one, or pictures and general conversations.
    """

    def __init__(
        self,
        layouts: Sequence[Layout],
        pictures: Sequence[Picture],
        entries: Sequence[Entry],
        *,
        split: str,
        image_size: int,
        seed: int,
        recipe: Recipe,
        options: DataOptions,
        questions: Sequence[str] = (),
    ) -> None:
        self.questions = tuple(questions)
        self.layouts, self.split, self.image_size = tuple(layouts), split, image_size
        self.seed, self.recipe, self.options = seed, recipe, options
        self._pictures, self._entries = tuple(pictures), tuple(entries)
        self._cache = PictureCache(self._pictures, image_size, limit_mib=0 if split == "test" else options.cache_mib)
        self._of_category: dict[str, list[int]] = {}
        for position in sorted({entry.position for entry in self._entries}):
            self._of_category.setdefault(self._pictures[position].category, []).append(position)
        self._grounds: dict[str, bool] = {}
        self.ids: tuple[str, ...] = tuple(entry.id for entry in self._entries)
        if len(set(self.ids)) < len(self.ids):
            repeated = Counter(self.ids).most_common(1)[0][0]
            raise DataError(f"two samples are called '{repeated}': rename one of the pictures")
        talks = sum(entry.turns is not None for entry in self._entries)
        self.groups: tuple[int, ...] = (len(self.ids) - talks, talks) if talks else (len(self.ids),)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def notes(self) -> tuple[str, ...]:
        """What lies in the folders and is not read, a sentence each."""
        return tuple(note for layout in self.layouts for note in layout.notes)

    def lacks(self, indices: Sequence[int]) -> list[str]:
        """What the samples `indices` of a test set cannot show: no masks, or good or defective pictures alone."""
        return lacks([self._pictures[self._entries[index].position] for index in indices])

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted(self._of_category))

    def get(self, index: int, epoch: int = 0) -> Sample:
        """Raises IndexError, or DataError naming the file that could not be read."""
        entry = self._entries[index]
        picture = self._pictures[entry.position]
        if entry.turns is not None:
            return self._conversation(entry, picture)
        if self.split == "test":
            return self._real(entry, picture)
        image = self._cache.image(entry.position)
        if self.split == "val":
            # The same for every training seed: choices made on it must be comparable.
            return self._simulated(entry, image, _rng(0, 0, entry.id), defective=entry.copy > 0)
        if entry.copy:
            image, _ = self._augmented(entry, image, np.zeros(image.shape[:2], np.uint8))
        rng = _rng(self.seed, epoch, entry.id)
        return self._simulated(entry, image, rng, defective=rng.random() < self.options.defective_share)

    def good_images(self, category: str, count: int, *, seed: int = 0) -> torch.Tensor:
        """uint8 (count, 3, S, S): good pictures of `category` for the few-shot memory, chosen by `seed`; fewer where
        there are fewer. Of the train split."""
        if self.split == "test":
            raise ValueError("the few-shot memory takes its pictures from the train split")
        found = self._of_category.get(category, [])
        order = _rng(seed, 0, category).permutation(len(found))[:count]
        if not len(order):
            return torch.zeros((0, 3, self.image_size, self.image_size), dtype=torch.uint8)
        return torch.stack([_to_tensor(self._cache.image(found[int(i)])) for i in order])

    def describe(self) -> dict[str, Any]:
        """What the record says about the data: counts, content hashes, recipe; no path of this machine."""
        counts: dict[str, Counter[str]] = {}
        for entry in self._entries:
            picture = self._pictures[entry.position]
            counts.setdefault(picture.category, Counter())[picture.kind] += 1
        options = self.options.to_dict()
        if not options["white"]:  # as before there was one: records stay comparable
            del options["white"]
        if options["instructions"]:
            options["instructions"] = options["instructions"].rsplit("/", 1)[-1]
        return {
            "sources": [
                {"layout": layout.name, "name": layout.source, "content_sha256": layout.content}
                for layout in self.layouts
            ],
            "split": self.split,
            "samples": len(self),
            "pictures": {category: dict(sorted(kinds.items())) for category, kinds in sorted(counts.items())},
            "image_size": self.image_size,
            "seed": self.seed if self.split == "train" else None,
            "simulation": None if self.split == "test" else self.recipe.describe(),
            "options": options,
        }

    # -- the kinds of samples ------------------------------------------------------------------------------------------
    def _real(self, entry: Entry, picture: Picture) -> Sample:
        image, mask = picture.image(self.image_size), picture.mask(self.image_size)
        if entry.copy:
            image, mask = self._augmented(entry, image, mask)
        place = dialogue.place_text(dialogue.places_of(mask))
        turns = dialogue.standard_turns(picture.category, place, defective=picture.kind != GOOD)
        sample = _sample(entry, picture.category, image, mask, turns, place=place, kind=picture.kind)
        return replace(sample, has_mask=picture.has_mask)

    def _simulated(self, entry: Entry, image: np.ndarray, rng: np.random.Generator, *, defective: bool) -> Sample:
        category = self._pictures[entry.position].category
        canvas = Canvas(
            image=image, donor=lambda: self._donor(entry.position, rng), foreground=self._foreground(category, image)
        )
        if self.split == "train":  # held-out pictures decide thresholds: good ones must be as real good ones are
            canvas = self.recipe.disturbed(canvas, rng)
        kind, image, mask = GOOD, canvas.image, np.zeros(image.shape[:2], np.uint8)
        if defective:
            kind, edit = simulate(self.recipe, canvas, rng)
            image, mask = edit.image, edit.mask
        place = dialogue.place_text(dialogue.places_of(mask))
        if self.split == "val":
            turns = dialogue.standard_turns(category, place, defective=defective)
        else:
            turns = dialogue.training_turns(category, place, kind, float(mask.mean()), rng)
        return _sample(entry, category, image, mask, turns, place=place, kind=kind)

    def _conversation(self, entry: Entry, picture: Picture) -> Sample:
        image = self._cache.image(entry.position)
        empty = np.zeros(image.shape[:2], np.uint8)
        return _sample(entry, picture.category, image, empty, entry.turns or (), place="", kind=picture.kind)

    # -- what they are made of -----------------------------------------------------------------------------------------
    def _augmented(self, entry: Entry, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        operations = operations_for(self._pictures[entry.position].category, self.options.augment_like)
        return augmented(operations, image, mask, _rng(0, 0, entry.id))

    def _foreground(self, category: str, image: np.ndarray) -> np.ndarray | None:
        if not self.options.foreground:
            return None
        if category not in self._grounds:
            judged = self._of_category[category][:JUDGED_PICTURES]
            self._grounds[category] = has_ground([self._cache.image(position) for position in judged])
        return foreground(image) if self._grounds[category] else None

    def _donor(self, position: int, rng: np.random.Generator) -> np.ndarray:
        """Another good picture of the same category, or the same one where there is no other."""
        same = self._of_category[self._pictures[position].category]
        other = same[int(rng.integers(len(same)))]
        if other == position:
            other = same[(same.index(position) + 1) % len(same)]
        return self._cache.image(other)


def _rng(seed: int, epoch: int, name: str) -> np.random.Generator:
    """Random state of one sample. The name enters by a hash that, unlike Python's own, is the same in every process."""
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng([seed, epoch, number])


def _sample(
    entry: Entry,
    category: str,
    image: np.ndarray,
    mask: np.ndarray,
    turns: tuple[tuple[str, str], ...],
    *,
    place: str,
    kind: str,
) -> Sample:
    return Sample(
        id=entry.id,
        category=category,
        image=_to_tensor(image),
        mask=torch.tensor(mask)[None],
        is_defective=kind != GOOD and entry.turns is None,
        turns=turns,
        place=place,
        kind=kind,
    )


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (S, S, 3) -> uint8 (3, S, S), a copy: the picture may lie in the cache."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())
