"""A model with its few-shot memory, looking at single pictures: map, score, answer, conversation.

Shared by `harness model detect`, `chat` and `page`.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core_model.data.decode.bit_depth import question
from core_model.data.decode.opener import header
from core_model.data.decode.pictures import read_rgb, resize
from core_model.data.options import DataOptions
from core_model.data.questions import PLACES, STANDARD_QUESTION
from core_model.data.readers.listing import pictures_in
from core_model.metrics import judge, places_in
from harness.inference.load_model import Trained, branch_of
from harness.inference.overlay import Scale
from harness.job.declaration import JobError
from harness.worker.evaluation.few_shot import bank

BATCH = 8
MAX_NEW_TOKENS = 48
UNKNOWN = "object"  # the category of a picture of which nothing is known


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the model sees in one picture.

    picture: uint8 (H, W, 3) as it came. image: float32 (3, S, S) as the model gets it. grid: float32 (S, S) anomaly
    map. peak: the cell of the 3x3 grid with the map's highest value. answer: to the standard question, None where the
    model cannot talk; verdict: ``yes``, ``no`` or ``unusable``; said: places that the answer names.
    """

    name: str
    category: str
    picture: np.ndarray
    image: torch.Tensor
    grid: np.ndarray
    score: float
    peak: str
    answer: str | None = None
    verdict: str | None = None
    said: tuple[str, ...] = ()


class Session:
    """Looks at pictures. normal: uint8 (H, W, 3) good pictures of the category looked at, for the few-shot memory;
    branch: decoder, memory or both, None = memory where there are good pictures."""

    def __init__(self, trained: Trained, *, normal: Sequence[np.ndarray] = (), branch: str | None = None) -> None:
        self.trained, self.model = trained, trained.model
        self.branch = branch_of(trained, branch, bool(normal))
        # The bank is of one object, whatever its name: the pictures that are looked at are compared with all of it.
        self._memory: Any = None
        if normal and self.branch != "decoder":
            images = torch.stack([self._image(picture) for picture in normal])
            self._memory = bank(self.model, images, [UNKNOWN] * len(images), trained.device, combination=self.branch)

    def look(self, pictures: Sequence[np.ndarray], names: Sequence[str], categories: Sequence[str]) -> list[Look]:
        """A `Look` for each uint8 (H, W, 3) picture, with the answer to the standard question where trained."""
        looks: list[Look] = []
        for start in range(0, len(pictures), BATCH):
            part = slice(start, start + BATCH)
            looks += self._look(pictures[part], names[part], categories[part])
        return looks

    def _look(self, pictures: Sequence[np.ndarray], names: Sequence[str], categories: Sequence[str]) -> list[Look]:
        images = torch.stack([self._image(picture) for picture in pictures])
        placed = images.to(self.trained.device)
        maps = self._maps(placed, categories)
        scores = self.model.scores(maps).float().cpu().tolist()
        answers: list[str | None] = [None] * len(pictures)
        if self.trained.trained:
            questions = [STANDARD_QUESTION] * len(pictures)
            answers = self.model.answer(placed, categories, questions, max_new_tokens=MAX_NEW_TOKENS)
        grids = maps.float().cpu().numpy()
        return [
            Look(
                name=name,
                category=category,
                picture=picture,
                image=image,
                grid=grid,
                score=score,
                peak=peak_place(grid),
                answer=answer,
                verdict=None if answer is None else judge(answer),
                said=() if answer is None else places_in(answer),
            )
            for name, category, picture, image, grid, score, answer in zip(
                names, categories, pictures, images, grids, scores, answers, strict=True
            )
        ]

    def _maps(self, images: torch.Tensor, categories: Sequence[str]) -> torch.Tensor:
        if self._memory is None:
            return self.model.anomaly_maps(images, categories)
        features = self.model.features(images)
        own = [UNKNOWN] * len(images)
        maps = self._memory.maps(features, own, images.shape[-1])
        if not self._memory.uses_decoder:
            return maps
        return self._memory.combine(maps, self.model.anomaly_maps(images, categories, features=features), own)

    def talk(self, look: Look) -> Any:
        """A `core_model.anomalygpt.model.Conversation` about a picture that was looked at. Raises JobError if
        untrained."""
        if not self.trained.trained:
            raise JobError(f"'{self.trained.name}' is untrained and cannot talk: give a run or weights")
        image = look.image.to(self.trained.device)
        return self.model.chat(image, look.category, max_new_tokens=MAX_NEW_TOKENS)

    def scale(self, looks: Sequence[Look]) -> Scale:
        """The colour scale that all of these maps share: 0..1 for the decoder's probabilities; for distances from good
        pictures, 0 to the largest here, or to twice the distance that good pictures have among themselves."""
        highest = max((float(look.grid.max()) for look in looks), default=1.0)
        if self._memory is None:
            return Scale(low=0.0, high=1.0, label="probability of a defect")
        own = self._memory.categories[UNKNOWN].scale
        if self.branch == "both":
            return Scale(low=0.0, high=max(2.0, highest), label="probability + distance, 1 = among good pictures")
        return Scale(low=0.0, high=max(2 * own, highest, 1e-6), label="distance from good pictures")

    def category_of(self, path: Path | None, wanted: str = "") -> str:
        """The category of a picture: as said, or the run's only one, or the folder above the picture that has the name
        of one. Raises JobError where it decides the map (text features) and cannot be told."""
        known = self.trained.categories
        if wanted:
            return wanted
        if len(known) == 1:
            return known[0]
        above = [part for part in reversed(path.absolute().parts[:-1]) if part in known] if path else []
        if above:
            return above[0]
        if self.model.text is None or self.branch == "memory":
            return UNKNOWN
        raise JobError(
            f"{path or 'the picture'}: what does it show? give --category NAME"
            + (f" (trained on {', '.join(known)})" if known else "")
        )

    def _image(self, picture: np.ndarray) -> torch.Tensor:
        """float32 (3, S, S) in 0..1, as `core_model.data.dataset` makes it."""
        small = resize(picture, self.model.image_size)
        return torch.from_numpy(small.transpose(2, 0, 1).astype(np.float32)).div_(255.0)


