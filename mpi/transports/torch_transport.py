"""torch.distributed's gloo and NCCL, and what the engines' transports share with them: torch buffers."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np

from mpi.transports.base import Transport

TIMEOUT = timedelta(seconds=60)


class TorchBuffers(Transport):
    """Buffers are torch tensors on `device` (``cpu`` or ``cuda:LOCAL_RANK``)."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch
        self.device = torch.device(device)

    def make(self, values: np.ndarray) -> Any:
        return self._torch.from_numpy(values.copy()).to(self.device)

    def read(self, buffer: Any) -> np.ndarray:
        return buffer.cpu().numpy()

    def _wait(self) -> None:
        """Until the device has done what was asked of it; nothing to do on a CPU."""
        if self.device.type == "cuda":
            self._torch.cuda.synchronize(self.device)


class GroupTransport(TorchBuffers):
    """Operations of a module that has torch.distributed's functions (itself, or deepspeed.comm)."""

    @property
    @abstractmethod
    def _group(self) -> Any: ...

    def operation(self, name: str, source: Any, target: Any) -> Callable[[], Any]:
        group = self._group

        def all_reduce() -> Any:
            group.all_reduce(source)
            self._wait()
            return source

        def all_gather() -> Any:
            group.all_gather_into_tensor(target, source)
            self._wait()
            return target

        def reduce_scatter() -> Any:
            group.reduce_scatter_tensor(target, source)
            self._wait()
            return target

        def broadcast() -> Any:
            group.broadcast(source, src=0)
            self._wait()
            return source

        return {
            "all_reduce": all_reduce,
            "all_gather": all_gather,
            "reduce_scatter": reduce_scatter,
            "broadcast": broadcast,
        }[name]


_left: list[Any] = []


def keep_default_group() -> None:
    """Keeps the default group's object until the process ends, before the group is left.

    gloo's destructor and its thread can wait for one another by the interpreter's lock (backends/torch/rendezvous.py,
    `leave`).
    """
    from torch.distributed import group

    _left.append(group.WORLD)


class _Distributed(GroupTransport):
    backend: str

    def __init__(self, device: str) -> None:
        super().__init__(device)
        import torch.distributed as dist

        if self.device.type == "cuda":
            self._torch.cuda.set_device(self.device)
        dist.init_process_group(self.backend, timeout=TIMEOUT)
        self._dist = dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    @property
    def _group(self) -> Any:
        return self._dist

    def describe(self) -> dict[str, Any]:
        library = f"torch {self._torch.__version__}"
        if self.backend == "nccl":
            library += f", NCCL {'.'.join(map(str, self._torch.cuda.nccl.version()))}"
        return {"library": library, "backend": self.backend, "device": self.device.type}

    def close(self) -> None:
        self._dist.barrier()
        keep_default_group()
        self._dist.destroy_process_group()


class GlooTransport(_Distributed):
    """gloo over TCP, CPU buffers."""

    backend = "gloo"

    def __init__(self, device: str) -> None:
        super().__init__("cpu")


class NcclTransport(_Distributed):
    """NCCL, one GPU a rank."""

    backend = "nccl"

    def __init__(self, device: str) -> None:
        super().__init__(f"cuda:{os.environ['LOCAL_RANK']}")
