"""A job as a Slurm batch script or a Kubernetes MPIJob, from the same options as `harness run`.

The worker is the same `harness/run.py`; only who starts it differs. Slurm: srun starts the ranks of ddp, fsdp2 and
deepspeed; Horovod needs MPI to tell its ranks, so there mpirun does, inside the allocation. Kubernetes: the MPI
operator (kubeflow.org/v2beta1) starts one launcher and N workers; the manifest is checked against
templates/mpijob.schema.json before it is written.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.job.declaration import Job, JobError

SCHEMA = Path(__file__).resolve().parent / "templates" / "mpijob.schema.json"
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
_PORT = 29500
_YIELD = ("--mca", "mpi_yield_when_idle", "1")


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Where a batch script runs. folder, python: the project and its interpreter on the cluster. results: folder there,
    "" = the project's own. limit_s: seconds after which Slurm ends the job, 0 = the partition's limit."""

    folder: str
    python: str
    name: str = "harness"
    partition: str = ""
    account: str = ""
    results: str = ""
    limit_s: float = 3600.0


@dataclass(frozen=True, kw_only=True)
class Kubernetes:
    """Where an MPIJob runs. results_claim, data_claim: PersistentVolumeClaims, "" = none. cpus, memory: of a worker
    pod, as Kubernetes writes quantities. limit_s: seconds after which the job is ended, 0 = never."""

    image: str
    name: str = "harness"
    namespace: str = "default"
    results_claim: str = ""
    data_claim: str = ""
    cpus: str = "4"
    memory: str = "16Gi"
    limit_s: float = 3600.0

    folder: str = "/opt/anomaly-distbench"  # the project in the image


def slurm_script(job: Job, words: Sequence[str], place: Slurm) -> str:
    """The text of a batch script.

    Args:
        job: what the words describe, validated.
        words: the job's options for harness/run.py.
        place: where it runs.

    Raises:
        JobError: a name that Slurm would refuse or split, or a job that only `harness run` can start.
    """
    _check_startable(job)
    for label, value in (("name", place.name), ("partition", place.partition), ("account", place.account)):
        if value and not re.fullmatch(r"[\w.-]+", value):
            raise JobError(
                f"{label} '{value}' has characters that #SBATCH lines cannot hold: use letters, digits, - and _"
            )
    directives = {
        "job-name": place.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.slots,
        "cpus-per-task": max(1, job.threads + job.loader_workers),
        "time": slurm_time(place.limit_s) if place.limit_s else "",
        "partition": place.partition,
        "account": place.account,
        "gpus-per-node": job.slots if job.device != "cpu" else "",
        "output": f"{place.name}-%j.log",
    }
    worker = [place.python, "harness/run.py", *words, *(["--results", place.results] if place.results else [])]
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{key}={value}" for key, value in directives.items() if value != ""]
    lines += [
        "set -euo pipefail",
        f"cd {shlex.quote(place.folder)}",
        f"export OMP_NUM_THREADS={job.threads} MKL_NUM_THREADS={job.threads}",
        f"export PATH={shlex.quote(str(Path(place.python).parent))}:$PATH LD_LIBRARY_PATH=${{LD_LIBRARY_PATH:-}}",
        "# every wait of the job is limited; what is left when it ends, Slurm ends",
        f"exec {shlex.join(_starter(job))} \\\n  {shlex.join(worker)}",
    ]
    return "\n".join(lines) + "\n"


def _starter(job: Job) -> list[str]:
    """What starts the ranks inside a Slurm allocation."""
    if job.backend == "horovod":
        # Horovod learns its ranks from MPI; this Open MPI starts its daemons through Slurm inside the allocation.
        exports = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PATH", "LD_LIBRARY_PATH")
        start = ["mpirun", "-np", str(job.world_size), "--map-by", f"ppr:{job.slots}:node", "--bind-to", "none"]
        return [*start, *_YIELD, *(word for key in exports for word in ("-x", key))]
    counts = ["--nodes", str(job.nodes), "--ntasks", str(job.world_size), "--ntasks-per-node", str(job.slots)]
    return ["srun", *counts, "--export=ALL", "--kill-on-bad-exit=1", "--cpu-bind=none", "--unbuffered"]


