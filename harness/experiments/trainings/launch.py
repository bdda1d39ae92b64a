"""Runs cells under their engines' own launchers, one launch for those that can share processes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import mpi.launch
import mpi.network
import mpi.process
from harness.common.paths import PROJECT
from harness.experiments.trainings.cells import PARITY_WORKER, Cell, worker_argv
from harness.job.declaration import Job
from harness.launch.preflight import launcher_of
from mpi import hostfile


def train_cells(
    base: Job,
    cells: Sequence[Cell],
    out: Path,
    *,
    say: Callable[[str], None] | None = None,
    module: str = PARITY_WORKER,
    hosts: Sequence[hostfile.Host] = (),
) -> dict[Cell, str]:
    """Runs `module` over `cells`, which writes OUT/NAME.json for each. Returns why cells failed.

    hosts: where to run, one worker on each of the first ones; default: all workers on this machine. The job's time
    limit is that of one launch. A cell that ends its launch is given up, the launch's other cells are started again
    without it.
    """
    failures: dict[Cell, str] = {}
    for cell in cells:  # of an earlier call with the same folder: never judged as if they were new
        for suffix in (".json", ".safetensors"):
            (out / f"{cell.name}{suffix}").unlink(missing_ok=True)
    for group in groups(cells):
        todo = group
        while todo:
            if say is not None:
                text = f"{todo[0].backend}, {todo[0].workers} worker{'s' if todo[0].workers > 1 else ''}"
                say(f"{text}: {len(todo)} training{'s' if len(todo) > 1 else ''}")
            reason = _launch(module, base, todo, out, hosts)
            missing = [cell for cell in todo if not (out / f"{cell.name}.json").exists()]
            if not missing or len(missing) == len(todo):  # all done, or it is not one cell's fault
                failures |= dict.fromkeys(missing, reason or "no result")
                break
            failures[missing[0]] = reason or "no result"
            todo = missing[1:]
    return failures


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells of one engine and number of workers. Horovod reads its settings once a process, so there they are alike."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        settings = cell.settings if cell.backend == "horovod" else ()
        groups.setdefault((cell.backend, cell.workers, settings), []).append(cell)
    return list(groups.values())


def _launch(module: str, base: Job, cells: Sequence[Cell], out: Path, hosts: Sequence[hostfile.Host]) -> str:
    """Runs one launch to its end; returns why it failed, or nothing. Raises KeyboardInterrupt where it was ended."""
    first = cells[0]
    chosen = hostfile.take(hosts, first.workers, 1) if hosts else hostfile.local(first.workers)
    with tempfile.TemporaryDirectory(prefix="harness-parity-") as scratch:
        launch = launch_of(first.job(base), worker_argv(module, base, cells, out), chosen, scratch)
        log = out / f"{first.backend}-w{first.workers}.log"
        limit = base.time_limit_s or None
        outcome = mpi.process.supervise(launch, log_path=log, timeout=limit, limit_name="--time-limit")
    if outcome.interrupted:  # Ctrl-C or SIGTERM here: no cell's fault, and nothing more is to be started
        raise KeyboardInterrupt
    return "" if outcome.ok else outcome.reason


def launch_of(job: Job, argv: Sequence[str], hosts: Sequence[hostfile.Host], scratch: str, **more: Any) -> Any:
    """How the job's launcher starts `argv` on `hosts`, for `mpi.process.supervise`.

    scratch: a folder that lives as long as the job. more: further arguments of `mpi.launch.command`.
    """
    network = mpi.network.find([host.name for host in hosts])
    return mpi.launch.command(
        launcher_of(job),
        argv,
        hosts,
        scratch=Path(scratch),
        network=network,
        master_port=mpi.network.free_port(network.address),
        cwd=PROJECT,
        threads=job.threads,
        operation_timeout=ceil(job.timeout_s),
        **more,
    )
