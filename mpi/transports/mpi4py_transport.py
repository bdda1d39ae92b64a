"""MPI itself, through mpi4py: the floor that the engines' MPI controllers stand on. CPU buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpi.transports.base import Transport


class Mpi4pyTransport(Transport):
    """COMM_WORLD of the ``mpirun`` that started this process."""

    def __init__(self, device: str) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._world = MPI.COMM_WORLD
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()

    def describe(self) -> dict[str, Any]:
        library = self._mpi.Get_library_version().split(",")[0].strip()
        return {"library": library, "device": "cpu"}

    def make(self, values: np.ndarray) -> np.ndarray:
        return values.copy()

    def read(self, buffer: np.ndarray) -> np.ndarray:
        return buffer

    def operation(self, name: str, source: np.ndarray, target: np.ndarray) -> Callable[[], np.ndarray]:
        world, sum_ = self._world, self._mpi.SUM

        def all_reduce() -> np.ndarray:
            world.Allreduce(self._mpi.IN_PLACE, source, op=sum_)
            return source

        def all_gather() -> np.ndarray:
            world.Allgather(source, target)
            return target

        def reduce_scatter() -> np.ndarray:
            world.Reduce_scatter_block(source, target, op=sum_)
            return target

        def broadcast() -> np.ndarray:
            world.Bcast(source, root=0)
            return source

        return {
            "all_reduce": all_reduce,
            "all_gather": all_gather,
            "reduce_scatter": reduce_scatter,
            "broadcast": broadcast,
        }[name]

    def close(self) -> None:
        self._world.Barrier()
