"""The micro-benchmark of collectives: the worker that every launcher starts, and the definitions of what it reports.

nccl-tests' definitions (doc/PERFORMANCE.md there): S is the size in bytes of the LARGER of an operation's two buffers,
t the time of one operation; ``algbw = S / t``, ``busbw = algbw x factor``. The factor makes busbw comparable with the
speed of the slowest link, whatever the number of ranks n: 2(n-1)/n for all_reduce, (n-1)/n for all_gather and
reduce_scatter, 1 for broadcast.

Time of one operation: on each rank from the call until the result is there, after a warm-up; the slowest rank counts.
As there, the mean over the repetitions is what the bandwidths are made of: single calls may return before the data have
gone (a broadcast's root), their mean cannot. The median and quartiles are reported beside it. Every size is checked for
the right result first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpi.ring import sent_share
from mpi.transports import TRANSPORTS
from mpi.transports.base import ITEM_BYTES, OPERATIONS, Transport, UnsupportedError, expected, source, target

MARK = "COMM"
WARM_UP = 2
_LEAST, _MOST = 5, 200


def factor(operation: str, ranks: int) -> float:
    """busbw / algbw of `operation` on `ranks` ranks."""
    return 1.0 if operation == "broadcast" else sent_share(operation, ranks)


def bandwidths(operation: str, ranks: int, size_bytes: int, seconds: float) -> tuple[float, float]:
    """(algbw, busbw) in bytes per second."""
    algorithm = size_bytes / seconds
    return algorithm, algorithm * factor(operation, ranks)


def sizes(smallest: int, largest: int, step: int, ranks: int) -> list[int]:
    """Sizes in bytes from `smallest` to `largest`, each `step` times the one before, cut to whole shares of `ranks`."""
    found: list[int] = []
    size = smallest
    while size <= largest:
        whole = max(1, size // (ITEM_BYTES * ranks)) * ITEM_BYTES * ranks
        if whole not in found:
            found.append(whole)
        size *= step
    return found


def measure(
    transport: Transport, operations: Sequence[str], size_bytes: Sequence[int], *, budget_s: float
) -> list[dict[str, Any]]:
    """One row an operation and size, printed on rank 0 as it is done, all operations' small sizes first: what a library
    cannot carry at 1 GiB costs nothing that it can. `budget_s`: seconds of repetitions each."""
    rows = []
    refused: set[str] = set()
    for size in size_bytes:
        for operation in operations:
            if operation in refused:
                continue
            try:
                row = _one(transport, operation, size, budget_s)
            except UnsupportedError as error:
                row = {"operation": operation, "bytes": size, "unsupported": str(error)}
                refused.add(operation)
            rows.append(row)
            _say(transport, row)
    return rows


def _one(transport: Transport, operation: str, size: int, budget_s: float) -> dict[str, Any]:
    ranks, count = transport.size, size // ITEM_BYTES
    right = _is_right(transport, operation, count)
    call = transport.operation(
        operation,
        transport.make(np.zeros(count // ranks if operation == "all_gather" else count, np.float32)),
        transport.make(target(operation, ranks, count)),
    )
    began = time.perf_counter()
    for _ in range(WARM_UP):
        call()
    guess = (time.perf_counter() - began) / WARM_UP
    # Every rank must repeat as often: the slowest decides.
    slowest = float(_everybody(transport, np.array([guess], np.float32)).max())
    repeats = int(min(_MOST, max(_LEAST, budget_s / max(slowest, 1e-6))))
    times = np.empty(repeats, np.float32)
    for index in range(repeats):
        began = time.perf_counter()
        call()
        times[index] = time.perf_counter() - began
    slow = _everybody(transport, times).max(axis=0)
    low, middle, high = (float(value) for value in np.percentile(slow, (25, 50, 75)))
    mean = float(slow.mean())
    algorithm, bus = bandwidths(operation, ranks, size, mean)
    everywhere = bool(_everybody(transport, np.array([right], np.float32)).min())
    return {
        "operation": operation,
        "bytes": size,
        "ranks": ranks,
        "seconds": mean,
        "seconds_median": middle,
        "seconds_q1": low,
        "seconds_q3": high,
        "repeats": repeats,
        "algbw": algorithm,
        "busbw": bus,
        "correct": everywhere,
    }


def _is_right(transport: Transport, operation: str, count: int) -> bool:
    rank, ranks = transport.rank, transport.size
    into = transport.make(target(operation, ranks, count))
    call = transport.operation(operation, transport.make(source(operation, rank, ranks, count)), into)
    got = transport.read(call())
    return bool(np.array_equal(got, expected(operation, rank, ranks, count)))


def _everybody(transport: Transport, values: np.ndarray) -> np.ndarray:
    """The ranks' `values` (float32, 1-D, as many on each), one row a rank, by the transport's own all_gather."""
    flat = transport.make(np.zeros(len(values) * transport.size, np.float32))
    call = transport.operation("all_gather", transport.make(values), flat)
    return transport.read(call()).reshape(transport.size, len(values))


def _say(transport: Transport, row: dict[str, Any]) -> None:
    """A line in one write, which launchers do not tear apart."""
    if transport.rank == 0:
        sys.stdout.write(f"{MARK} {json.dumps(row)}\n")
        sys.stdout.flush()


def load(name: str, device: str) -> Transport:
    """Joins the group of the transport called `name` (a key of TRANSPORTS)."""
    module, _, attribute = TRANSPORTS[name][0].partition(":")
    return getattr(importlib.import_module(module), attribute)(device)


def main(argv: Sequence[str] | None = None) -> None:
    """One worker: ``python -m mpi.collectives --via gloo --spec JSON`` under that transport's launcher."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--via", required=True, choices=list(TRANSPORTS))
    parser.add_argument("--operations", default=",".join(OPERATIONS))
    parser.add_argument("--smallest", type=int, default=1024)
    parser.add_argument("--largest", type=int, default=4 << 20)
    parser.add_argument("--step", type=int, default=4)
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args(argv)
    transport = load(options.via, options.device)
    _say(transport, {"transport": transport.describe(), "ranks": transport.size})
    wanted = sizes(options.smallest, options.largest, options.step, transport.size)
    rows = measure(transport, options.operations.split(","), wanted, budget_s=options.budget)
    transport.close()
    sys.exit(0 if all(row.get("correct", True) for row in rows) else 3)


if __name__ == "__main__":
    main()
