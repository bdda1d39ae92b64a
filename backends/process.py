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
    ("srun", ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")),
)


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
        if rank in env and size in env and (launcher not in ("torchrun", "deepspeed") or local_size in env):
            world = int(env[size])
            return ProcessFacts(
                rank=int(env[rank]),
                world_size=world,
                local_rank=int(env.get(local_rank, "0")),
                local_size=int(env.get(local_size, "1").split("(")[0]),
                launcher=launcher,
                hostname=host,
                master_addr=env.get("MASTER_ADDR", ""),
                master_port=int(env.get("MASTER_PORT", "0") or 0),
            )
    return ProcessFacts(hostname=host)
