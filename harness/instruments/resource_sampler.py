"""Watches a rank, and for one rank of each machine the machine's devices, from a thread: processor, memory, network,
GPUs, energy, and work that is not the job's.

The cost is measured, not assumed: `ResourceSampler.cost` is the CPU time of the thread over the time it watched.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.instruments.foreign_load import HostLoad
from harness.instruments.gpus import Gpus
from harness.instruments.rapl import Rapl

_MIB = 2**20
BUDGET = 0.0015  # of a core, for each reading that is dear: NVML takes 5 to 15 ms on some machines, processes 1 to 40
LONGEST_S = 10.0  # between two of these readings, however dear they are
_LOAD_WINDOW_S = 2.0  # shortest over which foreign load is told: Linux counts in ticks of 10 ms
_BOOT_ID, _PID_NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


@dataclass(frozen=True, kw_only=True)
class MachineWatch:
    """What one rank watches for its machine. host: for the records. machine: tells machines apart; virtual nodes share
    one. gpus: UUIDs that the job's ranks use. pids, cores: of the job's ranks here, and the cores that they may use."""

    host: str
    machine: str
    gpus: Sequence[str]
    pids: Sequence[int]
    cores: Collection[int]


def place_of_process(gpu: str | None) -> dict[str, Any]:
    """What `watch_of` must know of each rank. gpu: the UUID of its device."""
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else socket.gethostname()
    return {
        "machine": hashlib.sha256(boot.encode()).hexdigest()[:12],
        "namespace": os.readlink(_PID_NAMESPACE) if _PID_NAMESPACE.exists() else "",
        "pid": os.getpid(),
        "gpu": gpu,
        "cores": sorted(os.sched_getaffinity(0)),
    }


def watch_of(places: Sequence[Mapping[str, Any]], rank: int, more_pids: Sequence[int] = ()) -> MachineWatch | None:
    """The duty of `rank`: None unless it is the first of its machine (of those ranks that see its process ids).

    places: `place_of_process` of each rank, in their order, with ``hostname``. more_pids: of other processes that are
    the job's, on every machine."""
    own = places[rank]
    here = [place for place in places if all(place[key] == own[key] for key in ("machine", "namespace"))]
    if here[0] is not own:
        return None
    return MachineWatch(
        host=own["hostname"],
        machine=own["machine"],
        gpus=list(dict.fromkeys(place["gpu"] for place in here if place["gpu"])),
        pids=[*(place["pid"] for place in here), *more_pids],
        cores=sorted({core for place in here for core in place["cores"]}),
    )