def slurm_time(seconds: float) -> str:
    """Seconds as Slurm writes a time, ``[D-]HH:MM:SS``, rounded up to a whole second."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hours:02}:{minutes:02}:{rest:02}"


def mpijob_manifest(job: Job, words: Sequence[str], place: Kubernetes) -> dict[str, Any]:
    """The MPIJob as plain data.

    Args:
        job: what the words describe, validated.
        words: the job's options for harness/run.py.
        place: where it runs.

    Raises:
        JobError: a name that Kubernetes would refuse, no device, or a job that only `harness run` can start.
    """
    _check_startable(job)
    for label, value in (("name", place.name), ("namespace", place.namespace)):
        if not _DNS_LABEL.fullmatch(value):
            raise JobError(f"{label} '{value}' is no Kubernetes name: use up to 40 small letters, digits and '-'")
    if job.device == "auto":
        raise JobError("the pods must know whether they need GPUs: add --device cuda or --device cpu")
    variables = {
        "OMP_NUM_THREADS": str(job.threads),
        "MASTER_ADDR": f"{place.name}-worker-0.{place.name}",
        "MASTER_PORT": str(_PORT),
    }
    limit = {"activeDeadlineSeconds": math.ceil(place.limit_s)} if place.limit_s else {}
    return {
        "apiVersion": "kubeflow.org/v2beta1",
        "kind": "MPIJob",
        "metadata": {
            "name": place.name,
            "namespace": place.namespace,
            "labels": {"app.kubernetes.io/name": "anomaly-distbench"},
        },
        "spec": {
            "slotsPerWorker": job.slots,
            "mpiImplementation": "OpenMPI",
            "sshAuthMountPath": "/root/.ssh",
            "runPolicy": {"cleanPodPolicy": "All", "backoffLimit": 0, **limit},
            "mpiReplicaSpecs": {
                "Launcher": _launcher(job, words, place, variables),
                "Worker": _workers(job, place, variables),
            },
        },
    }


def _launcher(job: Job, words: Sequence[str], place: Kubernetes, variables: Mapping[str, str]) -> dict[str, Any]:
    """The replica that starts the job's processes in the workers."""
    command = ["mpirun", "--allow-run-as-root", "-np", str(job.world_size), "--bind-to", "none", "--map-by", "slot"]
    command += [*_YIELD, *(word for key in (*variables, "PATH") for word in ("-x", key))]
    command += [f"{place.folder}/.venv/bin/python", f"{place.folder}/harness/run.py", *words]
    command += ["--results", "/results"] if place.results_claim else []
    container = {"name": "launcher", "command": command, "workingDir": place.folder}
    return {"replicas": 1, **_pod(container, place, variables)}


def _workers(job: Job, place: Kubernetes, variables: Mapping[str, str]) -> dict[str, Any]:
    """The replicas in which the job's processes run."""
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    for claim, label, path in ((place.results_claim, "results", "/results"), (place.data_claim, "data", "/data")):
        if claim:
            volumes.append({"name": label, "persistentVolumeClaim": {"claimName": claim}})
            mounts.append({"name": label, "mountPath": path})
    limits: dict[str, Any] = {"cpu": place.cpus, "memory": place.memory}
    if job.device == "cuda":
        limits["nvidia.com/gpu"] = job.slots
    container = {"name": "worker", "command": ["/usr/sbin/sshd", "-De"], "resources": {"limits": limits}}
    pod = _pod({**container, "volumeMounts": mounts}, place, variables, volumes=volumes)
    return {"replicas": job.nodes, **pod}


def _pod(container: Mapping[str, Any], place: Kubernetes, variables: Mapping[str, str], **spec: Any) -> dict[str, Any]:
    """A pod of one container. spec: further fields of the pod."""
    environment = [{"name": key, "value": value} for key, value in variables.items()]
    whole = {**container, "image": place.image, "env": environment}
    return {"template": {"spec": {"containers": [whole], "restartPolicy": "Never", **spec}}}


def _check_startable(job: Job) -> None:
    """Raises JobError for a job whose processes must be started by `harness run`."""
    if job.elastic is not None or job.tune_steps:
        what = "an elastic job" if job.elastic is not None else "a job that tunes Horovod first"
        raise JobError(f"{what} is started by `harness run` alone: leave that setting of the engine out")


def validate_mpijob(manifest: Mapping[str, Any]) -> None:
    """Raises JobError naming the first place where `manifest` is no MPIJob."""
    import jsonschema

    check: Callable[..., Any] = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).iter_errors
    for error in check(manifest):
        where = ".".join(str(part) for part in error.absolute_path)
        raise JobError(f"the manifest is not valid at {where or 'its top'}: {error.message}")
