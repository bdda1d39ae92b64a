"""Text to token ids and back, behind three methods, whatever the vocabulary.

`ByteTokenizer` needs no file; `FileTokenizer` reads a ``tokenizer.json`` with the `tokenizers` library (no import of a
model library, safe to use in data-loading workers); `HubTokenizer` wraps any tokenizer of transformers.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from core_model.errors import ModelError


class Tokenizer(Protocol):
    """Special tokens never come out of `encode`; the caller places them."""

    vocab: int
    bos_id: int
    eos_id: int
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        ...


class ByteTokenizer:
    """One token a byte of UTF-8 (ids 0..255), then bos, eos and pad."""

    vocab = 259
    bos_id, eos_id, pad_id = 256, 257, 258

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if 0 <= i < 256).decode(errors="replace")


class HashTokenizer:
    """Pieces of words, numbered by a checksum: for models with random weights whose real tokenizer is not here.

    Texts become about as many tokens as under a trained vocabulary (up to 5 letters a token), so speed and memory
    studies see realistic lengths. Only pieces that this process has encoded can be decoded.
    """

    pad_id = 0

    def __init__(self, vocab: int, *, bos: int = 1, eos: int = 2) -> None:
        self.vocab = vocab
        self.bos_id, self.eos_id = bos, eos
        self._pieces: dict[int, str] = {}

    def encode(self, text: str) -> list[int]:
        ids = []
        for piece in re.findall(r" ?[A-Za-z]{1,5}|\d| ?[^\sA-Za-z\d]+|\s", text):
            token = 3 + zlib.crc32(piece.encode()) % (self.vocab - 3)
            self._pieces[token] = piece
            ids.append(token)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._pieces.get(token, "") for token in ids)


class FileTokenizer:
    """A ``tokenizer.json``. bos, eos, pad: the special tokens' texts."""

    def __init__(self, path: Path, *, bos: str, eos: str, pad: str) -> None:
        from tokenizers import Tokenizer as Rust

        if not path.is_file():
            raise ModelError(f"no tokenizer file {path}: remove its folder to make it again")
        self._tokenizer = Rust.from_file(str(path))
        self.vocab = self._tokenizer.get_vocab_size()
        self.bos_id, self.eos_id, self.pad_id = (self._special(token, path) for token in (bos, eos, pad))

    def _special(self, token: str, path: Path) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise ModelError(f"{path} lacks the special token {token}: it is of another model")
        return number

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


class HubTokenizer:
    """A tokenizer of transformers, for the presets that load models by name."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.vocab = len(tokenizer)
        self.eos_id = tokenizer.eos_token_id
        self.bos_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.eos_id
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id
        if self.eos_id is None:
            raise ModelError("the language model's tokenizer has no end token: choose another model")

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)
