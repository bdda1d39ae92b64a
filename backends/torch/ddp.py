"""torch DistributedDataParallel: what users would pick instead of either engine, and the reference at several
workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from inspect import signature
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch.nn.parallel import DistributedDataParallel

from backends.base import Availability, BackendError, EngineSettings, check_extra
from backends.checks.traffic import Exchange, counting_torch
from backends.declared import declared
from backends.process.rank import ProcessFacts
from backends.shared.step import StepBackend
from backends.torch.collectives import TorchCollectives, broadcast_tensors
from backends.torch.rendezvous import choose_device, join, leave
from backends.torch.tuning import ddp_candidates
from backends.tuning import Candidate, Situation

# Buffers are constants here (frozen statistics, positions): broadcasting them in every forward pass would be traffic
# that the other engines do not have. torch 2.13 renamed the option.
_OPTION = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
_CONSTANT_BUFFERS: dict[str, Any] = {_OPTION: False}

WIRE_HOOKS = {"none": None, "fp16": "fp16_compress_hook", "bf16": "bf16_compress_hook"}


@declared(BackendError, "ddp: ")
class DdpSettings(EngineSettings):
    """Settings of DistributedDataParallel.

    Args:
        bucket_cap_mb: gradients are exchanged in buckets of this size, MiB, while backward goes on; None = torch's own:
            25 after a first one of 1.
        gradient_as_bucket_view: gradients live in the buckets, one copy less.
        static_graph: the same parameters take part in every step; also allows parameters that never do.
        find_unused_parameters: look in every step for parameters that take no part.
        compression: type on the wire; none = the gradient's own.
        extra: passed to DistributedDataParallel as it is.
    """

    bucket_cap_mb: Annotated[float | None, Field(gt=0, le=65536)] = None
    gradient_as_bucket_view: bool = True
    static_graph: bool = False
    find_unused_parameters: bool = False
    compression: Literal["none", "fp16", "bf16"] = "none"

    def __post_init__(self) -> None:
        check_extra(self, signature(DistributedDataParallel).parameters, "DistributedDataParallel")


class DdpBackend(TorchCollectives, StepBackend):
    """All-reduce of gradient buckets during the last backward pass of a step."""

    name = "ddp"
    Settings = DdpSettings
    settings: DdpSettings

    def __init__(
        self, settings: EngineSettings, facts: ProcessFacts, *, device: str = "auto", timeout_s: float = 300.0
    ) -> None:
        super().__init__(settings, facts, device=device, timeout_s=timeout_s)
        self.device = choose_device(device, facts.local_rank)
        self._library = join(facts, self.device, timeout_s)

    @classmethod
    def availability(cls) -> Availability:
        if not dist.is_available():
            return Availability(usable=False, reason="this torch has no torch.distributed: install a build that has it")
        return Availability(usable=True, version=torch.__version__)

    @classmethod
    def candidates(cls, settings: EngineSettings, situation: Situation) -> tuple[Candidate, ...]:
        return ddp_candidates(situation)

    def broadcast_model(self, model: torch.nn.Module) -> None:
        broadcast_tensors([buffer for buffer in model.buffers() if buffer.numel()])  # parameters: DDP itself

    def _training(self) -> dict[str, Any]:
        return super()._training() | {"compression": self.settings.compression}

    def wrap_model(self, model: torch.nn.Module) -> Any:
        settings = self.settings
        wrapped = DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            **_CONSTANT_BUFFERS,
            bucket_cap_mb=settings.bucket_cap_mb,
            gradient_as_bucket_view=settings.gradient_as_bucket_view,
            static_graph=settings.static_graph,
            find_unused_parameters=settings.find_unused_parameters,
            **settings.extra,
        )
        hook = WIRE_HOOKS[settings.compression]
        if hook is not None:
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            wrapped.register_comm_hook(dist.group.WORLD, getattr(default_hooks, hook))
        return wrapped

    def no_sync_context(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if is_last else self._callable.no_sync()

    def describe(self) -> dict[str, Any]:
        wire = {"none": "fp32", "fp16": "fp16", "bf16": "bf16"}[self.settings.compression]
        return super().describe() | {
            "communication": self._library,
            "wire_dtype": wire,
            "bucket_bytes": self._buckets(),
        }

    @contextlib.contextmanager
    def counting_exchange(self) -> Iterator[Exchange]:
        """The reducer is C++: its buckets are read from its own log. Python hooks (compression) are counted as
        called."""
        before = self._step
        with counting_torch() as exchange:
            yield exchange
            if self.settings.compression == "none":
                for _ in range(self._step - before):
                    exchange.add("all_reduce", sum(self._buckets()), calls=len(self._buckets()))

    def _buckets(self) -> list[int]:
        """Bytes of each gradient bucket, in the order that the first backward pass showed."""
        logged = self._callable._get_ddp_logging_data()
        sizes = str(logged.get("rebuilt_bucket_sizes") or logged.get("bucket_sizes") or "")
        return [int(size) for size in sizes.replace(" ", "").split(",") if size]

    def close(self) -> None:
        leave()
