"""A user's own job is tried before anything is timed: in processes of their own, which are ended after --timeout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.declared import unknown
from core_model.user_job.source import Source, code_hash, source_of
from harness.common.packed_json import pack
from harness.common.paths import PROJECT
from harness.job.declaration import Job, JobError
from harness.protocol.console import tell

_MODULE = "harness.worker.user_job_check"
_HINTS = ("optimizer", "lr", "betas", "eps", "weight_decay", "clip_norm", "schedule", "warmup_steps", "precision")
_tried: dict[tuple[Any, ...], dict[str, Any]] = {}  # once a command: a study starts the same job again and again


def check_user_job(job: Job, *, deterministic: bool = False) -> None:
    """Raises JobError, in one line, for a job of the user's that breaks its contract (docs/your-model.md); says on
    stderr what the user should know. Nothing for a preset.

    deterministic: the forward pass must draw no random numbers (parity compares weights).
    """
    source = source_of(job.preset)
    if source is None:
        return
    arranged = (job.activation_checkpointing, job.compile)
    built = (job.preset, repr(sorted(job.model.items())), job.data, job.random_weights, job.device, *arranged)
    key = (*built, _content(source))
    first = key not in _tried
    if first:
        _tried[key] = _try(job, source)
    findings = _tried[key]["findings"]
    if findings["samples"] < job.global_batch:
        raise JobError(
            f"{source.label}: the data set has {findings['samples']} samples, a step takes {job.global_batch}: use "
            f"--global-batch {findings['samples']} or less"
        )
    if deterministic and findings["noisy"]:
        raise JobError(
            f"{source.label}: its forward pass draws random numbers (dropout), so that no two ways to split a batch "
            "give equal weights: switch that off, such as by --set model.dropout=0"
        )
    if first:
        for note in [*findings["notes"], *_hints(job, findings["hints"], source)]:
            tell(f"note: {note}")


def _content(source: Source) -> str:
    """What the user's file holds. Raises JobError where there is none."""
    if source.file is None:
        return ""
    if not source.file.is_file():
        raise JobError(f"--model {source.file}: there is no such file")
    return code_hash(source.file)


def _try(job: Job, source: Source) -> dict[str, Any]:
    """What rank 0 told. Raises JobError for its error, and where rank 1 has other weights or samples."""
    with tempfile.TemporaryDirectory(prefix="harness-user-job-") as scratch:
        told = _by_ranks(job, source, Path(scratch), (0, 1) if source.file is not None else (0,))
    for rank in told:
        if "error" in rank:
            raise JobError(rank["error"])
    if source.file is None:
        return told[0]
    for part, text in (("weights", "start weights"), ("data", "data")):
        if told[0][part] != told[1][part]:
            raise JobError(
                f"{source.label}: two builds with the same seed have different {text}: draw random numbers from "
                "torch's, numpy's or Python's global generator only (the harness seeds them), never by rank or time"
            )
    return told[0]


def _by_ranks(job: Job, source: Source, scratch: Path, ranks: Sequence[int]) -> list[dict[str, Any]]:
    processes = []
    limit = time.monotonic() + job.timeout_s
    try:
        for rank in ranks:
            argv = [sys.executable, "-m", _MODULE, pack({"job": job.to_dict(), "rank": rank}), str(scratch / f"{rank}")]
            environ = {**os.environ, "PYTHONPATH": _python_path(), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (scratch / f"{rank}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(argv, cwd=PROJECT, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                )
        for process in processes:
            process.wait(max(0.1, limit - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise JobError(
            f"{source.label}: trying it did not end within {job.timeout_s:g} s: raise --timeout, or mend what hangs"
        ) from None
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    return [_told(scratch, rank, process.returncode, source) for rank, process in enumerate(processes)]


def _told(scratch: Path, rank: int, code: int, source: Source) -> dict[str, Any]:
    file = scratch / f"{rank}"
    if file.is_file():
        return json.loads(file.read_text())
    lines = (scratch / f"{rank}.log").read_text(errors="replace").strip().splitlines()
    last = lines[-1][:200] if lines else "it said nothing"
    return {"error": f"{source.label}: trying it ended with exit code {code}: {last}"}


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))


def _hints(job: Job, hints: Mapping[str, Any], source: Source) -> list[str]:
    """Where the job differs from what its file would train with, a sentence each. Raises JobError for unknown names."""
    said = []
    for name, value in hints.items():
        if name not in _HINTS:
            raise JobError(f"{source.label}: optimizer: {unknown('field', name, _HINTS)}")
        wanted = Job.checked({name: value})[name]
        if wanted != getattr(job, name):
            flag = f"--{name.replace('_', '-')} {','.join(map(str, value)) if name == 'betas' else value}"
            said.append(f"{source.label} would train with {name}={value}, this job has {getattr(job, name)}: {flag}")
    return said
