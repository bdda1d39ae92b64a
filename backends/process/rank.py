"""Which rank am I? Read from the environment that a launcher made, without importing any engine.

Every launcher sets four numbers: rank, world size, and both again within the machine. The first complete set counts.
Sets that are not complete, not possible or that contradict one another are refused by name: a process that took itself
for a lone one, or for local rank 0, would train a whole job of its own, or share GPU 0 with the others.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from mpi.errors import UserError


class RankError(UserError, RuntimeError):
    """The environment does not say which rank this is. One line: the variables and the remedy."""


@dataclass(frozen=True, kw_only=True)
class _Names:
    """The variables of one launcher. groups: how many node-wise launchers share the job, where it says so."""

    launcher: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    groups: str = ""
    inner: bool = False  # it may be started once a machine by another launcher, whose own ranks are then the machines


# In the order of precedence: horovodrun and deepspeed may themselves run above mpirun, Hydra and Open MPI start their
# daemons through srun, so the most specific set comes first. Slurm's PMI2 sets PMI_RANK and PMI_SIZE too, but not the
# local ones, by which MPICH and Intel MPI are told from it.
_TORCHRUN = _Names(
    launcher="torchrun",
    rank="RANK",
    size="WORLD_SIZE",
    local_rank="LOCAL_RANK",
    local_size="LOCAL_WORLD_SIZE",
    groups="GROUP_WORLD_SIZE",
    inner=True,
)
_SRUN = _Names(
    launcher="srun",
    rank="SLURM_PROCID",
    size="SLURM_NTASKS",
    local_rank="SLURM_LOCALID",
    local_size="SLURM_STEP_TASKS_PER_NODE",
)
_LAUNCHERS = (
    _Names(
        launcher="horovodrun",
        rank="HOROVOD_RANK",
        size="HOROVOD_SIZE",
        local_rank="HOROVOD_LOCAL_RANK",
        local_size="HOROVOD_LOCAL_SIZE",
        inner=True,
    ),
    _TORCHRUN,
    _Names(
        launcher="deepspeed",
        rank="RANK",
        size="WORLD_SIZE",
        local_rank="LOCAL_RANK",
        local_size="LOCAL_SIZE",
        groups="CROSS_SIZE",
        inner=True,
    ),
    _Names(
        launcher="mpirun",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Names(
        launcher="mvapich",
        rank="MV2_COMM_WORLD_RANK",
        size="MV2_COMM_WORLD_SIZE",
        local_rank="MV2_COMM_WORLD_LOCAL_RANK",
        local_size="MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    _Names(
        launcher="mpich",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_size="MPI_LOCALNRANKS",
    ),
    _SRUN,
)
# Slurm numbers its own steps from here up: the batch script, an interactive shell, the extern step (slurm.h).
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class ProcessFacts:
    """Which rank this process is, and who started it.

    Args:
        rank, world_size: 0 to world_size - 1 over all nodes.
        local_rank, local_size: 0 to local_size - 1 on this node; UNKNOWN where the environment says only where rank 0
            is: `backends.process.placement.placed` asks the other ranks.
        launcher: who started it; ``env``: RANK and WORLD_SIZE were set by hand, ``none``: no launcher.
        hostname: of this node.
        master_addr, master_port: where rank 0 listens, where the launcher says it.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = "none"
    hostname: str = ""
    master_addr: str = ""
    master_port: int = 0

    @property
    def is_placed(self) -> bool:
        """Whether the local rank and size are known."""
        return self.local_rank != UNKNOWN and self.local_size != UNKNOWN


@dataclass(frozen=True, kw_only=True)
class _Found:
    """One launcher's set. local_rank, local_size: None where it does not say."""

    names: _Names
    rank: int
    size: int
    local_rank: int | None
    local_size: int | None

    @property
    def is_complete(self) -> bool:
        return self.local_rank is not None and self.local_size is not None

    def __str__(self) -> str:
        return f"{self.names.rank}={self.rank}, {self.names.size}={self.size}"


