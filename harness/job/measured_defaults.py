"""Settings that a new job gets where it does not name them itself, since they were measured to win.

They are written into the job when it is declared (by options or a study's file), so its record holds them. A job that
is read from a record stays what it was: a field or model setting that a record lacks has the value from before there
was this file, and `harness.records.comparability` says so where two records differ in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core_model.models import MODELS
from harness.job.declaration import Job

_DRIVER = Path("/proc/driver/nvidia/gpus")


def gpus_here() -> int:
    """NVIDIA GPUs of this machine, by its driver."""
    return len(list(_DRIVER.iterdir())) if _DRIVER.is_dir() else 0


def on_gpu(device: str) -> bool:
    """Whether a job of this `device` computes on a GPU here."""
    return device == "cuda" or (device == "auto" and gpus_here() > 0)


def with_measured(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a new job with what it leaves to be decided: on a GPU, a model all of whose blocks are trained has
    them compiled and its loss fused.

    Together they gave `llama-600m` 26 % more samples/s (95 % CI 23 to 29 %, one H100) and 18 % less memory. Not on
    processors, where compiling takes longer than it saves in a short run. Not `anomalygpt-7b` and its kin: their frozen
    parts are replayed as CUDA graphs, which already spare the launches, and would be compiled once more for each form
    that their inputs have. All engines of a comparison get the same.
    """
    if str(values.get("preset", Job.preset)) not in MODELS or not on_gpu(str(values.get("device", Job.device))):
        return dict(values)
    return {"compile": True, **values, "model": {"loss": "fused", **values.get("model", {})}}
