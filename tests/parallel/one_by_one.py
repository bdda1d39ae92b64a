"""Runs jobs one by one in this process, as a shared launch does, and prints the tensor bytes that each leaves behind.

Usage: one_by_one.py RESULTS ZERO_STAGE...
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import torch

from backends.process.rank import detect
from harness.job.declaration import Job
from harness.records.run_folder import claim_run_folder
from harness.worker import main as worker


def _report() -> None:
    gc.collect()
    tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
    print("left behind:", sum(found.numel() * found.element_size() for found in tensors), flush=True)


def main() -> None:
    """One job a ZeRO stage."""
    results, items = Path(sys.argv[1]), []
    for number, stage in enumerate(sys.argv[2:]):
        job = Job.from_dict(
            {
                "backend": "deepspeed",
                "engine": {"zero_stage": int(stage)},
                "preset": "tiny",
                "data": "textures",
                "steps": 2,
                "global_batch": 2,
                "eval_samples": -1,
                "study": "one-by-one",
                "run": f"run-{number}",
            }
        ).validate()
        job, folder = claim_run_folder(job, results)
        items.append({"job": job.to_dict(), "run_dir": str(folder)})
    worker._release_memory = _report
    os._exit(worker._one_by_one(items, detect(), results))


if __name__ == "__main__":
    main()
