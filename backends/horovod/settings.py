"""Horovod's settings, and the environment variables that carry them into its core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from backends.base import BackendError, EngineSettings
from backends.declared import declared


@declared(BackendError, "horovod: ")
class HorovodSettings(EngineSettings):
    """Settings of Horovod; None = its own default, given in brackets.

    Args:
        fusion_threshold_mb: MiB of gradients exchanged as one message [128].
        cycle_time_ms: how often the background thread looks for ready gradients, ms [1].
        cache_capacity: negotiated responses kept [1024].
        num_groups: gradients grouped into so many all-reduces; 0 = by readiness.
        compression: type on the wire; none = the gradient's own.
        op: ``average``, or ``adasum`` (arXiv:2006.02924): another training, never comparable with the others.
        gradient_predivide_factor: splits the averaging before and after the sum.
        hierarchical_allreduce: reduce inside a node first.
        async_completion: on a GPU, the stream waits for the exchange, not the host [false].
        nccl_streams: exchanges at a time on a GPU [1].
        controller: who negotiates, ``gloo`` or ``mpi``; auto = the launcher's.
        timeline: file for Horovod's trace; slows the run.
        autotune, autotune_log: search for fusion and cycle while training, and the file of what was tried.
        tune_steps: train so many steps first, in processes of their own, with the tuner on, and fix what it found for
            the run (`backends.horovod.autotune`); 0 = no. The launching side acts on it and on the next three.
        min_np, max_np: minimum and maximum number of workers of an elastic job; 0 = not elastic.
        commit_every: optimizer steps between the states that an elastic job can go back to.
        extra: further environment variables (HOROVOD_...), set before hvd.init.
    """

    fusion_threshold_mb: Annotated[float | None, Field(ge=0, le=65536)] = None
    cycle_time_ms: Annotated[float | None, Field(gt=0, le=60000)] = None
    cache_capacity: Annotated[int | None, Field(ge=0)] = None
    num_groups: Annotated[int, Field(ge=0)] = 0
    compression: Literal["none", "fp16"] = "none"
    op: Literal["average", "adasum"] = "average"
    gradient_predivide_factor: Annotated[float, Field(gt=0)] = 1.0
    hierarchical_allreduce: bool | None = None
    async_completion: bool | None = None
    nccl_streams: Annotated[int | None, Field(ge=1, le=16)] = None
    controller: Literal["auto", "gloo", "mpi"] = "auto"
    timeline: str = ""
    autotune: bool = False
    autotune_log: str = ""
    tune_steps: Annotated[int, Field(ge=0)] = 0
    min_np: Annotated[int, Field(ge=0)] = 0
    max_np: Annotated[int, Field(ge=0)] = 0
    commit_every: Annotated[int, Field(ge=1)] = 10

    def __post_init__(self) -> None:
        if self.op == "adasum" and self.gradient_predivide_factor != 1.0:
            raise BackendError("horovod: gradient_predivide_factor belongs to op 'average', adasum does not average")
        for name, changed in (
            ("gradient_predivide_factor", self.gradient_predivide_factor != 1.0),
            ("op 'adasum'", self.op == "adasum"),
        ):
            if self.num_groups and changed:  # horovod/torch/optimizer.py: grouped all-reduces know of neither
                raise BackendError(f"horovod: num_groups ignores {name}: leave one of them out")
        if self.tune_steps and self.autotune:
            raise BackendError("horovod: autotune tunes while it trains, tune_steps before: leave one of them out")
        for name in self.extra:
            if not name.startswith("HOROVOD_"):
                raise BackendError(f"horovod: extra '{name}' is no Horovod variable: it must start with HOROVOD_")

    def environment(self, timeout_s: float) -> dict[str, str]:
        """The variables that carry these settings into Horovod's core, which reads them in hvd.init()."""
        limit = str(max(1, int(timeout_s)))
        variables = {
            "HOROVOD_GLOO_TIMEOUT_SECONDS": limit,
            # A rank that waits for a tensor which another never submits: warn after a quarter, end the job at the
            # limit.
            "HOROVOD_STALL_CHECK_TIME_SECONDS": str(max(1, int(timeout_s / 4))),
            "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": limit,
        }
        if self.fusion_threshold_mb is not None:
            variables["HOROVOD_FUSION_THRESHOLD"] = str(int(self.fusion_threshold_mb * 2**20))
        if self.cycle_time_ms is not None:
            variables["HOROVOD_CYCLE_TIME"] = str(self.cycle_time_ms)
        if self.cache_capacity is not None:
            variables["HOROVOD_CACHE_CAPACITY"] = str(self.cache_capacity)
        if self.hierarchical_allreduce is not None:
            variables["HOROVOD_HIERARCHICAL_ALLREDUCE"] = str(int(self.hierarchical_allreduce))
        if self.async_completion is not None:
            variables["HOROVOD_ENABLE_ASYNC_COMPLETION"] = str(int(self.async_completion))
        if self.nccl_streams is not None:
            variables["HOROVOD_NUM_NCCL_STREAMS"] = str(self.nccl_streams)
        if self.controller != "auto":
            variables["HOROVOD_CONTROLLER"] = self.controller
            variables["HOROVOD_CPU_OPERATIONS"] = self.controller
        if self.timeline:
            variables["HOROVOD_TIMELINE"] = self.timeline
        if self.autotune:
            variables["HOROVOD_AUTOTUNE"] = "1"
            if self.autotune_log:
                variables["HOROVOD_AUTOTUNE_LOG"] = self.autotune_log
        return variables | {name: str(value) for name, value in self.extra.items()}


def variables(settings: Mapping[str, Any], timeout_s: float = 300.0) -> dict[str, str]:
    """The environment of a settings dict, for a launcher that wants to pass it (and for tests)."""
    return HorovodSettings(**settings).environment(timeout_s)
