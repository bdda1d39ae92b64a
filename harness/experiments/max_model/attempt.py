"""One try: a launch of `harness.experiments.max_model.worker` with a limit, and what its traces say, so that only a
lack of memory counts as one."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mpi.process
from harness.common.packed_json import pack
from harness.experiments.max_model.worker import MODULE, OUT_OF_MEMORY
from harness.experiments.trainings.launch import launch_of
from harness.job.declaration import Job
from mpi import hostfile

_TIMED_OUT = 124
# glibc keeps freed memory for later in places of its own choice; with a fixed threshold large tensors go back at once,
# so that what a process holds on a CPU is what its tensors take.
_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
HOST_IS_FULL = "host memory is full"  # in the reason of a try that the kernel ended
_TAIL = 300  # characters of a reason


@dataclass(frozen=True, kw_only=True)
class Try:
    """status: ok, oom, timeout or failed. phase: where it ended (build, prepare, train). Peaks in MiB, the highest
    rank's: peak_mib on the device (in the process on a CPU), host_mib beside a GPU, outside_mib of the GPU but not of
    the training. seconds: wall time of the whole try."""

    point: int
    parameters: int
    shape: str
    predicted_mib: float
    status: str
    reason: str = ""
    phase: str = ""
    peak_mib: float | None = None
    host_mib: float | None = None
    outside_mib: float | None = None
    limit_mib: float | None = None
    seconds: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)


def run_try(job: Job, *, memory_gib: float | None, limit_s: float, log: Path | None = None) -> dict[str, Any]:
    """Trains `job` once in fresh processes on this machine; the fields of `Try` that come from running it.

    memory_gib: what one worker's model may take, None = all there is. limit_s: the longest it may last. log: gets what
    the launcher and the engine print. Raises KeyboardInterrupt where the user ended it.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="harness-fit-") as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        argv = [sys.executable, "-m", MODULE, pack({"job": job.to_dict(), "memory_gib": memory_gib}), str(out)]
        start_s = int(min(120, limit_s))
        hosts = hostfile.local(job.slots)
        launch = launch_of(job, argv, hosts, scratch, env=_RETURN_MEMORY, start_timeout=start_s)
        killed = out_of_memory_kills()
        printed = log or Path(scratch) / "log.txt"
        start = printed.stat().st_size if printed.exists() else 0
        outcome = mpi.process.supervise(launch, log_path=printed, timeout=limit_s, limit_name="--time-limit", grace=2.0)
        if outcome.interrupted:
            raise KeyboardInterrupt
        ranks = [_read(out / f"rank-{rank}.json") for rank in range(job.slots)]
        text = printed.read_bytes()[start:].decode(errors="replace")
        told = judge(ranks, outcome.returncode, outcome.reason, text, out_of_memory_kills() > killed)
    return told | {"seconds": time.monotonic() - began}


def judge(
    ranks: Sequence[Mapping[str, Any] | None], returncode: int, reason: str, printed: str, kernel_killed: bool
) -> dict[str, Any]:
    """What a try's traces say. ranks: each rank's record, None where it left none. printed: its log. kernel_killed:
    whether the kernel ended any process for lack of memory meanwhile."""
    known = [rank for rank in ranks if rank is not None]
    short = next((rank for rank in known if rank["status"] == "oom"), None)
    figures = {
        name: max((rank[name] for rank in known if rank.get(name) is not None), default=None)
        for name in ("peak_mib", "host_mib", "outside_mib", "limit_mib")
    }
    slowest = max(known, key=lambda rank: sum(rank["seconds"].values()), default=None)
    told: dict[str, Any] = {**figures, "phases": dict(slowest["seconds"]) if slowest else {}}
    if short is not None:
        return told | {"status": "oom", "phase": short["phase"], "reason": short["reason"][:_TAIL]}
    if len(known) == len(ranks) and all(rank["status"] == "ok" for rank in known):
        return told | {"status": "ok", "phase": "end", "reason": ""}
    phase = known[0]["phase"] if known else "start"
    if returncode == _TIMED_OUT:
        return told | {"status": "timeout", "phase": phase, "reason": reason}
    line = next((line.strip() for line in printed.splitlines() if OUT_OF_MEMORY.search(line)), "")
    if line:  # a library that ended the process itself
        return told | {"status": "oom", "phase": phase, "reason": line[:_TAIL]}
    if len(known) < len(ranks) and kernel_killed:
        return told | {
            "status": "oom",
            "phase": phase,
            "reason": f"the kernel ended a worker: {HOST_IS_FULL}",
        }
    failed = next((rank for rank in known if rank["status"] == "failed"), None)
    return told | {"status": "failed", "phase": phase, "reason": (failed or {}).get("reason") or reason or "no result"}


def out_of_memory_kills() -> int:
    """Processes that the kernel has ended for lack of memory, in the whole system and in this control group."""
    total = 0
    for path, key in (("/proc/vmstat", "oom_kill"), ("/sys/fs/cgroup/memory.events", "oom_kill")):
        try:
            for line in Path(path).read_text().splitlines():
                if line.split(" ")[0] == key:
                    total += int(line.split(" ")[1])
        except (OSError, ValueError, IndexError):
            continue
    return total


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
