"""Horovod's tuning phase of a job: processes of their own before the run, whose outcome the run is fixed to.

Horovod's core reads the tuner's variables when it is loaded and they hold for the process, so the phase cannot share
the run's processes. The phase writes what it found beside the run's records (autotune.json, and Horovod's own log
autotune.csv); the launching side hands it to the run, whose result repeats it.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backends.process.exit import leave
from backends.process.rank import ProcessFacts
from harness.job.declaration import Job, JobError
from harness.records.record_files import read_json, write_json

FILE, LOG = "autotune.json", "autotune.csv"
_WARMUP, _SAMPLES, _SHOTS = 3, 20, 5  # Horovod takes the median of five shots for a sample
Settings = dict[str, Any]


def budget(steps: int) -> dict[str, int]:
    """How the tuner shares `steps` steps: samples to discard, to take, and steps for each of a sample's five shots.
    Raises JobError where they are too few for anything."""
    least = _SHOTS * 4
    if steps < least:
        raise JobError(f"--autotune {steps}: Horovod's tuner needs at least {least} steps, better 500")
    shots = steps // _SHOTS
    if shots >= _WARMUP + _SAMPLES + 1:
        return {"warmup": _WARMUP, "samples": _SAMPLES, "steps_per_sample": shots // (_WARMUP + _SAMPLES + 1)}
    warmup = min(_WARMUP, shots // 4)
    return {"warmup": warmup, "samples": shots - warmup - 1, "steps_per_sample": 1}


def tune_and_leave(job: Job, facts: ProcessFacts, log: Path) -> None:
    """The worker's side: trains with the tuner on, writes autotune.json beside `log` on rank 0, ends the process."""
    try:
        _tune(job, facts, log)
        code = 0
    except BaseException as error:
        from harness.protocol.failure_report import write_failure_mark
        from mpi.errors import UserError

        user = isinstance(error, UserError)
        if not user:
            traceback.print_exc()
        text = " ".join(str(error).split())[:500]
        kind = "" if user else f"{type(error).__name__}: "
        write_failure_mark(facts.rank, f"tuning phase: {kind}{text}", user=user)
        code = 2 if user else 1
    leave(code)


def _tune(job: Job, facts: ProcessFacts, log: Path) -> None:
    import torch

    import backends
    from backends.horovod.autotune import fixed, phase, tune
    from backends.horovod.settings import HorovodSettings
    from harness.worker.model_and_data import build_dataset, build_loader, build_model, prepare

    began = time.perf_counter()
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    asked = HorovodSettings(**{**job.engine, "tune_steps": 0})
    parts = budget(job.tune_steps)
    settings = phase(
        asked, log, warmup=parts["warmup"], samples=parts["samples"], steps_per_sample=parts["steps_per_sample"]
    )
    backend = backends.load("horovod")(settings, facts, device=job.device, timeout_s=job.timeout_s)
    model = build_model(job, device=backend.device)
    if job.emulate_compute_ms:
        from harness.worker.emulated_compute import emulate

        emulate(model, job.emulate_compute_ms / job.accumulation)
    dataset = build_dataset(job, model, "train")
    model.prepare_text(dataset.categories)
    prepare(backend, model, job)
    batches = iter(build_loader(job, facts, model, dataset, steps=job.tune_steps))
    outcome = tune(
        backend,
        lambda step: [batch.to(backend.device) for batch in next(batches)],
        log,
        max_steps=job.tune_steps,
        limit_s=float("inf"),
        check_every=10,
    )
    chosen = fixed(asked, outcome)
    names = ("fusion_threshold_mb", "cycle_time_ms", "cache_capacity", "hierarchical_allreduce")
    if facts.rank == 0:
        told = {
            "steps": job.tune_steps,
            "seconds": time.perf_counter() - began,
            **asdict(outcome),
            "settings": {name: getattr(chosen, name) for name in names},
            "world_size": facts.world_size,
        }
        write_json(log.with_name(FILE), told)
    backend.barrier()
    backend.close()  # under mpirun, MPI that was started must be ended


def tuned_settings(job: Job, tuned: Settings | None) -> Settings:
    """The engine's settings for the run after the phase. Raises JobError where there was none."""
    if tuned is None:
        raise JobError("tune_steps: the run was started without its tuning phase: use `harness run` or `compare`")
    return {**job.engine, **tuned["settings"]}


def found_in(folder: Path) -> tuple[Settings, str]:
    """(what the phase that wrote into `folder` found, the same in one line). Raises RecordError where it wrote none."""
    found = read_json(folder / FILE)
    best, ended = found["best"], "search ended by itself" if found["finished"] else "steps used up"
    text = (
        f"tuned in {found['seconds']:.0f} s: fusion {best['fusion_threshold_mb']:g} MiB, cycle "
        f"{best['cycle_time_ms']:g} ms (best of {found['samples']} samples, {ended})"
    )
    return {name: value for name, value in found.items() if name != "schema"}, text
