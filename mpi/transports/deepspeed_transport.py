"""deepspeed.comm: torch.distributed behind DeepSpeed's wrapper and its choice of backend."""

from __future__ import annotations

import os
from typing import Any

from mpi.transports.torch_transport import TIMEOUT, GroupTransport, keep_default_group


class DeepspeedTransport(GroupTransport):
    """The group that ``deepspeed.init_distributed`` makes."""

    def __init__(self, device: str) -> None:
        local = os.environ.get("LOCAL_RANK", "0")
        super().__init__(f"cuda:{local}" if device == "cuda" else "cpu")
        import deepspeed
        from deepspeed import comm

        # On one host its set-up would compile a shared-memory all-reduce that only inference uses, and wait for ever
        # for the lock of a compilation that was killed (deepspeed/comm/torch.py, torch/utils/file_baton.py).
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if self.device.type == "cuda":
            self._torch.cuda.set_device(self.device)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, timeout=TIMEOUT, verbose=False)
        self._comm, self._version, self._backend = comm, deepspeed.__version__, backend
        self.rank, self.size = comm.get_rank(), comm.get_world_size()

    @property
    def _group(self) -> Any:
        return self._comm

    def describe(self) -> dict[str, Any]:
        library = f"deepspeed {self._version}, torch {self._torch.__version__}"
        return {"library": library, "backend": self._backend, "device": self.device.type}

    def close(self) -> None:
        self._comm.barrier()
        keep_default_group()
        self._comm.destroy_process_group()
