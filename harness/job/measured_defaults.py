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
    """The values of a new job with what it leaves to be decided, on a GPU only.

    All engines of a comparison get the same.

    A model all of whose blocks are trained has them compiled and its loss fused: `llama-600m` then made 26 % more
    samples/s (95 % CI 23 to 29 %, one H100) with 18 % less memory (results/h100-x1-llama-settings-duel). Not on
    processors, where compiling takes longer than it saves in a short run.

    `anomalygpt-7b` computes no padding and no constant text twice: 20 % more samples/s (95 % CI 12 to 29 %, one H200,
    results/h200-x1-7b-one-duel). Its blocks are not compiled: its frozen parts are replayed as CUDA graphs, which
    already spare the launches, and would be compiled once more for each form that their inputs have.
    """
    if not on_gpu(str(values.get("device", Job.device))):
        return dict(values)
    preset, model = str(values.get("preset", Job.preset)), values.get("model", {})
    if preset in MODELS:
        return {"compile": True, **values, "model": {"loss": "fused", **model}}
    if preset == "anomalygpt-7b":
        return {**values, "model": {"pack_on_gpu": True, "prefix_on_gpu": True, **model}}
    return dict(values)