def detect(environ: Mapping[str, str] | None = None, local_rank: int | None = None) -> ProcessFacts:
    """The facts of this process from `environ` (default: os.environ); a lone process is rank 0 of 1.

    Args:
        local_rank: from the worker's command line, where deepspeed and torch.distributed.launch put it.

    Raises:
        RankError: where the environment is not complete, not possible or contradicts itself.
    """
    env = {name: text for name, text in (os.environ if environ is None else environ).items() if text.strip()}
    if local_rank is not None and env.setdefault("LOCAL_RANK", str(local_rank)) != str(local_rank):
        raise RankError(f"--local-rank {local_rank} contradicts LOCAL_RANK={env['LOCAL_RANK']}: leave the option out")
    found = [ranks for names in _LAUNCHERS if (ranks := _read(names, env)) is not None]
    if not found:
        _refuse_fragments(env)
        return ProcessFacts(hostname=socket.gethostname())
    chosen = max(found, key=_trust)  # the first of several that are as good
    for other in found:
        _refuse_contradiction(chosen, other, env)
    return _facts(chosen, env)


def _trust(found: _Found) -> int:
    """A complete set counts before one with a local rank, and that before a mere pair. A pair that says rank 0 of 1
    counts least: an engine leaves one in the environment of its process."""
    if found.is_complete:
        return 3
    return 0 if found.size == 1 else 1 if found.local_rank is None else 2


def _read(names: _Names, env: Mapping[str, str]) -> _Found | None:
    """The set under these names; None where the launcher's pair of rank and size is not there."""
    if names is _SRUN and not _in_step(env):
        return None
    if names.rank not in env or names.size not in env:
        return None
    if names.launcher == "deepspeed" and names.local_size not in env:
        return None  # the same pair as torchrun's
    if names is _TORCHRUN and names.local_size not in env and "LOCAL_SIZE" in env:
        return None
    rank, size = _number(names.rank, env), _number(names.size, env)
    if size < 1:
        raise RankError(f"{names.size}={size}: it must be at least 1")
    if rank >= size:
        raise RankError(f"{names.rank}={rank} with {names.size}={size}: ranks go from 0 to {size - 1}")
    local_rank = _number(names.local_rank, env) if names.local_rank in env else None
    local_size = _local_size(names, env)
    if local_rank is not None and local_size is not None and local_rank >= local_size:
        raise RankError(
            f"{names.local_rank}={local_rank} with {local_size} ranks on this machine ({names.local_size}): "
            f"local ranks go from 0 to {local_size - 1}"
        )
    if local_size is not None and local_size > size:
        raise RankError(
            f"{names.local_size}={local_size} is more than {names.size}={size}: unset what is not this job's"
        )
    return _Found(names=names, rank=rank, size=size, local_rank=local_rank, local_size=local_size)


def _number(name: str, env: Mapping[str, str]) -> int:
    text = env[name].strip()
    if not text.isdecimal():
        raise RankError(f"{name}={text}: it must be a whole number from 0 up")
    return int(text)


def _in_step(env: Mapping[str, str]) -> bool:
    """Whether srun has started this process. sbatch gives its script SLURM_PROCID 0 and the whole job's SLURM_NTASKS,
    though one process runs it, and salloc its shell: only a step has as many ranks as it says."""
    step = env.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP


def _local_size(names: _Names, env: Mapping[str, str]) -> int | None:
    """Ranks on this node; Slurm lists all nodes', as ``2(x3),1``."""
    if names is not _SRUN:
        return _number(names.local_size, env) if names.local_size in env else None
    counts: list[int] = []
    name = next((name for name in (names.local_size, "SLURM_NTASKS_PER_NODE") if name in env), None)
    if name is None:
        return None
    for part in env[name].split(","):
        count, _, times = part.strip().partition("(x")
        times = times.rstrip(")") or "1"
        if not (count.isdecimal() and times.isdecimal()):
            raise RankError(f"{name}={env[name]}: it must be numbers of tasks, as 2(x3),1")
        counts += [int(count)] * int(times)
    node = _number("SLURM_NODEID", env) if "SLURM_NODEID" in env else 0
    return counts[node] if node < len(counts) else counts[0]


