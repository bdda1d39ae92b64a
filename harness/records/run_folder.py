"""Where a run is recorded: a new folder each time, nothing is ever overwritten."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.job.declaration import Job, JobError
from harness.job.options import results_root
from harness.records.checkpoints import check_resumable
from harness.records.locks import hold, recorded_holder, release
from harness.records.record_files import JOB, RESULT, is_run, write_json
from mpi import names


def check_name(kind: str, name: str) -> str:
    """`name`, or JobError where it could leave its folder or upset a shell (`mpi.names`: one rule for all names)."""
    if reason := names.fault(kind, name):
        raise JobError(reason)
    return name


def study_folder(results: str | None, study: str) -> Path:
    """The folder of `study` in the results folder that --results names, not made yet.

    Raises JobError where the name is none (`check_name`) or nothing can be written there, so that this is said before
    anything is measured.
    """
    folder = results_root(results) / check_name("study", study)
    check_writable(folder)
    return folder


def check_writable(folder: Path) -> None:
    """Raises JobError where `folder` cannot be made or written to."""
    there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise JobError(f"{there}: not a folder, results cannot be written there: use --results FOLDER")
    if not os.access(there, os.W_OK | os.X_OK):
        raise JobError(f"{there}: not writable, results cannot be written there: use --results FOLDER")


def claim_run_folder(job: Job, results: Path) -> tuple[Job, Path]:
    """Makes results/STUDY/RUN, holds it for this process (`harness.records.locks`; released by whoever ends its record)
    and writes job.json; returns the job with its `run` name and the folder.

    A taken name gets -2, -3, ...; with `job.resume` an existing run's folder is used again.
    Raises JobError where the folder cannot be made, or another process works on it.
    """
    check_name("study", job.study)
    base = check_name("run", job.run or job.default_run_name())
    study = results / job.study
    try:
        study.mkdir(parents=True, exist_ok=True)
        folder = study / base
        if job.resume:
            if not is_run(folder):
                raise JobError(
                    f"{folder}: no run to resume there: leave --resume out, or name it by --study and --run-name"
                )
            hold(folder, f"run {job.study}/{base}")
        else:
            folder = _new_folder(study, base)
            hold(folder, f"run {job.study}/{folder.name}")
        try:
            if job.resume:
                check_resumable(job, folder)
            job = job.with_(run=folder.name)
            write_json(folder / JOB, job.to_dict())
        except BaseException:
            release(folder)
            raise
    except OSError as error:
        raise JobError(
            f"{error.filename or study}: cannot write results there ({error.strerror}): use --results FOLDER"
        ) from None
    return job, folder


def claim_run_folders(jobs: Sequence[Job], results: Path) -> list[tuple[Job, Path]]:
    """`claim_run_folder` for each, or for none: what was made is removed where one cannot be had."""
    claimed: list[tuple[Job, Path]] = []
    try:
        for job in jobs:
            claimed.append(claim_run_folder(job, results))
    except BaseException:
        for job, folder in claimed:
            if not job.resume:
                shutil.rmtree(folder, ignore_errors=True)
            release(folder)
        raise
    return claimed


def write_running(folder: Path, **facts: Any) -> None:
    """result.json of a run that is under way, with who ends the record (None where nobody holds the folder)."""
    write_json(folder / RESULT, {"status": "running", **facts, "holder": recorded_holder(folder)})


def _new_folder(study: Path, base: str) -> Path:
    """Raises OSError where it cannot be made."""
    folder, number = study / base, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = study / f"{base}-{number}"
