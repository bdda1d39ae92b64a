"""Which rank am I, under each launcher."""

from __future__ import annotations

import socket

import pytest

from backends.process import detect
from backends.process_group import own_addresses

CASES = {
    "horovodrun": {"HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"},
    "torchrun": {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "29500",
    },
    "deepspeed": {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_SIZE": "2",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    },
    "mpirun": {
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    },
    "srun": {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "2"},
}


@pytest.mark.parametrize("launcher", CASES)
def test_ranks(launcher: str) -> None:
    facts = detect(CASES[launcher])
    assert (facts.rank, facts.world_size, facts.local_rank, facts.local_size) == (3, 4, 1, 2)
    assert facts.launcher == launcher
    assert facts.hostname == socket.gethostname()


def test_alone() -> None:
    facts = detect({})
    assert (facts.rank, facts.world_size, facts.launcher) == (0, 1, "none")


def test_horovodrun_over_mpi_counts_as_horovodrun_where_it_says_so() -> None:
    assert detect(CASES["mpirun"] | CASES["horovodrun"]).launcher == "horovodrun"


def test_own_addresses_end_with_loopback() -> None:
    found = own_addresses()
    assert "127.0.0.1" in found
    assert all(not address.startswith("127.") for address in found[: found.index("127.0.0.1")])
