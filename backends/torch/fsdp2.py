"""torch FSDP2 (``fully_shard``): what users would pick instead of ZeRO-3.

Trainable parameters, their gradients and the optimizer state are sharded over the ranks; frozen parameters are left
whole on every rank, so that they are never exchanged. On the CPU, gloo's reduce-scatter sums where an average is asked
for and raises no error, so the exchange is set to a sum and a division of its own.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import torch.distributed as dist
from pydantic import Field
from torch.utils._pytree import tree_map

from backends.base import Availability, BackendError, EngineSettings, Optimization, check_extra
from backends.checks.traffic import Exchange, counting_torch
from backends.declared import declared
from backends.process.rank import ProcessFacts
from backends.shared.checkpoint import write_state
from backends.shared.step import StepBackend
from backends.shared.step_parts import DTYPES, global_norm
from backends.torch.collectives import TorchCollectives, broadcast_tensors
from backends.torch.rendezvous import choose_device, join, leave
from backends.torch.tuning import fsdp2_candidates
from backends.tuning import Candidate, Situation


@declared(BackendError, "fsdp2: ")
class Fsdp2Settings(EngineSettings):
    """Settings of FSDP2.

    Args:
        reshard_after_forward: free the whole parameters after forward and gather them again in backward (ZeRO-3), or
            keep them (ZeRO-2's traffic).
        wrap_min_parameters: blocks of a ModuleList, and linear or convolution layers outside of them, with at least so
            many trainable parameters are gathered on their own; the rest with the root.
        cpu_offload: shards and optimizer state live on the CPU.
        forward_prefetch: groups whose weights are asked for before the current one computes, in the order of their
            definition; 0 = as torch does it: the next one while this one computes.
        gather_dtype: ``bf16`` gathers weights in bf16, and rounds norms and biases with them, where the job computes in
            bf16; "" = fp32.
        extra: passed to ``fully_shard`` as it is.
    """

    reshard_after_forward: bool = True
    wrap_min_parameters: Annotated[int, Field(ge=0)] = 1_000_000
    cpu_offload: bool = False
    forward_prefetch: Annotated[int, Field(ge=0, le=8)] = 0
    gather_dtype: Literal["", "bf16"] = ""

    def __post_init__(self) -> None:
        if self.extra:
            from torch.distributed.fsdp import fully_shard

            check_extra(self, signature(fully_shard).parameters, "fully_shard")


class Fsdp2Backend(TorchCollectives, StepBackend):
    """All-gather before use, reduce-scatter after backward, each rank updates its own shard."""

    name = "fsdp2"
    Settings = Fsdp2Settings
    settings: Fsdp2Settings

    def __init__(
        self, settings: EngineSettings, facts: ProcessFacts, *, device: str = "auto", timeout_s: float = 300.0
    ) -> None:
        super().__init__(settings, facts, device=device, timeout_s=timeout_s)
        self.device = choose_device(device, facts.local_rank)
        self._library = join(facts, self.device, timeout_s)

    @classmethod
    def availability(cls) -> Availability:
        try:
            from torch.distributed.fsdp import fully_shard  # noqa: F401
        except ImportError:
            return Availability(usable=False, reason="this torch has no fully_shard: install torch >= 2.11")
        return Availability(usable=True, version=torch.__version__)

    @classmethod
    def check_job(
        cls, settings: EngineSettings, optimization: Optimization, *, world_size: int, micro_batch: int, launcher: str
    ) -> None:
        super().check_job(settings, optimization, world_size=world_size, micro_batch=micro_batch, launcher=launcher)
        assert isinstance(settings, Fsdp2Settings)
        if settings.gather_dtype and settings.gather_dtype != optimization.precision:
            raise BackendError(
                f"fsdp2: gather_dtype {settings.gather_dtype} needs --precision {settings.gather_dtype}, the job "
                f"trains in {optimization.precision}"
            )

    @classmethod
    def candidates(cls, settings: EngineSettings, situation: Situation) -> tuple[Candidate, ...]:
        return fsdp2_candidates(situation)

    # -- hooks of the shared step --------------------------------------------------------------------------------
    def broadcast_model(self, model: torch.nn.Module) -> None:
        broadcast_tensors([t.data for t in [*model.parameters(), *model.buffers()] if t.numel()])

    def shard_model(self, model: torch.nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard

        optimization = self.optimization
        options: dict[str, Any] = {
            "mesh": init_device_mesh(self.device.type, (self.world_size,)),
            "reshard_after_forward": self.settings.reshard_after_forward,
            "ignored_params": {p for p in model.parameters() if not p.requires_grad},
            **self.settings.extra,
        }
        if optimization.precision_mode == "native" and optimization.precision != "fp32":
            options["mp_policy"] = MixedPrecisionPolicy(
                param_dtype=DTYPES[optimization.precision], reduce_dtype=torch.float32
            )
        elif self.settings.gather_dtype:  # what is computed in which type stays autocast's affair
            options["mp_policy"] = MixedPrecisionPolicy(
                param_dtype=DTYPES[self.settings.gather_dtype], reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        if self.settings.cpu_offload:
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
        self._groups = list(_groups(model, self.settings.wrap_min_parameters))
        for module in [*(m for _, m in self._groups), model]:
            fully_shard(module, **options)
        self._prefetch_forward()
        if self.device.type == "cpu":
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.set_force_sum_reduction_for_comms(True)

    def _prefetch_forward(self) -> None:
        """Lets each group ask for the weights of the next ones, as many as `forward_prefetch` says."""
        ahead, modules = self.settings.forward_prefetch, [cast(Any, module) for _, module in self._groups]
        for index, module in enumerate(modules):
            if ahead and modules[index + 1 :]:
                module.set_modules_to_forward_prefetch(modules[index + 1 : index + 1 + ahead])

    def no_sync_context(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        self._model.set_requires_gradient_sync(is_last)
        self._model.set_is_last_backward(is_last)
        return contextlib.nullcontext()

    def local_gradients(self) -> list[torch.Tensor]:
        return [_local(gradient) for gradient in super().local_gradients()]

    def overflow_on_any_rank(self, overflow: torch.Tensor) -> torch.Tensor:
        flag = overflow.float().to(self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return (flag > 0).to(overflow.device)

    def clip_gradients(self, grads: list[torch.Tensor]) -> torch.Tensor:
        """Each rank holds a part of every gradient: squares are summed over the ranks before the root is taken."""
        squares = global_norm(grads, self.device).to(self.device) ** 2
        dist.all_reduce(squares)
        norm = squares.sqrt()
        if self.optimization.clip_norm is not None and grads:
            # torch's clip_grads_with_norm_, on the shards: given sharded tensors it would scale them one by one.
            factor = (self.optimization.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(grads, factor.to(grads[0].device))
        return norm

    def optimizer_step(self, overflow: torch.Tensor | None) -> None:
        # The fused kernels take no plain flag beside sharded tensors, so an fp16 step asks the host.
        if overflow is None or not bool(overflow):
            self._optimizer.step()

    # -- state ---------------------------------------------------------------------------------------------------
    def weights(self) -> dict[str, torch.Tensor]:
        return {
            name: p.full_tensor().detach().to("cpu", torch.float32, copy=True) for name, p in self._parameters.items()
        }

    def save(self, folder: Path) -> None:
        """One file a rank: its shards of weights and optimizer state."""
        write_state(folder / self._shard_name(), self._state())
        self.barrier()

    def load(self, folder: Path) -> None:
        self._load_state(self._read(folder / self._shard_name()))
        self.barrier()

    def _shard_name(self) -> str:
        return f"state-{self.rank}-of-{self.world_size}.pt"

    def local_weights(self) -> dict[str, torch.Tensor]:
        return {name: _local(parameter.detach()) for name, parameter in self._parameters.items()}

    def optimizer_state(self) -> dict[str, Any]:
        return tree_map(lambda leaf: _local(leaf).cpu() if torch.is_tensor(leaf) else leaf, super().optimizer_state())

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Puts this rank's plain shards back behind tensors that are sharded as their weights are.

        torch.distributed.checkpoint.state_dict is not used for it: it steps a fresh optimizer once, with zero
        gradients, to have a state that it can fill, and is no shorter. The files of torch.distributed.checkpoint
        unpickle whatever they hold; ours load nothing but tensors and plain containers.
        """
        from torch.distributed.tensor import DTensor

        weights = list(self._parameters.values())
        for index, entry in state["state"].items():
            weight = weights[int(index)]
            for name, value in entry.items():
                if torch.is_tensor(value) and value.shape == _local(weight).shape and value.dim() > 0:
                    entry[name] = DTensor.from_local(
                        value.to(_local(weight).device),
                        weight.device_mesh,
                        weight.placements,
                        shape=weight.shape,
                        stride=weight.stride(),
                    )
        super().load_optimizer_state(state)

    def describe(self) -> dict[str, Any]:
        native = self.optimization.precision_mode == "native" and self.optimization.precision != "fp32"
        return super().describe() | {
            "communication": self._library,
            "wire_dtype": "fp32",
            "gather_dtype": self.optimization.precision if native else self.settings.gather_dtype or "fp32",
            "forward_prefetch": self.settings.forward_prefetch,
            "sharded_groups": [name for name, _ in self._groups] + ["(root)"],
            "reshard_after_forward": self.settings.reshard_after_forward,
            "reduction": "sum, then divide" if self.device.type == "cpu" else "average",
            "trainable_parameters": sum(p.numel() for p in self._parameters.values()),
        }

    def counting_exchange(self) -> contextlib.AbstractContextManager[Exchange]:
        return counting_torch()

    def close(self) -> None:
        leave()


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _groups(model: torch.nn.Module, minimum: int) -> Iterable[tuple[str, torch.nn.Module]]:
    """Modules that are gathered on their own: blocks of a ModuleList, linear and convolution layers outside of them.

    A block is gathered as a whole, as torchtitan does: a group for every layer within it made 168 small collectives
    a pass out of 24 on a transformer of 608 M parameters, and the step 5 times as long on two H100.
    Only modules that are surely called (``module(x)``) qualify, because the gathering hangs on that call. A module that
    shares a parameter with another one (tied embeddings) stays with the root: in a group of its own it would be given
    a shard that the other one does not see.
    """
    shared = _shared(model)
    leaves = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    blocks = {id(block) for m in model.modules() if isinstance(m, torch.nn.ModuleList) for block in m}
    chosen: list[str] = []
    for name, module in model.named_modules():  # outer before inner
        if module is model or not (isinstance(module, leaves) or id(module) in blocks):
            continue
        if any(name.startswith(f"{outer}.") for outer in chosen):
            continue
        if not shared.isdisjoint(map(id, module.parameters())):
            continue
        if sum(p.numel() for p in module.parameters() if p.requires_grad) >= minimum:
            chosen.append(name)
            yield name, module


def _shared(model: torch.nn.Module) -> set[int]:
    """The ids of parameters that more than one module holds."""
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return {parameter for parameter, count in holders.items() if count > 1}
