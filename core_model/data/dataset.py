"""The data set that trainer and evaluation see: pictures by index, each with mask and conversation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from core_model.batch import Sample
from core_model.data import dialogue
from core_model.data.anomalies import Canvas, Recipe, simulate
from core_model.data.cache import PictureCache
from core_model.data.layout import Layout
from core_model.data.options import DataOptions
from core_model.data.pictures import Picture

GOOD = "good"


class Dataset:
    """Map-style: ``get(index, epoch)`` is a pure function of (seed, epoch, the sample's id), whoever calls it.

    split: ``train`` (good pictures, some given a simulated defect, a new one every epoch), ``val`` (held-out good
    pictures, each as it is and with simulated defects that never change) or ``test`` (real pictures and masks).
    pictures: those of the split. variants: copies of each picture; copy 0 of ``val`` stays good.
    """

    def __init__(
        self,
        layout: Layout,
        pictures: Sequence[Picture],
        *,
        split: str,
        image_size: int,
        seed: int,
        recipe: Recipe,
        options: DataOptions,
    ) -> None:
        self.layout, self.split, self.image_size = layout, split, image_size
        self.seed, self.recipe, self.options = seed, recipe, options
        self._pictures = tuple(pictures)
        self._copies = 1 + options.variants if split == "val" else 1
        self._cache = PictureCache(self._pictures, image_size, limit_mib=0 if split == "test" else options.cache_mib)
        self._of_category: dict[str, list[int]] = {}
        for index, picture in enumerate(self._pictures):
            self._of_category.setdefault(picture.category, []).append(index)
        self.ids: tuple[str, ...] = tuple(
            picture.id if self._copies == 1 else f"{picture.id}#{copy}"
            for picture in self._pictures
            for copy in range(self._copies)
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted(self._of_category))

    def get(self, index: int, epoch: int = 0) -> Sample:
        """Raises IndexError, or DataError naming the file that could not be read."""
        position, copy = divmod(index, self._copies)
        picture = self._pictures[position]
        if self.split == "test":
            return self._real(picture)
        rng = self._rng(self.ids[index], epoch if self.split == "train" else 0)
        image = self._cache.image(position)
        if self.split == "val":
            return self._simulated(index, image, rng, defective=copy > 0)
        return self._simulated(index, image, rng, defective=rng.random() < self.options.defective_share)

    def good_images(self, category: str, count: int, *, seed: int = 0) -> torch.Tensor:
        """float32 (count, 3, S, S): good pictures of `category` for the few-shot memory, chosen by `seed`; fewer where
        there are fewer."""
        found = self._of_category.get(category, [])
        if self.split == "test":
            raise ValueError("the few-shot memory takes its pictures from the train split")
        order = np.random.default_rng([seed, _number(category)]).permutation(len(found))[:count]
        return torch.stack([_to_tensor(self._cache.image(found[int(i)])) for i in order])

    def describe(self) -> dict[str, Any]:
        """What the record says about the data: counts, content hash, recipe; no path of this machine."""
        counts: dict[str, Counter[str]] = {}
        for picture in self._pictures:
            counts.setdefault(picture.category, Counter())[picture.kind] += 1
        return {
            "layout": self.layout.name,
            "source": self.layout.source,
            "split": self.split,
            "samples": len(self),
            "pictures": {category: dict(sorted(kinds.items())) for category, kinds in sorted(counts.items())},
            "content_sha256": self.layout.content,
            "image_size": self.image_size,
            "seed": self.seed if self.split == "train" else None,
            "simulation": None if self.split == "test" else self.recipe.describe(),
            "options": self.options.to_dict(),
        }

    def _real(self, picture: Picture) -> Sample:
        mask = picture.mask(self.image_size)
        place = dialogue.place_text(dialogue.places_of(mask))
        return Sample(
            id=picture.id,
            category=picture.category,
            image=_to_tensor(picture.image(self.image_size)),
            mask=torch.from_numpy(mask.astype(np.float32))[None],
            is_defective=picture.kind != GOOD,
            turns=dialogue.standard_turns(picture.category, place),
            place=place,
            kind=picture.kind,
        )

    def _simulated(self, index: int, image: np.ndarray, rng: np.random.Generator, *, defective: bool) -> Sample:
        position = index // self._copies
        category = self._pictures[position].category
        kind, mask = GOOD, np.zeros(image.shape[:2], np.uint8)
        if defective:
            canvas = Canvas(image=image, donor=lambda: self._donor(position, rng))
            kind, edit = simulate(self.recipe, canvas, rng)
            image, mask = edit.image, edit.mask
        place = dialogue.place_text(dialogue.places_of(mask))
        if self.split == "val":
            turns = dialogue.standard_turns(category, place)
        else:
            turns = dialogue.training_turns(category, place, kind, float(mask.mean()), rng)
        return Sample(
            id=self.ids[index],
            category=category,
            image=_to_tensor(image),
            mask=torch.from_numpy(mask.astype(np.float32))[None],
            is_defective=defective,
            turns=turns,
            place=place,
            kind=kind,
        )

    def _donor(self, position: int, rng: np.random.Generator) -> np.ndarray:
        """Another good picture of the same category, or the same one where there is no other."""
        same = self._of_category[self._pictures[position].category]
        other = same[int(rng.integers(len(same)))]
        if other == position:
            other = same[(same.index(position) + 1) % len(same)]
        return self._cache.image(other)

    def _rng(self, name: str, epoch: int) -> np.random.Generator:
        # The validation set is the same for every training seed: choices made on it must be comparable.
        seed = self.seed if self.split == "train" else 0
        return np.random.default_rng([seed, epoch, _number(name)])


def _number(name: str) -> int:
    """64 bits of a name, the same in every process (Python's own hash is salted)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (S, S, 3) -> float32 (3, S, S) in 0..1."""
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)).div_(255.0)
