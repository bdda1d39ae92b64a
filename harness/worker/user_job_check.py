"""Tries a user's job in a process of its own: ``python -m harness.worker.user_job_check PACKED OUT``.

The launching side starts two of them, as if they were ranks 0 and 1. Both say what start weights and samples they
have; rank 0 also tries the job (`core_model.user_job.checks`). OUT is JSON: ``error``, or ``digest`` and ``findings``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core_model.user_job.source import source_of
from harness.common.packed_json import unpack
from harness.job.declaration import Job
from harness.records.record_files import write_text
from mpi.errors import UserError


def main(packed: str, out: str) -> None:
    """Tries the job and writes OUT, whatever comes of it but an error of ours."""
    asked = unpack(packed)
    try:
        told = _tried(Job.from_dict(asked["job"]), rank=asked["rank"])
    except UserError as error:
        told = {"error": str(error)}
    write_text(Path(out), json.dumps(told))


def _tried(job: Job, *, rank: int) -> dict[str, Any]:
    import torch

    from core_model.user_job.checks import Findings, check
    from harness.worker.model_and_data import arrange, build_model, trainable_weights, weights_digest

    torch.set_num_threads(max(1, job.threads))
    source = source_of(job.preset)
    if source is not None and source.file is None:  # a model of ours: tried without a weight
        model = build_model(job, device="meta")
        arrange(model, job)
        noisy = bool(model.job.facts["draws_random_numbers"])
        return {"findings": asdict(Findings(samples=len(model.own_dataset()), noisy=noisy))}
    model = build_model(job)
    dataset = model.own_dataset()
    told: dict[str, Any] = {
        "weights": weights_digest(trainable_weights(model)),
        "data": dataset.describe(),
        "code": model.code_hash,
    }
    if rank > 0:
        return told
    on_gpu = job.device != "cpu" and torch.cuda.is_available()
    try:
        findings = asdict(check(model, device="cuda" if on_gpu else "cpu"))
    except torch.OutOfMemoryError:
        text = f"{model.source.label}: too large to be tried on one GPU: its loss and gradients were not checked"
        findings = {"samples": len(dataset), "noisy": False, "notes": [text], "hints": dict(model.job.optimizer)}
    arrange(model, job)  # the last: what has been tried is the job as it is written
    return told | {"findings": findings}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
