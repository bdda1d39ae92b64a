"""Which ranks share a machine, where no launcher says it: ranks exchange the names of their machines.

Kubernetes operators and hand-written Slurm lines set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT but no LOCAL_RANK.
Without it every rank would take the first GPU of its machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from backends.process.rank import ProcessFacts, RankError

MEETING_LIMIT_S = 120.0


def placed(facts: ProcessFacts, limit_s: float = MEETING_LIMIT_S) -> ProcessFacts:
    """`facts` with local rank and size; asks the other ranks only where they are not known.

    The store that they met at is kept for `backends.torch.rendezvous.join`.

    Args:
        limit_s: of the waiting, in seconds.

    Raises:
        RankError: where a rank does not appear, appears twice, or rank 0 cannot be reached.
    """
    if facts.is_placed:
        return facts
    import torch.distributed as dist

    from backends.torch.rendezvous import keep_store, meeting_point

    address, port = meeting_point(facts)
    limit = timedelta(seconds=limit_s)
    try:
        store = dist.TCPStore(
            address, port, facts.world_size, is_master=facts.rank == 0, timeout=limit, wait_for_workers=False
        )
        if store.add(f"placement/taken/{facts.rank}", 1) > 1:
            raise RankError(f"two processes say that they are rank {facts.rank}: give every process a RANK of its own")
        store.set(f"placement/machine/{facts.rank}", f"{machine(facts)}\n{facts.local_rank}")
        keys = [f"placement/machine/{rank}" for rank in range(facts.world_size)]
        missing = _wait(store, keys, limit)
        if missing:
            ranks = ", ".join(map(str, missing))
            raise RankError(f"rank {ranks} of {facts.world_size} did not appear within {limit_s:g} s: is it alive?")
        told = [store.get(key).decode().rsplit("\n", 1) for key in keys]
    except RankError:
        raise
    except (RuntimeError, ValueError, OSError) as error:  # DistStoreError and friends are RuntimeErrors
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RankError(
            f"rank {facts.rank} of {facts.world_size} could not meet the others at {address}:{port} ({reason}): check "
            "MASTER_ADDR and MASTER_PORT, and that every rank has a RANK of its own"
        ) from None
    keep_store(store)
    local_rank, local_size = place_among(
        [name for name, _ in told], [int(local_rank) for _, local_rank in told], facts.rank
    )
    return replace(facts, local_rank=local_rank, local_size=local_size)


def place_among(machines: Sequence[str], local_ranks: Sequence[int], rank: int) -> tuple[int, int]:
    """(local rank, local size) of `rank`, from every rank's machine and the local rank that it was given (UNKNOWN:
    none). Given ones count only where they number the machine's ranks: all 0, as with one GPU shown to each, does not.
    """
    here = [other for other, name in enumerate(machines) if name == machines[rank]]
    given = [local_ranks[other] for other in here]
    if sorted(given) == list(range(len(here))):
        return local_ranks[rank], len(here)
    return here.index(rank), len(here)


def machine(facts: ProcessFacts) -> str:
    """A name that no other machine or container has: hosts may share a hostname, containers share their kernel."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{facts.hostname} {boot}".strip()


def _wait(store: object, keys: Sequence[str], limit: timedelta) -> list[int]:
    """The ranks whose key is not there in the end."""
    try:
        store.wait(list(keys), limit)  # type: ignore[attr-defined]
    except RuntimeError:
        return [rank for rank, key in enumerate(keys) if not store.check([key])]  # type: ignore[attr-defined]
    return []
