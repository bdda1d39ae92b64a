"""Checkpoints of a run: ``RUN/checkpoints/step-000120/``, complete or not there at all.

The engine writes into a hidden folder; only when every rank has finished is it sealed with a list of its files and
their sizes, and renamed. The last good checkpoint is therefore never touched while a new one is being written, and one
whose files are not as they were sealed is passed over for the one before, which is said. The seal also names what a
resumed job must share with the one that was saved. Nodes may share the folder or have one each under the same path:
rank 0 seals first, and another node only what rank 0's seal did not reach.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.base import Backend
from backends.shared.same_training import difference
from core_model.user_job.source import changed_file, source_of
from harness.job.declaration import Job, JobError
from harness.records.record_files import RESOURCES, SPLIT, STEPS, append_jsonl, read_jsonl, torn_end

KEEP = 2
SEAL = "seal.json"
CODE = "code"  # where the seal says what the files of a user's own job held
REMEDY = "resume it with what it was saved with, or start another run: leave --resume out"

# What decides a training beside the engine's own state: a checkpoint is resumed by a job that has all of it alike.
_SHARED = (
    "backend", "preset", "version", "model", "random_weights", "image_size", "data", "defects", "data_options", "seed",
    "global_batch", "accumulation", "optimizer", "lr", "betas", "eps", "weight_decay", "clip_norm", "schedule",
    "warmup_steps", "steps", "precision", "precision_mode", "loss_scale", "emulate_compute_ms",
)  # fmt: skip
# Settings of engines that decide the arithmetic too; the others decide speed and memory, and may change.
_SHARED_ENGINE = ("zero_stage", "compression", "communication_data_type", "op", "gradient_predivide_factor")


@dataclass(frozen=True, kw_only=True)
class Found:
    """The newest good checkpoint. passed_over: why newer ones are not used, one line each."""

    step: int
    folder: Path
    passed_over: tuple[str, ...] = ()


def save_checkpoint(
    backend: Backend, folder: Path | None, job: Job, step: int, code: Mapping[str, str] | None = None
) -> None:
    """Writes and seals a checkpoint. Collective.

    Args:
        backend: the engine, whose state it is.
        folder: the run's folder on rank 0, None elsewhere (ranks on other nodes use the same path).
        job, step: what is trained, and how many steps of it are done.
        code: SHA-256 of the files of a user's own job, by name, as they were when it was built.
    """
    shared, save = backend.broadcast((str(folder) if folder is not None else None, uuid.uuid4().hex))
    place = Path(shared) / "checkpoints"
    final, hidden = place / f"step-{step:06d}", place / f".step-{step:06d}"
    if backend.local_rank == 0:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True, exist_ok=True)
    backend.barrier()
    backend.save(hidden)
    backend.barrier()
    seal = {"step": step, "engine": backend.name, "world_size": backend.world_size, "run": job.run, "save": save}
    seal |= {"job": shared_facts(job), CODE: dict(code or {})}
    if backend.rank == 0:
        _seal(hidden, final, seal)
    backend.barrier()
    if backend.rank != 0 and backend.local_rank == 0 and _save_of(final) != save and hidden.is_dir():
        # Not there: a shared folder of which this node's file system still remembers the name that it had.
        with contextlib.suppress(FileNotFoundError):
            _seal(hidden, final, seal)
    backend.barrier()


def shared_facts(job: Job) -> dict[str, Any]:
    """What a job that resumes must have alike. Of a constant schedule, neither warm-up nor the number of steps."""
    values = job.to_dict()
    names = [name for name in _SHARED if job.schedule != "constant" or name not in ("warmup_steps", "steps")]
    if job.precision != "fp16":
        names.remove("loss_scale")
    facts = {name: values[name] for name in names}
    if os.path.exists(job.data):  # one folder may be written in several ways
        facts["data"] = os.path.realpath(job.data)
    engine = {name: value for name, value in sorted(values["engine"].items()) if name in _SHARED_ENGINE}
    return facts | {"engine": engine}


def _seal(hidden: Path, final: Path, seal: dict[str, Any]) -> None:
    """Lists the files that are in `hidden`, gives it its final name and removes what is too old, and what is left of
    later steps from a life that went back to an older checkpoint."""
    written = [path for path in sorted(hidden.rglob("*")) if path.is_file() and path.name != SEAL]
    files = {str(path.relative_to(hidden)): path.stat().st_size for path in written}
    with (hidden / SEAL).open("w") as file:
        file.write(json.dumps(seal | {"files": files}, indent=1))
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    hidden.rename(final)
    there = _complete(final.parent)
    place = there.index(final) if final in there else len(there) - 1
    for old in [*there[: place + 1][:-KEEP], *there[place + 1 :]]:
        shutil.rmtree(old, ignore_errors=True)


def _save_of(checkpoint: Path) -> str | None:
    """Which save made a checkpoint, None where there is none or it does not say."""
    try:
        return json.loads((checkpoint / SEAL).read_text()).get("save")
    except (OSError, ValueError, AttributeError):
        return None


def latest(folder: Path) -> Found | None:
    """The newest checkpoint of a run whose files are all there in full, None where there is none at all. Raises
    JobError where none of them is whole."""
    passed_over: list[str] = []
    for checkpoint in reversed(_complete(folder / "checkpoints")):
        try:
            return Found(step=check_seal(checkpoint), folder=checkpoint, passed_over=tuple(passed_over))
        except JobError as damage:
            passed_over.append(str(damage))
    if passed_over:
        raise JobError(f"{passed_over[0]}; there is no whole one before it: start another run, leave --resume out")
    return None


def check_seal(checkpoint: Path) -> int:
    """The step of a checkpoint whose files are all there in full. Raises JobError with the file that is not."""
    seal = _read_seal(checkpoint)
    for name, size in seal["files"].items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            have = path.stat().st_size if path.is_file() else 0
            raise JobError(f"{path}: {have} bytes, {size} were written: it is truncated")
    return int(seal["step"])


def _read_seal(checkpoint: Path) -> dict[str, Any]:
    """The seal. Raises JobError where it is missing, torn or says less than every seal does."""
    try:
        seal = json.loads((checkpoint / SEAL).read_text())
        whole = isinstance(seal["files"], dict) and int(seal["step"]) >= 0 and {"engine", "world_size"} <= set(seal)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise JobError(f"{checkpoint}: not a whole checkpoint of this program: it has no valid {SEAL}")
    return seal


def check_matches(checkpoint: Path, job: Job, world_size: int) -> None:
    """Raises JobError where the checkpoint is of another engine, world size or training than the job's. A job that
    leaves the image size to its preset (0) is not held to that: it is, when its model has been made."""
    seal = _read_seal(checkpoint)
    if (seal["engine"], seal["world_size"]) != (job.backend, world_size):
        raise JobError(
            f"{checkpoint}: written by {seal['engine']} on {seal['world_size']} workers, "
            f"this job is {job.backend} on {world_size}: resume it there, or leave --resume out to start another run"
        )
    saved, mine = seal.get("job"), shared_facts(job)
    if not isinstance(saved, dict):
        raise JobError(f"{checkpoint}: it does not say how it was trained (an older version's): {REMEDY}")
    left_open = {} if job.image_size else {"image_size": 0}
    found = difference(saved | left_open | {"engine": 0}, mine | left_open | {"engine": 0})
    # A setting that one of them leaves to its default is compared by the engine, which knows the default.
    theirs, own = saved.get("engine") or {}, mine["engine"]
    found = found or difference(*({name: each[name] for name in own if name in theirs} for each in (theirs, own)))
    if found is not None:
        raise JobError(f"{checkpoint}: {found}: {REMEDY}")
    _check_code(checkpoint, seal, job)


def _check_code(checkpoint: Path, seal: Mapping[str, Any], job: Job) -> None:
    """Raises JobError where the files of a user's own job are not those that the checkpoint was trained with."""
    source = source_of(job.preset)
    if source is None or source.file is None:
        return
    hashes = seal.get(CODE)
    if not hashes:
        raise JobError(f"{checkpoint}: it does not say what {source.file.name} held (an older version's): {REMEDY}")
    if (name := changed_file(source.file, hashes)) is not None:
        raise JobError(
            f"{checkpoint}: {name} has been changed since it was saved: put its old content back, or start another "
            "run: leave --resume out"
        )


