"""Where a run is recorded: a new folder each time, nothing is ever overwritten."""

from __future__ import annotations

import re
from pathlib import Path

from harness.checkpoints import check_resumable
from harness.job import Job, JobError
from harness.records import JOB, is_run, write_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_name(kind: str, name: str) -> str:
    """`name`, or JobError where it could leave its folder or upset a shell."""
    if not _NAME.fullmatch(name):
        raise JobError(f"{kind} name '{name}': use letters, digits, '.', '_' and '-' only")
    return name


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
