"""Horovod: all-reduce of gradients by a background thread that negotiates, fuses and caches them.

Order of a step, as Horovod's documentation has it for gradient clipping: backward, `synchronize()`, unscale, clip, then
the inner optimizer inside `skip_synchronize()`. The loss is divided by the accumulation steps here, because
``backward_passes_per_step`` sums and does not average; the exchange happens once, in the last pass. Initial weights and
buffers are broadcast here: Horovod leaves that to its caller. The learning rate is not scaled by the world size, as
Horovod's examples do: the other engines do not.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pickle
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backends.base import Availability, BackendError, EngineSettings, Optimization, StepReport
from backends.checks.traffic import Exchange, counting_horovod
from backends.horovod.settings import HorovodSettings
from backends.horovod.start import start
from backends.horovod.tuning import candidates
from backends.process.rank import ProcessFacts
from backends.shared.step import StepBackend
from backends.shared.step_parts import check_micro_batches
from backends.torch.rendezvous import choose_device
from backends.tuning import Candidate, Situation

_OVER_MPI = "adasum is implemented over MPI only"
_FOREIGN_LAUNCHERS = ("torchrun", "deepspeed", "srun", "mpich", "mvapich", "env")


class HorovodBackend(StepBackend):
    """One process of a Horovod job, started by horovodrun or mpirun (or alone)."""

    name = "horovod"
    Settings = HorovodSettings
    settings: HorovodSettings

    def __init__(
        self, settings: EngineSettings, facts: ProcessFacts, *, device: str = "auto", timeout_s: float = 300.0
    ) -> None:
        super().__init__(settings, facts, device=device, timeout_s=timeout_s)
        check_launcher(facts.launcher, facts.world_size)
        self.device = choose_device(device, facts.local_rank)
        variables = self.settings.environment(timeout_s)
        if facts.world_size == 1 and facts.launcher != "mpirun":
            # Alone, Horovod would start MPI if it was built with it; gloo needs no launcher.
            for name in ("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS"):
                variables.setdefault(name, os.environ.get(name, "gloo"))
        try:
            self._hvd = hvd = start(variables)
        except BackendError:
            raise
        except (ValueError, RuntimeError) as error:
            raise BackendError(
                f"hvd.init failed on rank {facts.rank} ({_first_line(error)}): see Horovod's lines above"
            ) from None
        if hvd.size() != facts.world_size or hvd.rank() != facts.rank:
            raise BackendError(
                f"Horovod sees rank {hvd.rank()} of {hvd.size()}, {facts.launcher} started rank {facts.rank} of "
                f"{facts.world_size}: Horovod was built for another MPI, or the launcher is not its own; use horovodrun"
            )
        self._closed = False
        self._calls = 0

    @classmethod
    def availability(cls) -> Availability:
        found = importlib.util.find_spec("horovod")
        if found is None or not found.submodule_search_locations:
            return Availability(
                usable=False, reason="Horovod is not installed: run make setup, which builds it from its source"
            )
        # The library is looked for as a file: find_spec of a submodule would import horovod.torch, and its core reads
        # part of its environment (the autotuner's) when it is loaded, before the settings are in it.
        if not any(
            list((Path(folder) / "torch").glob("mpi_lib_v2*.so")) for folder in found.submodule_search_locations
        ):
            return Availability(
                usable=False,
                reason="Horovod was built without its PyTorch part: build it with HOROVOD_WITH_PYTORCH=1 (make setup)",
            )
        return Availability(usable=True, version=importlib.metadata.version("horovod"))

    @classmethod
    def check_job(
        cls, settings: EngineSettings, optimization: Optimization, *, world_size: int, micro_batch: int, launcher: str
    ) -> None:
        check_launcher(launcher, world_size)
        if getattr(settings, "op", "") == "adasum" and world_size > 1:
            _check_adasum(world_size, optimization)
            if launcher == "horovodrun":
                raise BackendError(f"{_OVER_MPI}: use --launcher mpirun or horovodrun-mpi")

    @classmethod
    def candidates(cls, settings: EngineSettings, situation: Situation) -> tuple[Candidate, ...]:
        return candidates(situation)

    # -- the step ------------------------------------------------------------------------------------------------
    def prepare(self, model: torch.nn.Module, optimization: Optimization) -> None:
        if self._adasum:
            _check_adasum(self.world_size, optimization)
            if not self._hvd.mpi_built() or not self._hvd.mpi_enabled():
                raise BackendError(f"{_OVER_MPI}: launch with mpirun or horovodrun --mpi")
        # hvd.broadcast_optimizer_state is NOT called on the fresh optimizer: to make state to broadcast, it takes a
        # step with zero gradients (horovod/torch/functions.py), which decays the weights and puts Adam's step count at
        # 1. A fresh optimizer is the same on every rank anyway; a restored one is read by every rank from the same
        # file.
        super().prepare(model, optimization)

    @property
    def _adasum(self) -> bool:
        return self.settings.op == "adasum" and self.world_size > 1

    def broadcast_model(self, model: torch.nn.Module) -> None:
        """Rank 0's parameters (frozen ones too) and buffers. In an elastic job ranks prepare at different times, so
        there backends.horovod.elastic does it, whenever the world changes."""
        if not self.elastic:
            self.broadcast_weights(model)

    @property
    def elastic(self) -> bool:
        """Whether horovodrun started an elastic job."""
        return os.environ.get("HOROVOD_ELASTIC") == "1"

    def broadcast_weights(self, model: torch.nn.Module) -> None:
        """Rank 0's parameters and buffers on every rank."""
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self._hvd.broadcast_parameters(
            {name: _as_bytes(t.data) for name, t in tensors.items() if t.numel()}, root_rank=0
        )

    def wrap_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        hvd, settings = self._hvd, self.settings
        return hvd.DistributedOptimizer(
            optimizer,
            named_parameters=list(self._parameters.items()),
            compression=hvd.Compression.fp16 if settings.compression == "fp16" else hvd.Compression.none,
            backward_passes_per_step=self.optimization.accumulation,
            op=hvd.Adasum if settings.op == "adasum" else hvd.Average,
            gradient_predivide_factor=settings.gradient_predivide_factor,
            groups=settings.num_groups or None,
        )

    def all_reduce_gradients(self) -> None:
        self._optimizer.synchronize()

    def clip_gradients(self, grads: list[torch.Tensor]) -> torch.Tensor:
        """See `StepBackend.clip_gradients`; nan under Adasum."""
        if self._adasum:  # the update was already computed in the backward hooks, from unclipped local gradients
            return torch.full((), float("nan"), device=self.device)
        return super().clip_gradients(grads)

    def optimizer_step(self, overflow: torch.Tensor | None) -> None:
        with nullcontext() if self._adasum else self._optimizer.skip_synchronize():
            super().optimizer_step(overflow)

    # -- elastic: see backends.horovod.elastic -----------------------------------------------------------------------
    @property
    def step(self) -> int:
        """The optimizer step to come."""
        return self._step

    def weighted_step(self, micro_batches: Sequence[Any], counts: Sequence[int]) -> StepReport:
        """A step in which every SAMPLE of the global batch weighs the same although ranks and micro-batches hold
        unequal numbers of them (`counts`). Loss parts in the report average to the global mean over the ranks."""
        check_micro_batches(micro_batches, self.optimization)
        everywhere = int(self.sum(torch.tensor(sum(counts), dtype=torch.int64)))
        return self._train(micro_batches, [count * self.world_size / everywhere for count in counts])

    def join_world(self) -> None:
        """Takes over rank and size from Horovod, which changed them; calls are counted anew on every rank."""
        hvd = self._hvd
        self.facts = replace(
            self.facts,
            rank=hvd.rank(),
            world_size=hvd.size(),
            local_rank=hvd.local_rank(),
            local_size=hvd.local_size(),
        )
        self._calls = 0

    def _training(self) -> dict[str, Any]:
        settings = self.settings
        return super()._training() | {
            "compression": settings.compression,
            "op": settings.op,
            "gradient_predivide_factor": settings.gradient_predivide_factor,
        }

    def state(self) -> dict[str, Any]:
        """Everything that training changes: weights, buffers, optimizer, scale, step."""
        return self._state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The reverse of `state`, at any world size."""
        self._load_state(state)

    # -- collectives outside the step --------------------------------------------------------------------------------
    def _tag(self, verb: str) -> str:
        """A name for a collective; ranks call them in the same order, so equal counts are equal calls."""
        self._calls += 1
        return f"harness.{verb}.{self._calls}"

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._hvd.allreduce(tensor.detach().clone(), op=self._hvd.Sum, name=self._tag("sum"))

    def gather(self, value: Any) -> list[Any] | None:
        """Horovod has no gather to one rank, so bytes go to all, but only rank 0 unpickles them."""
        data = torch.frombuffer(bytearray(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)), dtype=torch.uint8)
        tag = self._tag("gather")
        sizes = self._hvd.allgather(torch.tensor([data.numel()]), name=f"{tag}.sizes").tolist()
        everything = self._hvd.allgather(data, name=f"{tag}.bytes")
        if self.rank != 0:
            return None
        return [pickle.loads(part.numpy().tobytes()) for part in everything.split(sizes)]

    def broadcast(self, value: Any) -> Any:
        tag = self._tag("broadcast")
        data = torch.empty(0, dtype=torch.uint8)
        if self.rank == 0:
            data = torch.frombuffer(bytearray(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)), dtype=torch.uint8)
        size = int(self._hvd.broadcast(torch.tensor([data.numel()]), root_rank=0, name=f"{tag}.size"))
        if self.rank != 0:
            data = torch.empty(size, dtype=torch.uint8)
        data = self._hvd.broadcast(data, root_rank=0, name=f"{tag}.bytes")
        return value if self.rank == 0 else pickle.loads(data.numpy().tobytes())

    def barrier(self) -> None:
        self._hvd.allreduce(torch.zeros(1), op=self._hvd.Sum, name=self._tag("barrier"))

    # -- records -----------------------------------------------------------------------------------------------------
    def describe(self) -> dict[str, Any]:
        hvd, settings = self._hvd, self.settings
        built = {
            name: bool(getattr(hvd, f"{name}_built")())
            for name in ("nccl", "mpi", "gloo", "ddl", "ccl", "cuda", "rocm")
        }
        controller = "mpi" if hvd.mpi_enabled() else "gloo"
        if self.device.type == "cuda":
            data = "nccl" if built["nccl"] else controller
        else:
            data = os.environ.get("HOROVOD_CPU_OPERATIONS", controller).lower()
        return super().describe() | {
            "horovod": importlib.metadata.version("horovod"),
            "controller": controller,
            "communication": data,
            "built": built,
            "wire_dtype": "fp16" if settings.compression == "fp16" else "fp32",
            "op": settings.op,
            "fusion_threshold_bytes": int(os.environ.get("HOROVOD_FUSION_THRESHOLD", 128 * 2**20)),
            "cycle_time_ms": float(os.environ.get("HOROVOD_CYCLE_TIME", 1.0)),
            "cache_capacity": int(os.environ.get("HOROVOD_CACHE_CAPACITY", 1024)),
            "groups": settings.num_groups,
            "async_completion": _switched_on("HOROVOD_ENABLE_ASYNC_COMPLETION"),
            "gradient_predivide_factor": settings.gradient_predivide_factor,
            "autotune": _switched_on("HOROVOD_AUTOTUNE"),
            "timeline": bool(os.environ.get("HOROVOD_TIMELINE")),
            "environment": {name: os.environ[name] for name in sorted(os.environ) if _is_setting(name)},
        }

    def counting_exchange(self) -> AbstractContextManager[Exchange]:
        return counting_horovod()

    def release(self) -> None:
        self._optimizer = self._model = self._callable = None
        self._parameters = {}

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._hvd.shutdown()


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A view that Horovod can send: it has no bfloat16 (horovod/torch/mpi_ops.py), and a broadcast only copies bits."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def check_launcher(launcher: str, world_size: int) -> None:
    """Raises BackendError where ranks are started by a launcher that Horovod cannot find its peers under."""
    if world_size > 1 and launcher in _FOREIGN_LAUNCHERS:
        raise BackendError(
            f"engine 'horovod' does not run under {launcher}: "
            f"start it with horovodrun -np {world_size} ... or mpirun (Open MPI)"
        )


def _check_adasum(world_size: int, optimization: Optimization) -> None:
    """What Horovod's Adasum optimizer cannot do, refused by name (horovod/torch/optimizer.py: it steps inside the
    backward hooks, on local gradients, and reduces the update)."""
    if world_size & (world_size - 1):
        raise BackendError(f"adasum needs a power of two of workers, not {world_size}: use 2, 4, 8 ... or op=average")
    if optimization.clip_norm is not None:
        raise BackendError(
            "adasum updates inside the backward pass, so gradients cannot be clipped: use --clip-norm none"
        )
    if optimization.precision == "fp16":
        raise BackendError(
            "adasum updates inside the backward pass, so an overflow cannot be skipped: use bf16 or fp32"
        )


def _is_setting(name: str) -> bool:
    """HOROVOD_ variables that are settings, without addresses, ranks and secrets of the launcher."""
    private = ("ADDR", "PORT", "KEY", "SECRET", "RANK", "SIZE", "HOSTNAME", "IFACE", "COMMON")
    return name.startswith("HOROVOD_") and not any(word in name for word in private)


def _switched_on(variable: str) -> bool:
    """Whether a switch of Horovod's core is set to a number other than 0."""
    return bool(int(os.environ.get(variable, "0") or 0))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
