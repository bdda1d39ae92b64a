"""Which cores a rank gets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from harness.records.comparability import contract
from harness.worker.cpu_binding import share


def test_ranks_near_the_same_cores_share_them_out_in_contiguous_parts() -> None:
    near = [set(range(32))] * 2
    assert share(near, 0) == set(range(16))
    assert share(near, 1) == set(range(16, 32))


def test_each_socket_is_shared_by_the_ranks_whose_gpus_it_has() -> None:
    left, right = set(range(8)), set(range(8, 16))
    parts = [share([right, left, right, left], rank) for rank in range(4)]
    assert parts == [{8, 9, 10, 11}, {0, 1, 2, 3}, {12, 13, 14, 15}, {4, 5, 6, 7}]


def test_fewer_cores_than_ranks_stay_shared() -> None:
    assert share([{0, 1}] * 3, 2) == {0, 1}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_process_and_what_it_starts_keep_to_their_share() -> None:
    code = """
import os, subprocess
from backends.process.rank import ProcessFacts
from harness.worker.cpu_binding import bind
mine = bind(ProcessFacts(rank=1, world_size=2, local_rank=1, local_size=2))
assert os.sched_getaffinity(0) == set(mine), mine
print(mine, subprocess.run(["nproc"], capture_output=True, text=True).stdout.strip())
"""
    allowed = sorted(os.sched_getaffinity(0))
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    half = len(allowed) // 2
    assert said.strip() == f"{allowed[half : 2 * half]} {half}"


def test_bound_and_free_runs_are_not_one_curve() -> None:
    assert "bind_cores" not in contract({"bind_cores": False}, {}, {})
    assert contract({"bind_cores": True}, {}, {})["bind_cores"] is True
