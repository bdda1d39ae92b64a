"""Who fights beside whom: all at once where memory holds them, else in pairs; what not even two fit in is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.common.formatting import mebibytes

Lineup = tuple[str, ...]  # names of the contenders of one duel
RESERVE = 0.9  # share of the free memory that contenders may fill
CONTEXT_MIB = 800.0  # of a CUDA context and its libraries, which no allocator's peak counts


@dataclass(frozen=True, kw_only=True)
class Memory:
    """MiB: of the host (all ranks together) and of one device."""

    host: float = 0.0
    device: float = 0.0

    def __add__(self, other: Memory) -> Memory:
        return Memory(host=self.host + other.host, device=self.device + other.device)

    def exceeds(self, free: Memory) -> str:
        """Which memory does not suffice, in words; "" where it does. A `free.device` of 0: no device is used."""
        for what, need, there in (("device", self.device, free.device), ("host", self.host, free.host)):
            if need and there and need > there * RESERVE:
                return f"{mebibytes(need)} of {what} memory are needed, {mebibytes(there)} are free"
        return ""


def lineups(
    names: Sequence[str], pairs: Sequence[tuple[str, str]], needs: Mapping[str, Memory], free: Memory
) -> tuple[list[Lineup], dict[tuple[str, str], str]]:
    """The lineups in which every one of `pairs` meets, and the pairs that do not fit, each with the reason.

    needs: what each contender needs, as an earlier training measured it; a contender without one takes the most.
    """
    most = Memory(
        host=max((item.host for item in needs.values()), default=0.0),
        device=max((item.device for item in needs.values()), default=0.0),
    )

    def together(lineup: Sequence[str]) -> str:
        return sum((needs.get(name, most) for name in lineup), Memory()).exceeds(free)

    if not together(names):
        return [tuple(names)], {}
    fitting = [pair for pair in pairs if not together(pair)]
    return list(fitting), {pair: together(pair) for pair in pairs if pair not in fitting}


def free_memory(*, devices: bool) -> Memory:
    """What is free on this machine now. devices: GPUs will be used; the fullest one of those counts."""
    import psutil

    host = psutil.virtual_memory().available / 2**20
    if not devices:
        return Memory(host=host)
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        free = [pynvml.nvmlDeviceGetMemoryInfo(handle).free / 2**20 for handle in handles]
    except Exception:  # no driver, no device, no permission: host memory is what can be judged
        return Memory(host=host)
    return Memory(host=host, device=min(free, default=0.0))
