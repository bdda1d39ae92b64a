"""Where a run is recorded: a new folder each time, nothing is ever overwritten."""

from __future__ import annotations

import os
from pathlib import Path

from harness.checkpoints import check_resumable
from harness.job import Job, JobError
from harness.options import results_root
from harness.records import JOB, is_run, write_json
from mpi import names


def check_name(kind: str, name: str) -> str:
    """`name`, or JobError where it could leave its folder or upset a shell (`mpi.names`: one rule for all names)."""
    if reason := names.fault(kind, name):
        raise JobError(reason)
    return name


def study_folder(results: str | None, study: str, kind: str = "study") -> Path:
    """The folder of `study` in the results folder that --results names, not made yet.

    Raises JobError where the name is none (`check_name`) or nothing can be written there, so that this is said before
    anything is measured.
    """
    folder = results_root(results) / check_name(kind, study)
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
    """Makes results/STUDY/RUN and writes job.json; returns the job with its `run` name and the folder.

    A taken name gets -2, -3, ...; with `job.resume` an existing run's folder is used again.
    Raises JobError where the folder cannot be made.
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
            check_resumable(job, folder)
        else:
            number = 1
            while True:
                try:
                    folder.mkdir()
                    break
                except FileExistsError:
                    number += 1
                    folder = study / f"{base}-{number}"
        job = job.with_(run=folder.name)
        write_json(folder / JOB, job.to_dict())
    except OSError as error:
        raise JobError(
            f"{error.filename or study}: cannot write results there ({error.strerror}): use --results FOLDER"
        ) from None
    return job, folder
