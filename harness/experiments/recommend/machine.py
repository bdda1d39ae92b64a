"""The devices that a recommendation is for: those of this machine, or some that are only named."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from harness.common.formatting import joined, mebibytes, plural
from harness.experiments.recommend.evidence import Evidence, device_of
from harness.job.declaration import JobError

HOW = "write COUNTxMEMORY or COUNTxNAME, such as 8x80GB or 4xH200"
_ALIKE = 0.03  # a GPU of the records with so nearly the memory that is named is taken for it
_NAMED = 0.99  # of the memory on a GPU's label, what its driver has


@dataclass(frozen=True, kw_only=True)
class Machine:
    """workers: one a device. device: its kind (`evidence.device_of`), "" where only its memory is known. memory_mib: of
    one GPU, or of the whole host on a processor. on_gpu: whether it trains on GPUs. here: workers that this machine can
    run of it, 0 where its devices are not here. told: a sentence for the reader."""

    workers: int
    device: str
    memory_mib: float
    on_gpu: bool
    here: int
    told: str


def machine_here(workers: int | None) -> Machine:
    """This machine, with `workers` (None: one a GPU, or one a core, at most 2)."""
    from harness.records.environment import environment

    seen = environment()
    gpus = (seen.get("gpus") or {}).get("devices") or []
    if gpus:
        count, device = len(gpus), device_of(seen, on_gpu=True)
        memory = min(float(gpu["memory_mib"]) for gpu in gpus)
        what = f"{plural(count, 'GPU')} of this machine, {device} ({mebibytes(memory)})"
    else:
        count, device = len(os.sched_getaffinity(0)), device_of(seen, on_gpu=False)
        memory = float(seen["memory_mib"])
        what = f"this machine's processor, {device} ({mebibytes(memory)} for all workers)"
    wanted = workers or (count if gpus else min(2, count))
    told = f"{plural(wanted, 'worker')} on {what}"
    if wanted > count:
        told += f"; it has only {count} of the {wanted} devices, the rest is drawn out from them"
    return Machine(
        workers=wanted, device=device, memory_mib=memory, on_gpu=bool(gpus), here=min(wanted, count), told=told
    )


def machine_named(text: str, evidence: Evidence) -> Machine:
    """The GPUs that ``8x80GB`` or ``4xH200`` names. Raises JobError, one line."""
    found = re.fullmatch(r"\s*(\d+)\s*x\s*(.+?)\s*", text)
    if found is None or int(found[1]) < 1:
        raise JobError(f"--gpus '{text}': {HOW}")
    workers, name = int(found[1]), found[2]
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*Gi?B?", name, re.IGNORECASE)
    known = evidence.memory
    if size is not None:
        memory = float(size[1]) * 1024 * _NAMED
        if memory <= 0:
            raise JobError(f"--gpus '{text}': a GPU has some memory: {HOW}")
        near = [device for device, mib in known.items() if abs(mib / memory - 1) < _ALIKE]
        if near:
            told = f"{workers} GPUs of {size[1]} GB, taken for {near[0]} of the records"
            return _named(workers, near[0], known[near[0]], told)
        return _named(workers, "", memory, f"{workers} GPUs of {size[1]} GB: no record says how fast they are")
    near = [device for device in known if name.lower() in device.lower()]
    if len(near) != 1:
        have = joined(sorted(near or known), "or") or "none"
        remedy = f"the records hold {have}" if not near else f"it may be {have}"
        raise JobError(f"--gpus '{text}': no one GPU of that name is known ({remedy}): name its memory, as 8x80GB")
    return _named(workers, near[0], known[near[0]], f"{workers}x {near[0]}")


def _named(workers: int, device: str, memory_mib: float, told: str) -> Machine:
    return Machine(
        workers=workers,
        device=device,
        memory_mib=memory_mib,
        on_gpu=True,
        here=0,
        told=f"{told}; nothing was measured on them now",
    )
