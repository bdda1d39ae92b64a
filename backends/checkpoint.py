"""Files of an engine's own state for resume, and what makes one refusable in one line.

A checkpoint folder is made under a temporary name and renamed by its owner (the harness); here each file is written
under a temporary name too, so that a file with the right name is whole.
"""

from __future__ import annotations

import os
import pickle
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
    if not isinstance(state, dict) or "engine" not in state:
        raise BackendError(f"{path}: not a checkpoint of this program: it holds no engine state")
    if state["engine"] != engine:
        raise BackendError(f"{path}: a checkpoint of engine '{state['engine']}', this run uses '{engine}'")
    if state["world_size"] != world_size:
        raise BackendError(
            f"{path}: saved by {state['world_size']} workers, this run has {world_size}: resume with as many, or start "
            "from the run's weights.safetensors"
        )
    return state
