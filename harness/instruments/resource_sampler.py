"""Watches one process and its devices from a thread: CPU, memory, network and, where there is NVML, the GPUs.

The cost is measured, not assumed: `ResourceSampler.cost` is the CPU time of the thread over the time it watched.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

_MIB = 2**20
BUDGET = 0.0015  # of a core, for reading the GPUs: NVML takes 5 to 15 ms a reading on some machines
LONGEST_S = 10.0  # between two readings of the GPUs, however dear they are
_RAPL = Path("/sys/class/powercap")


class ResourceSampler:
    """Calls `on_row` with one row of resources.jsonl (see `harness.records.record_files`) every 1/`hz` seconds until
    `stop`.

    rank: written into the rows. devices: NVML indices to watch (None: those of CUDA_VISIBLE_DEVICES, else all; only the
    first process of a host should watch them, pass () elsewhere). hz: 1 to 10. `on_row` is called on the thread.
    Energy: the GPU's own counter where it has one, else power integrated over time; CPU packages by RAPL where the
    kernel lets us read it. The peaks since `start` are in `peaks()`. Where reading the GPUs is dear, they are read in
    fewer rows than the rest (BUDGET); energy counters run on meanwhile, so nothing is missed in them.
    """

    def __init__(
        self,
        on_row: Callable[[Mapping[str, Any]], None],
        *,
        rank: int = 0,
        hz: float = 2.0,
        devices: Sequence[int] | None = None,
        host: str = "",
    ) -> None:
        if not 0 < hz <= 10:
            raise ValueError(f"hz is {hz}: choose at most 10")
        self._on_row, self._rank, self._period = on_row, rank, 1.0 / hz
        self._host = host or socket.gethostname()
        self._devices = devices
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = self._ended = 0.0
        self._cpu_s = 0.0
        self._peak_rss = 0
        self._peak_gpu: dict[int, int] = {}
        self.samples = 0
        self.error: str | None = None

    def start(self) -> ResourceSampler:
        import psutil  # here and not on the thread: importing takes longer than a thousand samples

        self._psutil, self._process = psutil, psutil.Process()
        self._gpus, self._rapl = _Gpus(self._devices), _rapl_counters()
        self._gpus.read()  # NVML's first answers take many times longer than the others
        self._gpus_due = 0.0
        self._began = time.monotonic()
        self._seen = (self._began, time.process_time())  # of all threads; 40 times cheaper than psutil's cpu_percent
        self._thread = threading.Thread(target=self._watch, name="resource-sampler", daemon=True)
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

    def peaks(self) -> dict[str, Any]:
        """``rss_mib`` of this process and ``gpu_mem_mib`` by device index, as seen by the samples."""
        gpus = {index: used / _MIB for index, used in self._peak_gpu.items()}
        return {"rss_mib": self._peak_rss / _MIB, "gpu_mem_mib": gpus}

    def _watch(self) -> None:
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
                    if self._gpus.watched and not row["gpus"]:  # the counters' last state, or energy ends too early
                        self._gpus_due = 0.0
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
        rss = self._process.memory_info().rss
        self._peak_rss = max(self._peak_rss, rss)
        net = self._psutil.net_io_counters()
        row: dict[str, Any] = {
            "t": now - self._began,
            "rank": self._rank,
            "host": self._host,
            "cpu_percent": cpu_percent,
            "rss_mib": rss / _MIB,
            "net_sent_bytes": net.bytes_sent if net else None,
            "net_recv_bytes": net.bytes_recv if net else None,
            "gpus": self._read_gpus(now),
        }
        if self._rapl:
            row["cpu_energy_j"] = sum(int(path.read_text()) for path in self._rapl) / 1e6
        for gpu in row["gpus"]:
            if gpu["mem_mib"] is not None:
                self._peak_gpu[gpu["index"]] = max(self._peak_gpu.get(gpu["index"], 0), int(gpu["mem_mib"] * _MIB))
        return row

    def _read_gpus(self, now: float) -> list[dict[str, Any]]:
        """The GPUs' readings, [] where it is too soon for another: each reading pays for the wait behind it."""
        if now < self._gpus_due:
            return []
        before = time.thread_time()
        rows = self._gpus.read()
        self._gpus_due = now + min((time.thread_time() - before) / BUDGET, LONGEST_S) - 1e-3
        return rows


class _Gpus:
    """The NVML devices of this process; reads nothing where there is no NVIDIA GPU."""

    def __init__(self, devices: Sequence[int] | None) -> None:
        self._nvml: Any = None
        self._handles: dict[int, Any] = {}
        self._last: dict[int, tuple[float, float]] = {}  # index -> (time, integrated joule), without an energy counter
        try:
            import pynvml

            pynvml.nvmlInit()
            for index in _visible(pynvml.nvmlDeviceGetCount()) if devices is None else devices:
                self._handles[index] = pynvml.nvmlDeviceGetHandleByIndex(index)
            self._nvml = pynvml
        except Exception:
            self._handles = {}

    @property
    def watched(self) -> bool:
        return bool(self._handles)

    def read(self) -> list[dict[str, Any]]:
        nvml = self._nvml
        rows = []
        for index, handle in self._handles.items():
            power = _or_none(nvml.nvmlDeviceGetPowerUsage, handle)
            memory = _or_none(nvml.nvmlDeviceGetMemoryInfo, handle)
            use = _or_none(nvml.nvmlDeviceGetUtilizationRates, handle)
            rows.append(
                {
                    "index": index,
                    "util_percent": use.gpu if use else None,
                    "mem_mib": memory.used / _MIB if memory else None,
                    "power_w": power / 1000.0 if power is not None else None,
                    "temperature_c": _or_none(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
                    "energy_j": self._energy(index, handle, power),
                }
            )
        return rows

    def _energy(self, index: int, handle: Any, power_mw: float | None) -> float | None:
        total = _or_none(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle)  # millijoule, since Volta
        if total is not None:
            return total / 1000.0
        if power_mw is None:
            return None
        now = time.monotonic()
        before, energy = self._last.get(index, (now, 0.0))
        energy += power_mw / 1000.0 * (now - before)
        self._last[index] = (now, energy)
        return energy


def _visible(count: int) -> list[int]:
    """Indices in CUDA_VISIBLE_DEVICES where it lists numbers, else all `count`."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    parts = [part.strip() for part in listed.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        return list(range(count))
    return [int(part) for part in parts if int(part) < count]


def _rapl_counters() -> list[Path]:
    """Readable energy counters of the CPU packages, in microjoule (often only root may read them)."""
    paths = sorted(_RAPL.glob("intel-rapl:[0-9]*/energy_uj")) if _RAPL.is_dir() else []
    return [path for path in paths if path.parent.name.count(":") == 1 and os.access(path, os.R_OK)]


def _or_none(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception:
        return None
