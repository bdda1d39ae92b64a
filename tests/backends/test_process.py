"""Which rank am I, under each launcher."""

from __future__ import annotations

import socket

import pytest

from backends.process.placement import place_among
from backends.process.rank import _LAUNCHERS, UNKNOWN, RankError, detect
from backends.torch.rendezvous import own_addresses
from mpi.errors import UserError
from mpi.launch import RANK_VARIABLES

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
    listed = {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": node, "SLURM_LOCALID": "0"}
    assert detect(CASES["srun"] | listed).local_size == expected


SLURM_PMI2 = CASES["srun"] | {"PMI_RANK": "3", "PMI_SIZE": "4"}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
PAIR = {"RANK": "3", "WORLD_SIZE": "4"}
MASTER = {"MASTER_ADDR": "a", "MASTER_PORT": "29500"}
ONE_TORCHRUN_A_NODE = CASES["torchrun"] | {"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environ", "launcher", "local_rank"),
    [
        (SLURM_PMI2, "srun", 1),  # srun --mpi=pmi2 sets PMI's pair, and no local numbers
        (MPICH, "mpich", 1),
        # Hydra's and Open MPI's daemons are started by srun, one a node
        (MPICH | CASES["srun"] | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}, "mpich", 1),
        (CASES["mpirun"] | CASES["srun"] | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "mpirun", 1),
        (PAIR | MASTER | CASES["srun"], "srun", 1),  # RANK=$SLURM_PROCID by hand: Slurm knows the local rank
        (PAIR | CASES["mpirun"], "mpirun", 1),
        (ONE_TORCHRUN_A_NODE | {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "torchrun", 1),
        (PAIR | MASTER, "env", UNKNOWN),
        (PAIR | MASTER | {"LOCAL_RANK": "1"}, "env", 1),
        (PAIR | MASTER | {"LOCAL_RANK": "", "LOCAL_WORLD_SIZE": " "}, "env", UNKNOWN),
        ({"RANK": "0", "WORLD_SIZE": "1"} | CASES["mpirun"], "mpirun", 1),  # what an engine left in its process
    ],
)
def test_which_of_several_sets_counts(environ: dict[str, str], launcher: str, local_rank: int) -> None:
    facts = detect(environ)
    assert (facts.rank, facts.world_size, facts.launcher, facts.local_rank) == (3, 4, launcher, local_rank)
    assert facts.is_placed == (launcher != "env")


ALONE = [
    {"RANK": "", "WORLD_SIZE": ""},
    {"WORLD_SIZE": "1"},
    {"RANK": "0", "WORLD_SIZE": "1"},
    {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": ""},  # the shell of salloc
    {"MASTER_ADDR": "a", "MASTER_PORT": "1"},
]


@pytest.mark.parametrize("environ", ALONE)
def test_a_lone_process(environ: dict[str, str]) -> None:
    facts = detect(environ)
    assert (facts.rank, facts.world_size, facts.local_rank, facts.launcher) == (0, 1, 0, "none")


REFUSED = {
    "RANK=1 is set but WORLD_SIZE is not": {"RANK": "1"},
    "WORLD_SIZE=2 is set but RANK is not": {"WORLD_SIZE": "2", "RANK": ""},
    "LOCAL_RANK=1 is set but RANK and WORLD_SIZE are not": {"LOCAL_RANK": "1"},
    "WORLD_SIZE=two: it must be a whole number": PAIR | {"WORLD_SIZE": "two"},
    "RANK=-1: it must be a whole number": PAIR | {"RANK": "-1"},
    "RANK=4 with WORLD_SIZE=4: ranks go from 0 to 3": PAIR | {"RANK": "4"},
    "WORLD_SIZE=0: it must be at least 1": PAIR | {"WORLD_SIZE": "0"},
    "LOCAL_RANK and LOCAL_WORLD_SIZE are not, and MASTER_ADDR and MASTER_PORT": PAIR,
    "LOCAL_WORLD_SIZE is not, and MASTER_PORT": PAIR | {"LOCAL_RANK": "1", "MASTER_ADDR": "a"},
    "MASTER_PORT=abc: it must be a whole number": PAIR | MASTER | {"MASTER_PORT": "abc"},
    "MASTER_PORT=70000: it must be from 1 to 65535": PAIR | MASTER | {"MASTER_PORT": "70000"},
    "LOCAL_RANK=2 with 2 ranks on this machine": CASES["torchrun"] | {"LOCAL_RANK": "2"},
    "LOCAL_WORLD_SIZE=8 is more than WORLD_SIZE=4": CASES["torchrun"] | {"LOCAL_WORLD_SIZE": "8"},
    "MPI_LOCALRANKID and MPI_LOCALNRANKS are not": {"PMI_RANK": "3", "PMI_SIZE": "4"},
    "HOROVOD_RANK=1 is set but HOROVOD_SIZE is not": {"HOROVOD_RANK": "1"},
    "SLURM_STEP_TASKS_PER_NODE=two: it must be numbers": CASES["srun"] | {"SLURM_STEP_TASKS_PER_NODE": "two"},
    # exported in the shell, and then mpirun: each of its ranks would be rank 0
    "RANK=0, WORLD_SIZE=4 contradict|OMPI_COMM_WORLD_RANK=3, OMPI_COMM_WORLD_SIZE=4 contradict RANK=0": (
        CASES["mpirun"] | PAIR | {"RANK": "0"}
    ),
    "RANK=0, WORLD_SIZE=1 contradict": CASES["mpirun"]
    | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
    # srun starts four, each of which starts a torchrun of its own
    "RANK=1, WORLD_SIZE=4 contradict SLURM_PROCID=3": CASES["srun"]
    | {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
}


@pytest.mark.parametrize("told", REFUSED)
def test_an_impossible_environment_is_one_line(told: str) -> None:
    with pytest.raises(RankError, match=told) as raised:
        detect(REFUSED[told])
    assert isinstance(raised.value, UserError)
    assert "\n" not in str(raised.value)


def test_local_rank_of_the_command_line() -> None:
    assert detect(PAIR | MASTER, local_rank=1).local_rank == 1
    assert detect(CASES["torchrun"], local_rank=1).local_rank == 1
    with pytest.raises(RankError, match="--local-rank 0 contradicts LOCAL_RANK=1"):
        detect(CASES["torchrun"], local_rank=0)


@pytest.mark.parametrize(
    ("machines", "given", "expected"),
    [
        ("aabb", [-1, -1, -1, -1], [(0, 2), (1, 2), (0, 2), (1, 2)]),
        ("abab", [-1, -1, -1, -1], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ("aab", [1, 0, 0], [(1, 2), (0, 2), (0, 1)]),  # as it was given
        ("aab", [0, 0, 0], [(0, 2), (1, 2), (0, 1)]),  # given, but two ranks would share a GPU
    ],
)
def test_ranks_of_a_machine(machines: str, given: list[int], expected: list[tuple[int, int]]) -> None:
    assert [place_among(machines, given, rank) for rank in range(len(machines))] == expected


def test_no_variable_that_makes_a_process_a_rank_is_handed_down() -> None:
    """`harness run` inside a rank of srun, mpirun or a pod with RANK and WORLD_SIZE starts ranks of its own."""
    names = {name for each in _LAUNCHERS for name in (each.rank, each.local_rank)}
    assert names <= RANK_VARIABLES
