"""A job as a Slurm batch script or a Kubernetes MPIJob, from the same options as `harness run`.

The worker is the same `harness/run.py`; only who starts it differs. Slurm: srun starts the ranks of ddp, fsdp2 and
deepspeed; Horovod needs MPI to tell its ranks, so there mpirun does, inside the allocation. Kubernetes: the MPI
operator (kubeflow.org/v2beta1) starts one launcher and N workers; the manifest is held against
templates/mpijob.schema.json before it is written.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.job.declaration import Job, JobError

SCHEMA = Path(__file__).resolve().parent / "templates" / "mpijob.schema.json"
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
_DURATION = re.compile(r"(\d+-)?\d{1,2}:\d{2}:\d{2}")
_PORT = 29500


def slurm_script(
    job: Job,
    words: list[str],
    name: str,
    limit: str,
    partition: str,
    account: str,
    folder: str,
    python: str,
    results: str,
) -> str:
    """The text of a batch script. Raises JobError for names and times that Slurm would refuse or split."""
    for label, value in (("name", name), ("partition", partition), ("account", account)):
        if value and not re.fullmatch(r"[\w.-]+", value):
            raise JobError(
                f"{label} '{value}' has characters that #SBATCH lines cannot hold: use letters, digits, - and _"
            )
    if not _DURATION.fullmatch(limit):
        raise JobError(f"time '{limit}' is not a Slurm time: write it as HH:MM:SS or D-HH:MM:SS")
    if job.backend == "single" and job.world_size > 1:
        raise JobError("engine 'single' runs one worker: choose another engine")
    directives = {
        "job-name": name,
        "nodes": job.nodes,
        "ntasks-per-node": job.slots,
        "cpus-per-task": max(1, job.threads + job.loader_workers),
        "time": limit,
        "partition": partition,
        "account": account,
        "gpus-per-node": job.slots if job.device != "cpu" else "",
        "output": f"{name}-%j.log",
    }
    argv = [python, "harness/run.py", *words, *(["--results", results] if results else [])]
    exports = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "PATH", "LD_LIBRARY_PATH"]
    if job.backend == "horovod":
        # Horovod learns its ranks from MPI; this Open MPI starts its daemons through Slurm inside the allocation.
        start = ["mpirun", "-np", str(job.world_size), "--map-by", f"ppr:{job.slots}:node", "--bind-to", "none"]
        start += ["--mca", "mpi_yield_when_idle", "1", *(word for key in exports for word in ("-x", key))]
    else:
        start = [
            "srun",
            "--nodes",
            str(job.nodes),
            "--ntasks",
            str(job.world_size),
            "--ntasks-per-node",
            str(job.slots),
        ]
        start += ["--export=ALL", "--kill-on-bad-exit=1", "--cpu-bind=none", "--unbuffered"]
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{key}={value}" for key, value in directives.items() if value != ""]
    lines += [
        "set -euo pipefail",
        f"cd {shlex.quote(folder)}",
        f"export OMP_NUM_THREADS={job.threads} MKL_NUM_THREADS={job.threads}",
        f"export PATH={shlex.quote(str(Path(python).parent))}:$PATH LD_LIBRARY_PATH=${{LD_LIBRARY_PATH:-}}",
        "# every wait of the job is limited; what is left when it ends, Slurm ends",
        f"exec {shlex.join(start)} \\\n  {shlex.join(argv)}",
    ]
    return "\n".join(lines) + "\n"


def mpijob_manifest(
    job: Job,
    words: list[str],
    name: str,
    namespace: str,
    image: str,
    results_claim: str,
    data_claim: str,
    cpus: str,
    memory: str,
    limit_s: int,
) -> dict[str, Any]:
    """The MPIJob as plain data. Raises JobError for names that Kubernetes would refuse."""
    for label, value in (("name", name), ("namespace", namespace)):
        if not _DNS_LABEL.fullmatch(value):
            raise JobError(f"{label} '{value}' is no Kubernetes name: use up to 40 small letters, digits and '-'")
    if job.device == "auto":
        raise JobError("the pods must know whether they need GPUs: add --device cuda or --device cpu")
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    for claim, label, path in ((results_claim, "results", "/results"), (data_claim, "data", "/data")):
        if claim:
            volumes.append({"name": label, "persistentVolumeClaim": {"claimName": claim}})
            mounts.append({"name": label, "mountPath": path})
    folder = "/opt/anomaly-distbench"
    python = f"{folder}/.venv/bin/python"
    variables = {
        "OMP_NUM_THREADS": str(job.threads),
        "MASTER_ADDR": f"{name}-worker-0.{name}",
        "MASTER_PORT": str(_PORT),
    }
    command = ["mpirun", "--allow-run-as-root", "-np", str(job.world_size), "--bind-to", "none", "--map-by", "slot"]
    command += ["--mca", "mpi_yield_when_idle", "1"]
    command += [word for key in (*variables, "PATH") for word in ("-x", key)]
    command += [python, f"{folder}/harness/run.py", *words]
    command += ["--results", "/results"] if results_claim else []
    limits: dict[str, Any] = {"cpu": cpus, "memory": memory}
    if job.device == "cuda":
        limits["nvidia.com/gpu"] = job.slots
    environment = [{"name": key, "value": value} for key, value in variables.items()]

    def pod(container: dict[str, Any], shared: bool) -> dict[str, Any]:
        common = {"image": image, "env": environment, **({"volumeMounts": mounts} if shared else {})}
        spec: dict[str, Any] = {"containers": [{**container, **common}], "restartPolicy": "Never"}
        return {"template": {"spec": {**spec, **({"volumes": volumes} if shared else {})}}}

    sshd = ["/usr/sbin/sshd", "-De"]
    return {
        "apiVersion": "kubeflow.org/v2beta1",
        "kind": "MPIJob",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": "anomaly-distbench"}},
        "spec": {
            "slotsPerWorker": job.slots,
            "mpiImplementation": "OpenMPI",
            "sshAuthMountPath": "/root/.ssh",
            "runPolicy": {"cleanPodPolicy": "All", "backoffLimit": 0, "activeDeadlineSeconds": limit_s},
            "mpiReplicaSpecs": {
                "Launcher": {
                    "replicas": 1,
                    **pod({"name": "launcher", "command": command, "workingDir": folder}, False),
                },
                "Worker": {
                    "replicas": job.nodes,
                    **pod({"name": "worker", "command": sshd, "resources": {"limits": limits}}, True),
                },
            },
        },
    }


def validate_mpijob(manifest: Mapping[str, Any]) -> None:
    """Raises JobError naming the first place where `manifest` is no MPIJob."""
    import jsonschema

    check: Callable[..., Any] = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).iter_errors
    for error in check(manifest):
        where = ".".join(str(part) for part in error.absolute_path)
        raise JobError(f"the manifest is not valid at {where or 'its top'}: {error.message}")
