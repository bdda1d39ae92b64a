"""All that can be refused of a job is refused here, in one line, before a folder is made or a process is started."""

from __future__ import annotations

import os
from pathlib import Path

import backends
import mpi.launch
from backends.declared import unknown
from core_model.user_job.source import source_of
from harness.job.declaration import Job, JobError
from harness.job.measured_defaults import gpus_here, on_gpu
from harness.launch.user_job import check_user_job
from harness.records.run_folder import check_name
from harness.records.undefined_figures import check_data

# Launchers that start another one: what their ranks find themselves under (`backends.process.rank.detect`).
_BELOW = {
    "deepspeed-openmpi": "mpirun",
    "deepspeed-mpich": "mpich",
    "deepspeed-slurm": "srun",
    "horovodrun-mpi": "mpirun",
    "horovodrun-elastic": "horovodrun",
}


def preflight(job: Job) -> Job:
    """The validated job, if it can work here. Raises JobError, BackendError, ModelError, DataError or HostfileError
    otherwise: fields that do not go together; an engine that is unknown, missing, or cannot do this (its settings, its
    json, this launcher); a model that cannot be built; too many workers; no data."""
    backends.load(job.validate().backend)
    job = check_choices(job)
    if job.nodes == 1:
        _check_capacity(job)
    _check_weights(job)
    if source_of(job.preset) is None:
        check_data(job)
    else:
        check_user_job(job)
    if job.init_weights:
        from harness.worker.model_and_data import weights_file

        weights_file(Path(job.init_weights))
    return job


def check_choices(job: Job) -> Job:
    """The part of `preflight` that asks nothing of this machine but the files that the job names: for planning."""
    job = job.validate()
    check_name("study", job.study)
    if job.run:
        check_name("run", job.run)
    _check_engine(job)
    _check_model(job)
    if job.tune_steps:
        from harness.worker.horovod_autotune import budget

        budget(job.tune_steps)
    return job


def start_note(job: Job) -> str:
    """What makes the job's start long on this machine, "" for nothing."""
    from harness.worker.model_and_data import build_optimization

    settings = backends.settings_from(job.backend, dict(job.engine))
    return backends.backend_class(job.backend).start_note(settings, build_optimization(job))


def launcher_of(job: Job) -> str:
    """The name of the launcher that starts the job: the one that was asked for, else the engine's own. Raises JobError
    for an unknown one."""
    if job.elastic is not None:
        return "horovodrun-elastic"
    if job.launcher not in ("auto", *mpi.launch.LAUNCHERS):
        raise JobError(unknown("launcher", job.launcher, ("auto", *mpi.launch.LAUNCHERS)))
    if job.backend == "single":
        return "local"
    return mpi.launch.default_launcher(job.backend) if job.launcher == "auto" else job.launcher


def _check_engine(job: Job) -> None:
    engine = backends.backend_class(job.backend)
    settings = backends.settings_from(job.backend, dict(job.engine))
    launcher = launcher_of(job)
    if job.profile == "engine" and job.backend not in ("horovod", "deepspeed"):
        raise JobError(f"engine '{job.backend}' has no profiler of its own: use --profile torch")
    from harness.worker.model_and_data import build_optimization

    engine.check_job(
        settings,
        build_optimization(job),
        world_size=job.world_size,
        micro_batch=0 if job.elastic is not None else job.micro_batch,
        launcher=_BELOW.get(launcher, launcher),
    )


def _check_weights(job: Job) -> None:
    """The published checkpoints of a preset that wants them are there."""
    from core_model.models import MODELS

    if job.preset in MODELS or job.random_weights or source_of(job.preset) is not None:
        return
    from core_model.presets import spec
    from core_model.pretrained.registry import check_weights

    check_weights(spec(job.preset, overrides=dict(job.model), version=job.version))


def _check_model(job: Job) -> None:
    """A preset as it is can be built; what is changed in it is built without weights, and arranged as the job says."""
    from core_model.models import MODELS

    if source_of(job.preset) is not None:
        return
    if job.preset not in MODELS:
        from core_model.presets import spec

        spec(job.preset, overrides=dict(job.model), version=job.version)
    if not (job.model or job.image_size or job.version or job.compile or job.activation_checkpointing):
        return
    from core_model.build import outline
    from harness.worker.model_and_data import arrange

    made = outline(
        job.preset,
        image_size=job.image_size,
        overrides=dict(job.model),
        version=job.version,
    )
    if made is not None:
        arrange(made, job)


def _check_capacity(job: Job) -> None:
    gpu = on_gpu(job.device)
    limit, what = (gpus_here(), "GPUs") if gpu else (len(os.sched_getaffinity(0)), "cores")
    if job.slots > limit and not (job.oversubscribe and not gpu):
        remedy = "" if gpu else ", or add --oversubscribe (it is recorded)"
        raise JobError(
            f"{job.slots} slots were asked for, this machine has {limit} {what}: use --slots {max(1, limit)}{remedy}"
        )
