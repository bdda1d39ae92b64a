"""What models of transformers are trained on: made-up tokens or pictures, a text file, a JSON lines file.

Every sample is a function of its index; each of a language model's packed samples has equally many tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core_model.errors import ModelError

SYNTHETIC = 4096  # samples of made-up data
IGNORED = -100  # label of a token that is not learned
Sample = dict[str, Tensor]


@dataclass(frozen=True)
class Words:
    """A tokenizer as the data sets need it.

    Args:
        encode: text -> token ids.
        pad: id that fills up short samples.
    """

    name: str
    encode: Callable[[str], list[int]]
    pad: int


def byte_words(vocab: int) -> Words:
    """One token a byte, for where no tokenizer is at hand. Raises ModelError where the vocabulary is too small."""
    if vocab < 257:
        raise ModelError(f"vocab_size {vocab}: the byte tokenizer needs 257: use a larger vocabulary or data tokens:N")
    return Words("bytes", _bytes, 256)


def _bytes(text: str) -> list[int]:
    return list(text.encode())


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """Random tokens (length > 0) or pictures (side > 0), with a class where classes > 0; the same for every run of a
    seed. describe: for the record."""

    count: int
    seed: int
    vocab: int = 0
    length: int = 0
    side: int = 0
    channels: int = 3
    classes: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        sample: Sample = {}
        if self.length:
            sample["input_ids"] = torch.randint(self.vocab, (self.length,), generator=random)
        if self.side:
            sample["pixel_values"] = torch.randn(self.channels, self.side, self.side, generator=random)
        if self.classes:
            sample["labels"] = torch.randint(self.classes, (), generator=random)
        return sample


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A text's tokens, cut into samples of `length` tokens; the rest that fills none is left out."""

    tokens: Tensor
    length: int

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def __getitem__(self, index: int) -> Sample:
        return {"input_ids": self.tokens[index * self.length : (index + 1) * self.length].long()}


@dataclass(frozen=True, kw_only=True)
class Lines:
    """A sample a line of a JSON lines file: its text, cut at the length, and its class where the task is one."""

    rows: Sequence[tuple[list[int], int | None]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        tokens, label = self.rows[index]
        sample = {"input_ids": torch.tensor(tokens)}
        return sample if label is None else sample | {"labels": torch.tensor(label)}


@dataclass(frozen=True)
class Pad:
    """Collates: stacks, with texts of unequal length filled up on the right and a mask beside them."""

    pad: int

    def __call__(self, samples: Sequence[Sample]) -> Sample:
        batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0] if key != "input_ids"}
        if "input_ids" not in samples[0]:
            return batch
        rows = [sample["input_ids"] for sample in samples]
        longest = max(map(len, rows))
        if min(map(len, rows)) < longest:
            lengths = torch.tensor([len(row) for row in rows])
            batch["attention_mask"] = (torch.arange(longest)[None] < lengths[:, None]).long()
        batch["input_ids"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad)
        return batch


def packed(path: Path, words: Words, length: int) -> Packed:
    """The text file, packed. Raises ModelError for a file that cannot be read or fills no sample."""
    tokens = torch.tensor(words.encode(_text(path)), dtype=torch.int32)
    if len(tokens) < length:
        raise ModelError(f"{path}: {len(tokens)} tokens fill no sample of {length}: set a smaller model.length")
    return Packed(tokens=tokens, length=length)


def lines(path: Path, words: Words, length: int, *, labelled: bool) -> tuple[Lines, list[str]]:
    """The JSON lines file and the names of its classes, sorted. Each line has ``text``, and ``label`` where
    `labelled`. Raises ModelError that names the line."""
    found: list[tuple[list[int], str | None]] = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ModelError(f"{path}, line {number}: no JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ModelError(f"{path}, line {number}: it has no field 'text' that is a text")
        if labelled and not isinstance(row.get("label"), (str, int)):
            raise ModelError(f"{path}, line {number}: it has no field 'label': a classifier needs one in each line")
        tokens = words.encode(row["text"])[:length]
        if len(tokens) < 2:
            raise ModelError(f"{path}, line {number}: its text has fewer than two tokens: nothing to predict")
        found.append((tokens, str(row["label"]) if labelled else None))
    if not found:
        raise ModelError(f"{path}: it is empty")
    names = sorted({label for _, label in found if label is not None})
    rows = [(tokens, None if label is None else names.index(label)) for tokens, label in found]
    return Lines(rows=rows), names


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"--data: {path} cannot be read ({' '.join(str(error).split())[:120]})") from None


def length_of(text: str) -> int:
    """The number behind ``tokens:``. Raises ModelError."""
    if not text.isdigit() or int(text) < 2:
        raise ModelError(f"--data tokens:{text}: write the number of tokens a sample, 2 or more, such as tokens:128")
    return int(text)


def split_off(data: Any, share: float = 0.05, most: int = 64) -> tuple[Any, Any]:
    """(training part, held-out part): the last samples, at least one; (data, None) of fewer than ten samples."""
    if len(data) < 10:
        return data, None
    held = min(most, max(1, int(share * len(data))))
    return _Part(data, 0, len(data) - held), _Part(data, len(data) - held, held)


@dataclass(frozen=True)
class _Part:
    whole: Any
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.whole[self.first + index]
