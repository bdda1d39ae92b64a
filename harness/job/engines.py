"""How an engine with its settings is written, in every command and every study file: ``NAME[:SETTINGS][@WORKERS]``.

    ddp
    horovod:fusion_threshold_mb=32+cycle_time_ms=0.5      settings are KEY=VALUE with + between them
    deepspeed:2                                           short for deepspeed:zero_stage=2
    deepspeed:3+memory_efficient_linear=false
    single@1,ddp@2,deepspeed:1@2                          @N: with N workers, where engines of unlike workers meet

A list of engines has commas between them. A value is JSON where it is JSON (numbers, true, null), text otherwise.
"""

from __future__ import annotations

import json
from typing import Any

from harness.job.declaration import JobError

ZERO_STAGE = 2  # of `deepspeed` without a stage: the default of its settings
HOW = "write NAME, NAME:KEY=VALUE or NAME:KEY=VALUE+KEY=VALUE (deepspeed:2 is short for deepspeed:zero_stage=2)"


def parse_value(text: str) -> Any:
    """JSON where it is JSON (numbers, true, null, lists), text otherwise."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def split_engines(text: str) -> list[str]:
    """``a,b`` as ["a", "b"]. Raises JobError where there is none."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise JobError("no engine is named: `harness list engines` shows them")
    return found


def split_workers(text: str) -> tuple[str, int | None]:
    """``ddp@2`` as ("ddp", 2); None where no number of workers is written. Raises JobError."""
    engine, at, count = text.strip().rpartition("@")
    if not at or ("=" in engine and not count.isdigit()):  # the @ of a value, such as a path
        return text.strip(), None
    if not (count.isdigit() and int(count) > 0):
        raise JobError(f"engine '{text.strip()}': write the number of workers behind @, such as {engine}@2")
    return engine, int(count)


def parse_backend(text: str) -> dict[str, Any]:
    """``deepspeed:zero_stage=1+overlap_comm=true`` as ``{"backend": ..., "engine": {...}}``. Raises JobError."""
    engine, workers = split_workers(text)
    if workers is not None:
        raise JobError(f"engine '{text.strip()}': the numbers of workers are given by --workers here, not behind @")
    name, colon, settings = engine.partition(":")
    if not name or "+" in name or "=" in name or (colon and not settings):
        raise JobError(f"engine '{text.strip()}': {HOW}")
    found: dict[str, Any] = {}
    for place, part in enumerate(settings.split("+") if settings else ()):
        key, equals, value = part.partition("=")
        if place == 0 and name == "deepspeed" and part.strip().isdigit():
            key, equals, value = "zero_stage", "=", part
        if not equals or not key.strip():
            raise JobError(f"engine '{text.strip()}': '{part}' is no setting: {HOW}")
        found[key.strip()] = parse_value(value.strip())
    return {"backend": name, "engine": found}
