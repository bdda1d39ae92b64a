"""The studies that come with the program, by name: ``harness compare NAME``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from backends.declared import nearest
from harness.common.paths import PROJECT
from harness.job.declaration import JobError

FOLDER = PROJECT / "harness" / "studies"


def names() -> list[str]:
    """Their names, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find(name: str) -> Path:
    """The file of the shipped study `name`. Raises JobError with the nearest name."""
    if name not in names():
        near = nearest(name, names())
        hint = f"did you mean '{near}'?" if near else "`harness list studies` shows them"
        raise JobError(f"no study '{name}': {hint} (or name a TOML file)")
    return FOLDER / f"{name}.toml"


def titles() -> dict[str, str]:
    """Name -> title of each."""
    return {name: str(_declared(name).get("title", "")) for name in names()}


def needs(name: str) -> str:
    """What a machine must have for the study, in a few words: workers, GPUs, data.

    A study that trains in 16 bits, or a model of the GPU's size, needs GPUs in practice: the job's precision, device
    and preset say it.
    """
    declared = _declared(name)
    job = declared.get("job", {})
    most = max(declared.get("workers", [1]))
    half = job.get("precision", "fp32") != "fp32" or "precision" in declared.get("matrix", {})
    gpu = job.get("device") != "cpu" and (half or job.get("preset") in ("llama-600m", "anomalygpt-7b"))
    parts = [f"{most} GPUs" if gpu and most > 1 else "1 GPU" if gpu else f"{most} workers"]
    if ":" in str(job.get("data", "")):
        parts.append(f"data {job['data']}")
    return ", ".join(parts)


def _declared(name: str) -> dict[str, Any]:
    return tomllib.loads(find(name).read_text())
