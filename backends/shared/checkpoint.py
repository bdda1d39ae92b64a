"""Files of an engine's own state for resume, and what makes one refusable in one line.

A checkpoint folder is made under a temporary name and renamed by its owner (the harness); here each file is written
under a temporary name too, so that a file with the right name is whole. Each carries what decides the training
(`backends.shared.same_training`, and what the engine adds): no engine resumes another training than the one that was
saved.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from backends.base import BackendError
from backends.shared.same_training import REMEDY, TRAINING, difference

STATE = "state.pt"


def write_state(path: Path, state: dict[str, Any]) -> None:
    """torch.save under a temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_state(path: Path, *, engine: str, world_size: int, training: Mapping[str, Any]) -> dict[str, Any]:
    """The state in `path`, on the CPU. Raises BackendError where it is missing, truncated, or of another engine, world
    size or training. Nothing but tensors and plain containers is unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BackendError(f"{path}: no {path.name} there: is this a checkpoint of engine '{engine}'?") from None
    except Exception as error:  # what the unpickler raises over a damaged file has no common class
        first = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise BackendError(f"{path}: not a readable checkpoint ({first}): it is truncated or foreign") from None
    check_origin(state, path, engine=engine, world_size=world_size, training=training)
    return state


MANIFEST = "manifest.json"


def write_manifest(
    folder: Path, *, engine: str, world_size: int, training: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """manifest.json: who wrote the checkpoint, and the size and CRC-32 of each of its files."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    content = {"engine": engine, "world_size": world_size, TRAINING: dict(training), "files": files, **facts}
    temporary = folder / f".{MANIFEST}.tmp"
    with temporary.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)


def read_manifest(folder: Path, *, engine: str, world_size: int, training: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest, after checking every file against it. Raises BackendError with one line."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise BackendError(
            f"{folder}: no {MANIFEST} there: is this a complete checkpoint of engine '{engine}'?"
        ) from None
    except (ValueError, OSError):
        raise BackendError(f"{path}: not readable: the checkpoint is damaged") from None
    check_origin(manifest, path, engine=engine, world_size=world_size, training=training)
    if not isinstance(manifest.get("files"), dict) or "step" not in manifest:
        raise BackendError(f"{path}: it lists no files: the checkpoint is damaged")
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise BackendError(f"{file}: missing: the checkpoint is incomplete")
        if file.stat().st_size != expected["bytes"] or _crc32(file) != expected["crc32"]:
            raise BackendError(f"{file}: not as it was written: it is truncated or foreign")
    return manifest


def check_origin(
    state: Any, path: Path, *, engine: str, world_size: int, training: Mapping[str, Any] | None = None
) -> None:
    """Raises BackendError unless `state` was written by this engine at this world size, and (where `training` is given)
    in this training."""
    if not isinstance(state, dict) or not {"engine", "world_size"} <= set(state):
        raise BackendError(f"{path}: not a checkpoint of this program: it holds no engine state")
    if state["engine"] != engine:
        raise BackendError(f"{path}: a checkpoint of engine '{state['engine']}', this run uses '{engine}'")
    if state["world_size"] != world_size:
        raise BackendError(
            f"{path}: saved by {state['world_size']} workers, this run has {world_size}: resume with as many, or start "
            "from the run's weights.safetensors"
        )
    if training is None:
        return
    saved = state.get(TRAINING)
    if not isinstance(saved, dict):
        raise BackendError(f"{path}: it does not say how it was trained (an older version's): {REMEDY}")
    if (found := difference(saved, training)) is not None:
        raise BackendError(f"{path}: {found}: {REMEDY}")


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value