def trimmed_ask(conversation: Any, question: str) -> tuple[str, int]:
    """Asks, after forgetting as many of the oldest turns as the model's window needs; the answer, and how many."""
    collator = conversation.model.collator
    dropped = 0
    while conversation.turns and _tokens(collator, conversation.turns, question) > collator.max_tokens - MAX_NEW_TOKENS:
        conversation.turns.pop(0)
        dropped += 1
    return conversation.ask(question), dropped


def _tokens(collator: Any, turns: Sequence[tuple[str, str]], question: str) -> int:
    """Tokens of the turns and the question, uncut."""
    template, encode = collator.template, collator.tokenizer.encode
    total = len(encode(template.question_text(question, first=not turns)))
    for index, (asked, answered) in enumerate(turns):
        total += len(encode(template.question_text(asked, first=index == 0)))
        total += len(encode(template.answer_text(answered)))
    return total


def peak_place(grid: np.ndarray) -> str:
    """Name of the 3x3 cell that holds the highest value of the map (S, S)."""
    row, column = np.unravel_index(int(np.argmax(grid)), grid.shape)
    return PLACES[3 * (int(row) * 3 // grid.shape[0]) + int(column) * 3 // grid.shape[1]]


def picture_paths(given: Sequence[str]) -> list[Path]:
    """The picture files meant by files and folders. Raises JobError for an empty folder, DataError (one line that names
    the file) for one that is missing or no picture: nothing is looked at unless all can be."""
    paths: list[Path] = []
    for text in given:
        path = Path(text)
        if os.path.isdir(path):
            inside, left_out = pictures_in(path)
            if not inside:
                raise JobError(f"{text}: no pictures in this folder{''.join(f'; {note}' for note in left_out)}")
            for note in left_out:
                sys.stderr.write(f"warning: {text}: {note}\n")
            paths += inside
        else:
            paths.append(path)
    for path in paths:
        header(path)
    return paths


def read_pictures(paths: Sequence[Path], trained: Trained, *, beside: Sequence[Path] = ()) -> list[np.ndarray]:
    """uint8 (H, W, 3) each, as the data set of `trained` would read them (its data option ``white``). beside: pictures
    that they are compared with, which say the same about white. Raises DataError for one that cannot be decoded to its
    end, or deep ones that would be nearly black."""
    white = float(DataOptions.from_mapping(trained.job.data_options).white)
    question([path for path in (*paths, *beside) if header(path).deep], white)
    return [read_rgb(path, white) for path in paths]


def place_table(grid: np.ndarray) -> str:
    """The highest value of the map (S, S) in each cell of the 3x3 grid, as three lines of text; the peak has a star."""
    side = grid.shape[0]
    edges = [-(-cell * side // 3) for cell in range(4)]  # pixel r lies in row r * 3 // side, as in `peak_place`
    pairs = list(itertools.pairwise(edges))
    cells = [[float(grid[top:bottom, left:right].max()) for left, right in pairs] for top, bottom in pairs]
    highest = max(max(row) for row in cells)
    return "\n".join("  ".join(f"{value:7.3f}{'*' if value == highest else ' '}" for value in row) for row in cells)
