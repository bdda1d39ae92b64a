"""Starts all ranks of a duel by forking one process: ``python -m harness.experiments.duels.fork_server PACKED OUT``.

By launchers each rank imports torch and transformers and reads the pretrained weights by itself: 40 s for eight ranks
on two cores. Here that is done once a duel. Each rank then gets its own copy of the weights, so that no two read the
same memory, and imports its engine itself. Every duel has a server of its own: addresses and placement differ from
duel to duel as they do from launch to launch.

Only on processors: a CUDA context does not survive a fork.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.process.exit import leave, run_and_leave
from backends.process.rank import detect
from harness.common import packed_json
from harness.experiments.duels.rank_environment import (
    become_rank,
    die_with_parent,
    environments,
    free_ports,
    serve_rendezvous,
)
from harness.experiments.duels.starting import FAILED, Side
from harness.experiments.duels.worker import Material, material, train_rank
from harness.experiments.trainings.cells import cell_of
from harness.job.declaration import Job
from harness.launch.preflight import launcher_of

_GRACE_S = 3.0  # for the other ranks of a contender that failed to say why


def main(packed: str, out: str) -> None:
    """Forks the ranks and waits for them; ends with 1 where one fails, the others ended."""
    sides = [_side(value) for value in packed_json.unpack(packed)]
    ranks = _fork_all(sides)
    while ranks:
        pid, status = os.waitpid(-1, 0)
        if pid not in ranks:  # the rendezvous server
            continue
        contender, rank = ranks.pop(pid)
        if code := os.waitstatus_to_exitcode(status):
            (Path(out) / FAILED).write_text(str(contender))
            _end(ranks, contender)
            print(f"Process {rank} exit with status code {code}", flush=True)
            leave(1)


def _side(value: Mapping[str, Any]) -> Side:
    return Side(base=Job.from_dict(value["base"]), cell=cell_of(value["cell"]), folder=Path(value["folder"]))


def _fork_all(sides: Sequence[Side]) -> dict[int, tuple[int, int]]:
    """Process id -> number of the contender and rank."""
    import torch

    launchers = [launcher_of(side.job) for side in sides]
    horovod = [index for index, launcher in enumerate(launchers) if launcher == "horovodrun"]
    ports = dict(enumerate(free_ports(len(sides))))
    ports |= zip(horovod, serve_rendezvous([sides[index].cell.workers for index in horovod]), strict=True)
    first = sides[0].job
    torch.set_num_threads(first.threads)
    torch.manual_seed(first.seed)
    made = material(first)
    gc.collect()
    gc.freeze()  # what is here already is never looked at by the ranks' garbage collectors: its pages stay shared
    ranks: dict[int, tuple[int, int]] = {}
    for index, (side, launcher) in enumerate(zip(sides, launchers, strict=True)):
        limit_s = int(side.job.timeout_s)
        variables = environments(launcher, side.cell.workers, port=ports[index], limit_s=limit_s)
        for rank, own in enumerate(variables):
            if (pid := os.fork()) == 0:
                run_and_leave(lambda side=side, own=own: _be_rank(side, own, made))  # type: ignore[misc]
            ranks[pid] = index, rank
    return ranks


def _be_rank(side: Side, variables: dict[str, str], made: Material) -> None:
    die_with_parent()
    become_rank(variables)
    for tensor in (*made.model.parameters(), *made.model.buffers()):
        tensor.data = tensor.data.clone()
    train_rank(side.job, side.cell, side.folder, detect(), made)


def _end(ranks: Mapping[int, tuple[int, int]], contender: int) -> None:
    """Kills the ranks that are left, those of the contender that failed after a grace."""
    limit = time.monotonic() + _GRACE_S
    while time.monotonic() < limit and any(owner == contender for owner, _ in ranks.values()):
        pid, _ = os.waitpid(-1, os.WNOHANG)
        ranks = {other: place for other, place in ranks.items() if other != pid}
        time.sleep(0.05)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    for pid in ranks:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    run_and_leave(lambda: main(sys.argv[1], sys.argv[2]))
