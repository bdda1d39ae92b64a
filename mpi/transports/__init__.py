"""One file for each way to run a collective: `mpi.transports.base.Transport` behind a name in TRANSPORTS."""

from __future__ import annotations

# name -> (module:class, launcher)
TRANSPORTS: dict[str, tuple[str, str]] = {
    "mpi4py": ("mpi.transports.mpi4py_transport:Mpi4pyTransport", "mpirun"),
    "gloo": ("mpi.transports.torch_transport:GlooTransport", "torchrun"),
    "nccl": ("mpi.transports.torch_transport:NcclTransport", "torchrun"),
    "horovod": ("mpi.transports.horovod_transport:HorovodTransport", "horovodrun"),
    "horovod-mpi": ("mpi.transports.horovod_transport:HorovodTransport", "horovodrun-mpi"),
    "deepspeed": ("mpi.transports.deepspeed_transport:DeepspeedTransport", "deepspeed"),
}