def _refuse_fragments(env: Mapping[str, str]) -> None:
    """Raises RankError where a launcher's pair is there by half, or the local numbers without it."""
    for names in _LAUNCHERS:
        if names is _SRUN:
            continue  # sbatch and salloc leave parts of it in their shells
        rank, size, local = names.rank in env, names.size in env, names.local_rank in env
        if rank and not size:
            raise RankError(f"{names.rank}={env[names.rank]} is set but {names.size} is not: set both, or neither")
        if size and not rank and _number(names.size, env) != 1:
            raise RankError(f"{names.size}={env[names.size]} is set but {names.rank} is not: set both, or neither")
        if local and not rank and not size:
            told = f"{names.local_rank}={env[names.local_rank]} is set but {names.rank} and {names.size} are not"
            raise RankError(f"{told}: set all of them, or none")


def _refuse_contradiction(chosen: _Found, other: _Found, env: Mapping[str, str]) -> None:
    """Raises RankError where another launcher started several ranks and `chosen` would make each of them the same one,
    or a job of its own. A launcher that is started once a machine by another one is no contradiction."""
    if other is chosen or other.size == 1:
        return
    pair = (chosen.rank, chosen.size)
    if pair == (other.rank, other.size):
        return
    if chosen.names.inner:
        if not other.is_complete and other.names is not _TORCHRUN:
            return  # PMI's pair beside the rest of Slurm's
        if _groups(chosen, env) == other.size or (chosen.names.launcher == "horovodrun" and chosen.size > other.size):
            return
    elif other.names.launcher not in ("torchrun", "deepspeed"):
        return  # an MPI's daemons are started by srun or by another MPI
    raise RankError(
        f"{chosen} contradict {other}: this process cannot be both ranks; unset those that are not of this job's "
        f"launcher (env -u {chosen.names.rank} -u {chosen.names.size}, or -u {other.names.rank} -u {other.names.size})"
    )


def _groups(found: _Found, env: Mapping[str, str]) -> int:
    """How many node-wise launchers share the job of `found`."""
    if found.names.groups in env:
        return _number(found.names.groups, env)
    return -(-found.size // (found.local_size or 1))


def _facts(found: _Found, env: Mapping[str, str]) -> ProcessFacts:
    address, port = env.get("MASTER_ADDR", "").strip(), 0
    if "MASTER_PORT" in env:
        port = _number("MASTER_PORT", env)
        if not 0 < port < 65536:
            raise RankError(f"MASTER_PORT={port}: it must be from 1 to 65535")
    names, local_rank, local_size = found.names, found.local_rank, found.local_size
    launcher = names.launcher
    if found.size == 1:
        local_rank, local_size = 0, 1
    if local_rank is None or local_size is None:
        missing = [name for name in (names.local_rank, names.local_size) if name not in env]
        if not (address and port) and names is not _SRUN:
            meeting = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env]
            raise RankError(
                f"{found} are set but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not, and "
                f"{' and '.join(meeting)}, by which the ranks could find out who shares a machine, "
                f"{'is' if len(meeting) == 1 else 'are'} missing too: set them on every rank, or use torchrun"
            )
    if names is _TORCHRUN and names.local_size not in env:
        launcher = "env" if found.size > 1 else "none"
    return ProcessFacts(
        rank=found.rank,
        world_size=found.size,
        local_rank=UNKNOWN if local_rank is None else local_rank,
        local_size=UNKNOWN if local_size is None else local_size,
        launcher=launcher,
        hostname=socket.gethostname(),
        master_addr=address,
        master_port=port,
    )
