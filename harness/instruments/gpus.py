"""The GPUs that a job's ranks use, by NVML: load, memory, power, energy, and who else computes on them.

Devices are named by their UUIDs, as each rank's own device tells it: numbers mean another device in a process with
another CUDA_VISIBLE_DEVICES. A slice of a card (MIG) has memory of its own, but NVML measures power and energy only of
the whole card, which others share: they are not measured then.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_MIB = 2**20


def uuid_of(device: Any) -> str | None:
    """The UUID of a torch device, the same in every process; None on a CPU."""
    if device.type != "cuda":
        return None
    import torch

    return str(getattr(torch.cuda.get_device_properties(device), "uuid", "")) or None


@dataclass
class _Device:
    """index: NVML's number of the card. integrated: joules by power readings, where there is no energy counter.
    read_at: when the last of these was, s."""

    uuid: str
    index: int
    handle: Any
    is_slice: bool
    integrated: float = 0.0
    read_at: float | None = None
    first_j: float | None = None
    last_j: float | None = None


class Gpus:
    """The devices with these UUIDs; reads nothing where there are none or NVML is missing."""

    def __init__(self, uuids: Sequence[str]) -> None:
        self._nvml: Any = None
        self._devices: list[_Device] = []
        self.missing: list[str] = []
        if not uuids:
            return
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as error:  # no package, no driver
            self.missing = [f"NVML cannot be used ({error})"]
            return
        self._nvml = pynvml
        for uuid in dict.fromkeys(uuids):
            device = self._find(uuid)
            if device is None:
                self.missing.append(f"NVML does not know GPU {uuid}")
            else:
                self._devices.append(device)

    @property
    def watched(self) -> bool:
        """Whether there is a device to read."""
        return bool(self._devices)

    def read(self) -> list[dict[str, Any]]:
        """One entry of ``gpus`` of resources.jsonl a device; what a device does not tell is None."""
        return [self._row(device) for device in self._devices]

    def joules(self) -> float | None:
        """Between the first and the last `read`, over all devices asked for; None where one does not tell or its
        counter did not move."""
        used = [self._used(device) for device in self._devices]
        if self.missing or not used:
            return None
        return sum(joule for joule in used if joule is not None) if None not in used else None

    def lacks(self) -> list[str]:
        """Why the energy of a device is not known, one line each."""
        silent = [device for device in self._devices if self._used(device) is None]
        return self.missing + [
            f"GPU {device.uuid} is a slice of a card, whose energy others share"
            if device.is_slice
            else f"GPU {device.uuid} has no energy counter that moved and no power reading"
            for device in silent
        ]

    def foreign_processes(self, own: Callable[[], set[int]]) -> list[dict[str, Any]]:
        """Processes that compute on the devices and are none of `own`: ``uuid``, ``pid``, ``name``. Empty where this
        container sees other process ids than NVML: its own ranks, which compute, are not in the list then."""
        found = [
            (d, process.pid) for d in self._devices for process in self._or_none("ComputeRunningProcesses", d) or ()
        ]
        ours = own() if found else set()
        if not any(pid in ours for _, pid in found):
            return []
        return [{"uuid": d.uuid, "pid": pid, "name": _name(pid)} for d, pid in found if pid not in ours]

    def _find(self, uuid: str) -> _Device | None:
        nvml, bare = self._nvml, uuid.removeprefix("GPU-").removeprefix("MIG-")
        for kind in ("GPU", "MIG"):
            with contextlib.suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByUUID(f"{kind}-{bare}")
                card = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if kind == "MIG" else handle
                index = int(nvml.nvmlDeviceGetIndex(card))
                return _Device(uuid=uuid, index=index, handle=handle, is_slice=kind == "MIG")
        return None

    def _row(self, device: _Device) -> dict[str, Any]:
        power, memory = self._or_none("PowerUsage", device), self._or_none("MemoryInfo", device)
        use = self._or_none("UtilizationRates", device)
        return {
            "index": device.index,
            "uuid": device.uuid,
            "util_percent": int(use.gpu) if use is not None else None,
            "mem_mib": int(memory.used) / _MIB if memory is not None else None,
            "power_w": power / 1000.0 if power is not None else None,
            "temperature_c": self._or_none("Temperature", device, self._nvml.NVML_TEMPERATURE_GPU),
            "energy_j": self._energy(device, power),
        }

    def _energy(self, device: _Device, power_mw: int | None) -> float | None:
        total = self._or_none("TotalEnergyConsumption", device)  # millijoule since the driver's start, since Volta
        if total is not None:
            joule: float | None = total / 1000.0
        elif power_mw is None:
            joule = None
        else:
            now = time.monotonic()
            if device.read_at is not None:
                device.integrated += power_mw / 1000.0 * (now - device.read_at)
            device.read_at, joule = now, device.integrated
        if device.first_j is None:
            device.first_j = joule
        device.last_j = joule
        return joule

    def _used(self, device: _Device) -> float | None:
        if device.first_j is None or device.last_j is None:
            return None
        return device.last_j - device.first_j or None  # a GPU that trained has used some: a counter that stood is none

    def _or_none(self, name: str, device: _Device, *arguments: Any) -> Any:
        """What NVML's function of this name says, None where the device does not support it. Power is never asked of
        a slice: some drivers answer with the whole card's."""
        if device.is_slice and name in ("PowerUsage", "TotalEnergyConsumption"):
            return None
        try:
            return getattr(self._nvml, f"nvmlDeviceGet{name}")(device.handle, *arguments)
        except self._nvml.NVMLError:
            return None


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
