"""Which rank am I? Read from the environment that a launcher made, without importing any engine."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

# launcher name -> (rank, world size, local rank, local size) variables, looked up in this order: horovodrun and
# deepspeed may themselves run above mpirun, so the most specific set comes first.
_LAUNCHERS: tuple[tuple[str, tuple[str, str, str, str]], ...] = (
    ("horovodrun", ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE")),
    ("torchrun", ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")),
    ("deepspeed", ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    (
        "mpirun",
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    ("mpich", ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")),
    ("srun", ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")),
)
# Slurm numbers its own steps from here up: the batch script, an interactive shell, the extern step (slurm.h).
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


@dataclass(frozen=True, kw_only=True)
class ProcessFacts:
    """Rank 0..world_size-1 over all nodes; local_rank 0..local_size-1 on this node; who started it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = "none"
    hostname: str = ""
    master_addr: str = ""
    master_port: int = 0


def detect(environ: Mapping[str, str] | None = None) -> ProcessFacts:
    """The facts of this process from `environ` (default: os.environ); a lone process is rank 0 of 1."""
    env = os.environ if environ is None else environ
    host = socket.gethostname()
    for launcher, (rank, size, local_rank, local_size) in _LAUNCHERS:
        if rank in env and size in env and _is_complete(launcher, local_size, env):
            world = int(env[size])
            return ProcessFacts(
                rank=int(env[rank]),
                world_size=world,
                local_rank=int(env.get(local_rank, "0")),
                local_size=_local_size(env.get(local_size, "1"), env),
                launcher=launcher,
                hostname=host,
                master_addr=env.get("MASTER_ADDR", ""),
                master_port=int(env.get("MASTER_PORT", "0") or 0),
            )
    return ProcessFacts(hostname=host)


def _is_complete(launcher: str, local_size: str, env: Mapping[str, str]) -> bool:
    """Whether the variables are really those of a rank of `launcher`."""
    if launcher in ("torchrun", "deepspeed"):
        return local_size in env
    if launcher == "srun":
        # sbatch gives its script SLURM_PROCID 0 and the whole job's SLURM_NTASKS, though one process runs it: only a
        # step that srun has started has as many ranks as it says.
        step = env.get("SLURM_STEP_ID", "")
        return step.isdigit() and int(step) < _FIRST_SPECIAL_STEP
    return True


def _local_size(text: str, env: Mapping[str, str]) -> int:
    """Ranks on this node; Slurm lists all nodes', as ``2(x3),1``."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * (int(times.rstrip(")")) if times else 1)
    node = int(env.get("SLURM_NODEID", "0") or 0)
    return counts[node] if node < len(counts) else counts[0]
