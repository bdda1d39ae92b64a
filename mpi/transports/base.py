"""What `mpi.collectives` asks of a way to communicate.

Every transport moves float32 vectors and offers the same four operations on buffers that it makes once:

==============  ==========================  =======================================  ===========================
operation       buffer in, elements a rank  buffer out, elements a rank              value of element i
==============  ==========================  =======================================  ===========================
all_reduce      n                           n (in place)                             sum over ranks r of x(r, i)
all_gather      n / size                    n                                        x(i // (n/size), i % (n/size))
reduce_scatter  n                           n / size                                 sum over r of x(r, rank*n/size + i)
broadcast       n                           n (in place)                             x(0, i)
==============  ==========================  =======================================  ===========================

with x(r, i) = (r + 1) + i % 7, small whole numbers, so that float32 sums are exact and a wrong one is seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
ITEM_BYTES = 4


class UnsupportedError(RuntimeError):
    """This transport has no such operation here. One line."""


class Transport(ABC):
    """One process's view; made on every rank after the launcher started it. `size` ranks, this one is `rank`."""

    rank: int
    size: int

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Library, version, controller, device: what is really used."""

    @abstractmethod
    def make(self, values: np.ndarray) -> Any:
        """A device buffer that holds `values` (float32, 1-D)."""

    @abstractmethod
    def read(self, buffer: Any) -> np.ndarray:
        """The buffer's values, 1-D."""

    @abstractmethod
    def operation(self, name: str, source: Any, target: Any) -> Callable[[], Any]:
        """A call that runs `name` once and returns its result buffer when the result is there (device synchronized).

        target: buffer for the result of all_gather and reduce_scatter; the others write over `source`. Raises
        UnsupportedError.
        """

    @abstractmethod
    def close(self) -> None:
        """Leaves the group."""


def pattern(rank: int, start: int, count: int) -> np.ndarray:
    """x(rank, start .. start + count), float32."""
    return _periodic(rank + 1, 1, start, count)


def _periodic(offset: int, factor: int, start: int, count: int) -> np.ndarray:
    """offset + factor * (i % 7) for i in start .. start + count, float32: copied, not computed, because 1 GiB of it on
    every rank would take longer than what is measured."""
    period = offset + factor * ((start + np.arange(7)) % 7)
    return np.tile(period.astype(np.float32), -(-count // 7))[:count]


def source(name: str, rank: int, size: int, count: int) -> np.ndarray:
    """What rank `rank` puts in, for `count` elements of the larger buffer."""
    return pattern(rank, 0, count // size if name == "all_gather" else count)


def target(name: str, size: int, count: int) -> np.ndarray:
    """The result buffer's first values."""
    return np.zeros(count // size if name == "reduce_scatter" else count, np.float32)


def expected(name: str, rank: int, size: int, count: int) -> np.ndarray:
    """What rank `rank` must get."""
    share = count // size
    if name == "all_gather":
        return np.concatenate([pattern(r, 0, share) for r in range(size)])
    if name == "broadcast":
        return pattern(0, 0, count)
    start, length = (rank * share, share) if name == "reduce_scatter" else (0, count)
    return _periodic(size * (size + 1) // 2, size, start, length)  # the sum over ranks of x
