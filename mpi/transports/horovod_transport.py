"""Horovod's own collectives, through its background thread: negotiation and cycle time are part of what is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpi.transports.base import UnsupportedError
from mpi.transports.torch_transport import TorchBuffers


class HorovodTransport(TorchBuffers):
    """The ring that ``horovod.torch.init`` joins. Each operation has a fixed name, so that it is negotiated once."""

    def __init__(self, device: str) -> None:
        import horovod.torch as hvd

        hvd.init()
        super().__init__(f"cuda:{hvd.local_rank()}" if device == "cuda" else "cpu")
        if self.device.type == "cuda":
            self._torch.cuda.set_device(self.device)
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()

    def describe(self) -> dict[str, Any]:
        import horovod

        hvd = self._hvd
        controller = "mpi" if hvd.mpi_enabled() else "gloo"
        return {"library": f"horovod {horovod.__version__}", "backend": controller, "device": self.device.type}

    def operation(self, name: str, source: Any, target: Any) -> Callable[[], Any]:
        hvd = self._hvd
        tag = f"{name}.{source.numel()}"

        def all_reduce() -> Any:
            hvd.allreduce_(source, op=hvd.Sum, name=tag)
            self._wait()
            return source

        def all_gather() -> Any:
            found = hvd.allgather(source, name=tag)
            self._wait()
            return found

        def reduce_scatter() -> Any:
            # Horovod scatters rows and gives the first ranks one more where they do not divide.
            found = hvd.reducescatter(source, op=hvd.Sum, name=tag)
            self._wait()
            return found

        def broadcast() -> Any:
            hvd.broadcast_(source, root_rank=0, name=tag)
            self._wait()
            return source

        if name == "reduce_scatter" and not hasattr(hvd, "reducescatter"):
            raise UnsupportedError("this Horovod has no reducescatter")
        return {
            "all_reduce": all_reduce,
            "all_gather": all_gather,
            "reduce_scatter": reduce_scatter,
            "broadcast": broadcast,
        }[name]

    def close(self) -> None:
        self._hvd.shutdown()
