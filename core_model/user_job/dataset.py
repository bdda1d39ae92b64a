"""A user's data set and collate function, as the loader of `core_model.data.batches` takes them."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core_model.user_job.batch import UserBatch
from core_model.user_job.load import load_file

FINGERPRINT_SAMPLES = 32  # spread over the data set, whose content stands in the record


class _Portable:
    """Holds a user's object whose class may be defined in the user's file. A loading process imports that file before
    it unpickles the object."""

    def __init__(self, held: Any, file: Path | None) -> None:
        self.held, self.file = held, file

    def __reduce__(self) -> Any:
        return _restored, (type(self), self.file, pickle.dumps(self.held))


def _restored(kind: type[_Portable], file: Path | None, held: bytes) -> _Portable:
    if file is not None:
        load_file(file)
    return kind(pickle.loads(held), file)


class UserCollate(_Portable):
    """The user's collate function; what it returns comes as a `UserBatch`."""

    held: Callable[[Sequence[Any]], Any]

    def __call__(self, samples: Sequence[Any]) -> UserBatch:
        return UserBatch(content=self.held(samples), size=len(samples))


class UserDataset(_Portable):
    """The user's data set. Samples are called by their index; `get` is a pure function of index and epoch where the
    user's ``get`` or ``__getitem__`` is."""

    categories: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, held: Any, file: Path | None) -> None:
        super().__init__(held, file)
        self.ids = tuple(str(index) for index in range(len(held)))
        self.groups = (len(self.ids),)

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, index: int, epoch: int = 0) -> Any:
        """Sample `index`; what the user's data set raises comes through."""
        own = getattr(self.held, "get", None)
        return own(index, epoch) if own is not None else self.held[index]

    def describe(self) -> dict[str, Any]:
        """What the record says about the data: its class, its length and a fingerprint of samples spread over it."""
        own = getattr(self.held, "describe", None)
        return {
            "sources": [
                {
                    "layout": "a user's data set",
                    "name": type(self.held).__name__,
                    "content_sha256": content_hash([self.get(index) for index in spread(len(self))]),
                }
            ],
            "split": "train",
            "samples": len(self),
            **(dict(own()) if own is not None else {}),
        }


def spread(length: int, most: int = FINGERPRINT_SAMPLES) -> list[int]:
    """At most `most` indices of a data set, evenly spread, the first and the last among them."""
    return sorted({int(index) for index in np.linspace(0, length - 1, min(length, most))})


def content_hash(value: Any) -> str:
    """SHA-256 of nested dicts, lists, tuples, tensors, arrays and plain values: equal content, equal hash."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        own = value.detach().cpu().contiguous()
        digest.update(f"{own.dtype} {tuple(own.shape)}\n".encode())
        digest.update(own.flatten().view(torch.uint8).numpy().data if own.numel() else b"")
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape}\n".encode() + np.ascontiguousarray(value).tobytes())
    elif hasattr(value, "items"):
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            _feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)}[".encode())
        for part in value:
            _feed(digest, part)
    elif value is None or isinstance(value, (bool, int, float, str, bytes)):
        digest.update(f"{value!r};".encode())
    else:
        digest.update(pickle.dumps(value))