class ResourceSampler:
    """Calls `on_row` with one row of resources.jsonl (see `harness.records.record_files`) every 1/`hz` seconds until
    `stop`.

    rank, host: written into the rows. watch: what to watch of the machine besides this process; None: nothing.
    hz: at most 10. `on_row` is called on the thread. Where reading the GPUs or the processes is dear, they are read in
    fewer rows than the rest (BUDGET); energy counters run on meanwhile, so nothing is missed in them.
    """

    def __init__(
        self,
        on_row: Callable[[Mapping[str, Any]], None],
        *,
        rank: int = 0,
        hz: float = 2.0,
        host: str = "",
        watch: MachineWatch | None = None,
        rapl: Callable[[], Rapl] = Rapl,
    ) -> None:
        if not 0 < hz <= 10:
            raise ValueError(f"hz is {hz}: choose at most 10")
        self._on_row, self._rank, self._period = on_row, rank, 1.0 / hz
        self._host = host or socket.gethostname()
        self._watch, self._make_rapl = watch, rapl
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = self._ended = 0.0
        self._cpu_s = 0.0
        self._gpu_processes: dict[tuple[str, int], dict[str, Any]] = {}
        self.samples = 0
        self.error: str | None = None

    def start(self) -> ResourceSampler:
        """Begins to watch."""
        import psutil  # here and not on the thread: importing takes longer than a thousand samples

        self._psutil, self._process = psutil, psutil.Process()
        watch = self._watch
        self._gpus = Gpus(watch.gpus if watch else ())
        self._gpus.read()  # NVML's first answers take many times longer than the others
        self._rapl = self._make_rapl() if watch else None
        self._load = HostLoad(watch.pids, watch.cores) if watch else None
        self._gpus_due, self._load_due = 0.0, time.monotonic() + _LOAD_WINDOW_S
        self._began = time.monotonic()
        self._seen = (self._began, time.process_time())  # of all threads; 40 times cheaper than psutil's cpu_percent
        self._thread = threading.Thread(target=self._run, name="resource-sampler", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the thread (waits at most 5 s). Safe to call twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None
            self._ended = time.monotonic()

    def __enter__(self) -> ResourceSampler:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def cost(self) -> float:
        """CPU seconds of the thread per second watched: 0.005 = half a per cent of one core."""
        watched = (self._ended or time.monotonic()) - self._began
        return self._cpu_s / watched if watched > 0 else 0.0

    def machine(self) -> dict[str, Any] | None:
        """After `stop`, an entry of a result's ``hosts``: energy in J (None where it was not measured, and why in
        ``lacks``), `HostLoad.total` and the GPUs' foreign processes. None where no machine was watched."""
        if self._watch is None:
            return None
        joules = self._rapl.joules() if self._rapl is not None else None
        lacks = self._gpus.lacks() if self._watch.gpus else []
        if not joules:
            why = self._rapl.missing if self._rapl is not None and joules is None else "its counters did not move"
            lacks = [*lacks, f"processors: {why}"]
        return {
            "host": self._watch.host,
            "machine": self._watch.machine,
            "gpus": list(self._watch.gpus),
            "gpu_j": self._gpus.joules(),
            "cpu_j": joules or None,
            "lacks": lacks,
            "load": self._load.total() if self._load is not None else None,
            "gpu_processes": list(self._gpu_processes.values()),
        }

    def _run(self) -> None:
        try:
            due = self._began
            while True:
                row = self._sample()
                self._on_row(row)
                self.samples += 1
                self._cpu_s = time.thread_time()
                # Late samples are dropped, not caught up: a burst would disturb what is watched.
                due += self._period * (1 + max(0, int((time.monotonic() - due) / self._period)))
                if self._stop.wait(due - time.monotonic()):
                    if self._watch is not None:  # the counters' last state, or energy and load end too early
                        self._gpus_due = self._load_due = 0.0
                        self._on_row(self._sample())
                        self._cpu_s = time.thread_time()
                    return
        except Exception as error:  # watching must never end the run; the worker records the reason
            self.error = f"{type(error).__name__}: {error}"

    def _sample(self) -> dict[str, Any]:
        now, busy = time.monotonic(), time.process_time()
        passed = now - self._seen[0]
        cpu_percent = 100.0 * (busy - self._seen[1]) / passed if passed > 0 else 0.0
        self._seen = (now, busy)
        net = self._psutil.net_io_counters()
        row: dict[str, Any] = {
            "t": now - self._began,
            "rank": self._rank,
            "host": self._host,
            "cpu_percent": cpu_percent,
            "rss_mib": self._process.memory_info().rss / _MIB,
            "net_sent_bytes": net.bytes_sent if net else None,
            "net_recv_bytes": net.bytes_recv if net else None,
            "gpus": self._read_gpus(now),
            **self._read_load(now),
        }
        if self._rapl is not None and (joules := self._rapl.joules()) is not None:
            row["cpu_energy_j"] = joules
        return row

    def _read_gpus(self, now: float) -> list[dict[str, Any]]:
        """The GPUs' readings, [] where it is too soon for another: each reading pays for the wait behind it."""
        if now < self._gpus_due:
            return []
        before = time.thread_time()
        rows = self._gpus.read()
        self._gpus_due = now + min((time.thread_time() - before) / BUDGET, LONGEST_S) - 1e-3
        return rows

    def _read_load(self, now: float) -> dict[str, float]:
        if self._load is None or now < self._load_due:
            return {}
        before = time.thread_time()
        found = self._load.read() or {}
        for process in self._gpus.foreign_processes(self._load.own_pids):
            self._gpu_processes.setdefault((process["uuid"], process["pid"]), process)
        wait = (time.thread_time() - before) / BUDGET
        self._load_due = now + min(max(_LOAD_WINDOW_S, wait), LONGEST_S) - 1e-3
        return found
