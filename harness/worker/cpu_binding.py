"""Cores of its own for every rank of a host (``--set bind_cores=true``).

The scheduler knows what a virtual machine shows it. Where that hides which cores are two threads of one, or which
belong to which GPU's socket, two ranks can end up on the halves of one core, and launch kernels at half speed for a
whole run. With cores of its own, a rank keeps away from its neighbours: the cores near its GPU (NVML's ideal affinity),
shared out evenly among the ranks whose GPUs are near the same ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence, Set

from backends.process.rank import ProcessFacts


def share(near: Sequence[Set[int]], local_rank: int) -> set[int]:
    """The cores of rank `local_rank`, from the cores near each local rank's GPU (in order of the local ranks).

    Ranks with the same cores near them get contiguous, equal parts; what is left over stays unused. Where there are
    fewer cores than ranks, they stay shared.
    """
    mine = near[local_rank]
    rivals = [rank for rank, cores in enumerate(near) if cores == mine]
    count = len(mine) // len(rivals)
    if count == 0:
        return set(mine)
    first = rivals.index(local_rank) * count
    return set(sorted(mine)[first : first + count])


def bind(facts: ProcessFacts) -> list[int]:
    """Binds this process, before it has threads, to its share of the cores that it may use; returns them."""
    allowed = os.sched_getaffinity(0)
    mine = share([_near(rank, allowed) for rank in range(facts.local_size)], facts.local_rank)
    os.sched_setaffinity(0, mine)
    return sorted(mine)


def _near(local_rank: int, allowed: Set[int]) -> Set[int]:
    """Of the cores allowed, those near the rank's GPU; all of them where NVML cannot tell."""
    try:
        import pynvml

        pynvml.nvmlInit()
        visible = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
        name = visible[local_rank].strip() if visible else str(local_rank)
        if name.isdigit():
            device = pynvml.nvmlDeviceGetHandleByIndex(int(name))
        else:
            device = pynvml.nvmlDeviceGetHandleByUUID(name)
        if name.startswith("MIG-"):
            device = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
        masks = pynvml.nvmlDeviceGetCpuAffinity(device, (os.cpu_count() or 1) // 64 + 1)
    except Exception:  # no GPU, no NVML, an abbreviated UUID
        return allowed
    cores = {64 * word + bit for word, mask in enumerate(masks) for bit in range(64) if mask >> bit & 1}
    return cores & allowed or allowed
