"""Files of an engine's own state for resume, and what makes one refusable in one line.

A checkpoint folder is made under a temporary name and renamed by its owner (the harness); here each file is written
under a temporary name too, so that a file with the right name is whole.
"""

from __future__ import annotations

import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import torch

from backends.base import BackendError

STATE = "state.pt"


def write_state(path: Path, state: dict[str, Any]) -> None:
    """torch.save under a temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_state(path: Path, *, engine: str, world_size: int) -> dict[str, Any]:
    """The state in `path`, on the CPU. Raises BackendError where it is missing, truncated, or of another engine or
    world size. Nothing but tensors and plain containers is unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BackendError(f"{path}: no {path.name} there: is this a checkpoint of engine '{engine}'?") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise BackendError(f"{path}: not a readable checkpoint ({first}): it is truncated or foreign") from None
    check_origin(state, path, engine=engine, world_size=world_size)
    return state


MANIFEST = "manifest.json"


def write_manifest(folder: Path, *, engine: str, world_size: int, facts: dict[str, Any]) -> None:
    """manifest.json: who wrote the checkpoint, and the size and CRC-32 of each of its files."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    content = {"engine": engine, "world_size": world_size, "files": files, **facts}
    temporary = folder / f".{MANIFEST}.tmp"
    with temporary.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)


def read_manifest(folder: Path, *, engine: str, world_size: int) -> dict[str, Any]:
    """The manifest, after checking every file against it. Raises BackendError with one line."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise BackendError(
            f"{folder}: no {MANIFEST} there: is this a complete checkpoint of engine '{engine}'?"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise BackendError(f"{path}: not readable: the checkpoint is damaged") from None
    check_origin(manifest, path, engine=engine, world_size=world_size)
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise BackendError(f"{file}: missing: the checkpoint is incomplete")
        if file.stat().st_size != expected["bytes"] or _crc32(file) != expected["crc32"]:
            raise BackendError(f"{file}: not as it was written: it is truncated or foreign")
    return manifest


def check_origin(state: dict[str, Any], path: Path, *, engine: str, world_size: int) -> None:
    """Raises BackendError unless `state` was written by this engine at this world size."""
    if not isinstance(state, dict) or "engine" not in state:
        raise BackendError(f"{path}: not a checkpoint of this program: it holds no engine state")
    if state["engine"] != engine:
        raise BackendError(f"{path}: a checkpoint of engine '{state['engine']}', this run uses '{engine}'")
    if state["world_size"] != world_size:
        raise BackendError(
            f"{path}: saved by {state['world_size']} workers, this run has {world_size}: resume with as many, or start "
            "from the run's weights.safetensors"
        )


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value
