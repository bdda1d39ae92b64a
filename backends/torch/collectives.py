"""sum, gather, broadcast and barrier over the default torch.distributed group, for ddp, fsdp2 and deepspeed.

Objects travel through gloo on the CPU (the group has a CPU side even where gradients go through NCCL), so records never
pass through GPU memory. Tensors inside objects should be on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from backends.base import BackendError, EngineSettings, Optimization


class TorchCollectives:
    """Mixed into a Backend whose __init__ joined a group. Expects `rank` and `world_size`."""

    rank: int
    world_size: int

    @classmethod
    def check_job(
        cls, settings: EngineSettings, optimization: Optimization, *, world_size: int, micro_batch: int, launcher: str
    ) -> None:
        """See `Backend.check_job`. horovodrun with gloo gives its ranks no address at which torch could meet."""
        if world_size > 1 and launcher == "horovodrun":
            raise BackendError(
                "horovodrun (gloo) does not tell its ranks where rank 0 is: use --launcher torchrun, deepspeed, mpirun "
                "or srun with this engine"
            )

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def gather(self, value: Any) -> list[Any] | None:
        if self.world_size == 1:
            return [value]
        collected: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, collected, dst=0)
        return collected

    def broadcast(self, value: Any) -> Any:
        if self.world_size == 1:
            return value
        box = [value if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            # A summed element rather than dist.barrier(): that one runs on the GPU where there is one and waits for
            # its streams; this one has the group's timeout on every backend.
            dist.all_reduce(torch.zeros(1))


def broadcast_tensors(tensors: list[torch.Tensor]) -> None:
    """Rank 0's values into every rank's `tensors`, in place, coalesced by the group's buckets (250 MiB)."""
    if tensors and dist.get_world_size() > 1:
        dist._broadcast_coalesced(dist.distributed_c10d._get_default_group(), tensors, 250 * 2**20, 0)
