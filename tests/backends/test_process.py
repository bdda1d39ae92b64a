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
    "srun": {
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "4",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_STEP_ID": "0",
    },
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


# What sbatch gives its script: one process, though the job may have four tasks.
BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_TASKS_PER_NODE": "4",
}


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": str(0xFFFFFFFB)}, {"SLURM_STEP_ID": str(0xFFFFFFFA)}])
def test_a_batch_script_is_alone(step: dict[str, str]) -> None:
    facts = detect(BATCH | step)
    assert (facts.rank, facts.world_size, facts.launcher) == (0, 1, "none")


@pytest.mark.parametrize(("node", "expected"), [("0", 2), ("1", 2), ("2", 1)])
def test_slurm_lists_the_ranks_of_every_node(node: str, expected: int) -> None:
    listed = {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": node}
    assert detect(CASES["srun"] | listed).local_size == expected
