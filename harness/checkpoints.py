"""Checkpoints of a run: ``RUN/checkpoints/step-000120/``, complete or not there at all.

The engine writes into a hidden folder; only when every rank has finished is it sealed with a list of its files and
their sizes, and renamed. The last good checkpoint is therefore never touched while a new one is being written, and a
truncated or foreign one is refused. Nodes may share the folder or have one each under the same path: rank 0 seals
first, and another node only what rank 0's seal did not reach.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from backends.base import Backend
from harness import records
from harness.job import JobError

KEEP = 2
SEAL = "seal.json"


def save_checkpoint(backend: Backend, folder: Path | None, run: str, step: int) -> None:
    """Collective. `folder`: the run's folder on rank 0, None elsewhere (ranks on other nodes use the same path)."""
    shared, save = backend.broadcast((str(folder) if folder is not None else None, uuid.uuid4().hex))
    place = Path(shared) / "checkpoints"
    final, hidden = place / f"step-{step:06d}", place / f".step-{step:06d}"
    if backend.local_rank == 0:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True, exist_ok=True)
    backend.barrier()
    backend.save(hidden)
    backend.barrier()
    seal = {"step": step, "engine": backend.name, "world_size": backend.world_size, "run": run, "save": save}
    if backend.rank == 0:
        _seal(hidden, final, seal)
    backend.barrier()
    if backend.rank != 0 and backend.local_rank == 0 and _save_of(final) != save and hidden.is_dir():
        # Not there: a shared folder of which this node's file system still remembers the name that it had.
        with contextlib.suppress(FileNotFoundError):
            _seal(hidden, final, seal)
    backend.barrier()


def _seal(hidden: Path, final: Path, seal: dict[str, Any]) -> None:
    """Lists the files that are in `hidden`, gives it its final name and removes what is too old."""
    written = [path for path in sorted(hidden.rglob("*")) if path.is_file() and path.name != SEAL]
    files = {str(path.relative_to(hidden)): path.stat().st_size for path in written}
    (hidden / SEAL).write_text(json.dumps(seal | {"files": files}, indent=1))
    shutil.rmtree(final, ignore_errors=True)
    hidden.rename(final)
    for old in _complete(final.parent)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def _save_of(checkpoint: Path) -> str | None:
    """Which save made a checkpoint, None where there is none or it does not say."""
    try:
        return json.loads((checkpoint / SEAL).read_text()).get("save")
    except (OSError, ValueError):
        return None


def latest(folder: Path) -> tuple[int, Path] | None:
    """(step, folder) of the newest checkpoint of a run, None where there is none. Raises JobError for a damaged one."""
    found = _complete(folder / "checkpoints")
    if not found:
        return None
    return check_seal(found[-1]), found[-1]


def check_seal(checkpoint: Path) -> int:
    """The step of a checkpoint whose files are all there in full. Raises JobError with the file that is not."""
    try:
        seal: dict[str, Any] = json.loads((checkpoint / SEAL).read_text())
        files: dict[str, int] = seal["files"]
        step = int(seal["step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise JobError(
            f"{checkpoint}: not a checkpoint of this program (no valid {SEAL}): delete it to use an older one"
        ) from None
    for name, size in files.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            have = path.stat().st_size if path.is_file() else 0
            raise JobError(f"{path}: {have} bytes, {size} were written: it is truncated, delete {checkpoint.name}")
    return step


def check_matches(checkpoint: Path, backend: str, world_size: int) -> None:
    """Raises JobError where the checkpoint is of another engine or world size: engine state fits only its own."""
    seal = json.loads((checkpoint / SEAL).read_text())
    if (seal["engine"], seal["world_size"]) != (backend, world_size):
        raise JobError(
            f"{checkpoint}: written by {seal['engine']} on {seal['world_size']} workers, "
            f"this job is {backend} on {world_size}: "
            "resume it there, or start from its weights with --init-weights"
        )


def cut_steps(folder: Path, step: int) -> None:
    """Drops the rows of steps that will be trained again, so that a resumed run's record has each step once."""
    rows = [row for row in records.read_jsonl(folder / records.STEPS) if row["step"] < step]
    path = folder / records.STEPS
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    records.append_jsonl(temporary, rows)
    if rows:
        temporary.replace(path)
    else:
        path.unlink(missing_ok=True)


def _complete(place: Path) -> list[Path]:
    return sorted(place.glob("step-*")) if place.is_dir() else []