def check_resumable(job: Job, folder: Path) -> None:
    """Raises JobError where `job` cannot go on from what is in the run's folder, RecordError where the record that it
    would go on writing is damaged, before anything of it is changed."""
    for name in (STEPS, RESOURCES, SPLIT):
        for _ in read_jsonl(folder / name):
            pass
    if (found := latest(folder)) is not None:
        check_matches(found.folder, job, job.world_size)


def cut_steps(folder: Path, step: int) -> None:
    """Drops the rows of steps that will be trained again, so that a resumed run's record has each step once."""
    rows = [row for row in read_jsonl(folder / STEPS) if row["step"] < step]
    path = folder / STEPS
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    append_jsonl(temporary, rows)
    if rows:
        temporary.replace(path)
    else:
        path.unlink(missing_ok=True)


def cut_torn_lines(folder: Path) -> None:
    """Takes the last line that a kill cut off from the files that a resumed run goes on writing: appended to, it would
    be a broken line in the middle."""
    for name in (RESOURCES, SPLIT):
        path = folder / name
        if torn := torn_end(path):
            os.truncate(path, path.stat().st_size - torn)


def _complete(place: Path) -> list[Path]:
    """The sealed folders, oldest first."""
    if not place.is_dir():
        return []
    found = [path for path in place.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))
