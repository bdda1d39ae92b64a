"""Where a job's model comes from, by its name: ``FILE.py:FUNCTION`` or ``hf:NAME``. No torch here."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core_model.errors import ModelError

HUB = "hf:"
DEFAULT_MAKER = "make_job"
OWN_DATA = "own"  # a job's `data` where its file brings the data set
MADE_UP_DATA = "synthetic"  # ... and where it is a model of transformers: tokens or pictures
_OURS = {"backends", "core_model", "harness", "mpi"}  # never part of a user's job


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a job's model comes from.

    Args:
        file: the user's Python file, None for a model of transformers.
        name: the function in it, or the model's.
    """

    file: Path | None
    name: str

    @property
    def text(self) -> str:
        """The name as it is written on the command line."""
        return f"{HUB}{self.name}" if self.file is None else f"{self.file}:{self.name}"

    @property
    def label(self) -> str:
        """The name without the folder: for reports, and for comparing runs of different machines."""
        return label_of(self.text)


def source_of(text: str) -> Source | None:
    """The source that `text` names; None for a preset of this project. Raises ModelError for ``hf:``."""
    if text.startswith(HUB):
        if not text.removeprefix(HUB):
            raise ModelError("hf: names no model: write hf:NAME or hf:FOLDER")
        return Source(file=None, name=text.removeprefix(HUB))
    path, colon, maker = text.rpartition(":")
    if not colon or not path.endswith(".py"):
        path, maker = text, DEFAULT_MAKER
    if not path.endswith(".py"):
        return None
    return Source(file=Path(path), name=maker or DEFAULT_MAKER)


def resolved(text: str) -> str:
    """`text` with the file's absolute path: workers start in another folder. A preset stays as it is."""
    source = source_of(text)
    if source is None:
        return text
    if source.file is None:
        folder = Path(source.name).expanduser()
        return f"{HUB}{folder.absolute()}" if folder.is_dir() else text
    return Source(file=source.file.expanduser().absolute(), name=source.name).text


def resolved_data(data: str) -> str:
    """`data` with the absolute path of a ``text:`` or ``jsonl:`` file."""
    kind, _, path = data.partition(":")
    return f"{kind}:{Path(path).expanduser().absolute()}" if kind in ("text", "jsonl") and path else data


def label_of(text: str) -> str:
    """A preset, or a source without the folder that it lies in."""
    source = source_of(text)
    if source is None:
        return text
    if source.file is None:
        return f"{HUB}{Path(source.name).name}" if Path(source.name).is_absolute() else text
    return f"{source.file.name}:{source.name}"


def code_hash(file: Path) -> str:
    """SHA-256 of the user's file and of the modules that it has imported from its folder, sorted by name."""
    digest = hashlib.sha256()
    for name, path in sorted(_own_files(file).items()):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def file_hashes(file: Path) -> dict[str, str]:
    """SHA-256 of the user's file and of each module that it has imported from its folder, by its path there."""
    return {name: _sha256(path) for name, path in sorted(_own_files(file).items())}


def changed_file(file: Path, hashes: Mapping[str, str]) -> str | None:
    """The first file in the folder of the user's `file` that is not as in `hashes` (of `file_hashes`), None where all
    are. Nothing is imported."""
    for name, expected in hashes.items():
        path = file.parent / name
        if not path.is_file() or _sha256(path) != expected:
            return name
    return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _own_files(file: Path) -> dict[str, Path]:
    """The user's file and the modules that it has imported from its folder, by their path there."""
    folder = file.parent.resolve()
    found = {file.name: file}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if not path or name.split(".")[0] in _OURS or "site-packages" in path or not path.endswith(".py"):
            continue
        if not Path(path).is_absolute():  # torch.classes and torch.ops name files that are nowhere: _classes.py
            continue
        place = Path(path).resolve()
        if place.is_relative_to(folder) and not place.is_relative_to(Path(sys.prefix)):
            found[str(place.relative_to(folder))] = place
    return found
