"""The optimization step that single, ddp, fsdp2 and horovod share; each fills in its own exchange.

One step: for each micro-batch, forward under autocast and backward of loss / accumulation (x fp16 scale); the exchange
of gradients, once; unscale; global norm and clip; optimizer step, unless an fp16 gradient overflowed; scale update.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_

from backends.base import Backend, BackendError, LossScale, Optimization, StepReport
from backends.shared.checkpoint import STATE, read_state, write_state
from backends.shared.loss_scale import DynamicScale
from backends.shared.same_training import TRAINING, of_training
from backends.shared.step_parts import (
    LossMeter,
    autocast,
    build_optimizer,
    check_micro_batches,
    conditional_step,
    global_norm,
    gradients,
    optimizer_facts,
    set_lr,
    trainable,
)

# torch.amp.GradScaler's defaults as a LossScale: what a user of torch alone would get (precision mode `native`).
TORCH_NATIVE_SCALE = LossScale(initial_power=16, window=2000, hysteresis=1, floor=0.0)


class StepBackend(Backend):
    """Holds the model, its optimizer and the step counter. Subclasses override the hooks below `prepare`."""

    device: torch.device

    def prepare(self, model: torch.nn.Module, optimization: Optimization) -> None:
        self.optimization = optimization
        self._step = 0
        self._model: Any = model.to(self.device)
        self._callable: Any = self._model
        self.broadcast_model(self._model)
        self.shard_model(self._model)
        self._parameters: dict[str, Any] = trainable(self._model)
        self._optimizer: Any = self.wrap_optimizer(
            build_optimizer(self._parameters.values(), optimization, self.device)
        )
        self._callable = self.wrap_model(self._model)
        self._scale: DynamicScale | None = None
        if optimization.precision == "fp16":
            native = optimization.precision_mode == "native"
            self._scale = DynamicScale(TORCH_NATIVE_SCALE if native else optimization.loss_scale, self.device)

    # -- hooks ---------------------------------------------------------------------------------------------------
    def broadcast_model(self, model: torch.nn.Module) -> None:
        """Hook of `prepare`: gives rank 0's weights and buffers to every rank, in place."""

    def shard_model(self, model: torch.nn.Module) -> None:
        """Hook of `prepare`: replaces whole parameters by shards, before the optimizer is built."""

    def wrap_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Hook of `prepare`: the optimizer that steps, such as one that exchanges gradients."""
        return optimizer

    def wrap_model(self, model: torch.nn.Module) -> Any:
        """Hook of `prepare`: what is called in the forward pass."""
        return model

    def no_sync_context(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """The context of one micro-batch's forward and backward pass: gradients are exchanged in the last one of a step
        (`is_last`) and accumulated locally in the others."""
        return contextlib.nullcontext()

    def autocast_context(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass: torch's autocast, nothing for fp32."""
        return autocast(self.optimization, self.device)

    def local_gradients(self) -> list[torch.Tensor]:
        """What this rank holds of the gradients, as plain tensors: all of them, or its shards.

        A parameter that took no part in the step counts as having gradient zero (so it is decayed): Horovod and ZeRO
        exchange zeros for it, and torch alone would leave it out.
        """
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return gradients(self._parameters.values())

    def local_weights(self) -> dict[str, torch.Tensor]:
        """What this rank holds of the trained weights by name, as plain tensors that share their memory: all of them,
        or its shards."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's ``state_dict`` with what this rank holds of it as plain tensors, for a checkpoint."""
        return self._optimizer.state_dict()

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """The reverse of `optimizer_state`."""
        self._optimizer.load_state_dict(state)

    def all_reduce_gradients(self) -> None:
        """When it returns, the gradients are the mean over all ranks. An engine that exchanges them in the backward
        pass waits here until that has ended."""

    def overflow_on_any_rank(self, overflow: torch.Tensor) -> torch.Tensor:
        """`overflow` of this rank's gradients -> of all. Where whole gradients are exchanged they already agree."""
        return overflow

    def clip_gradients(self, grads: list[torch.Tensor]) -> torch.Tensor:
        """Scales the gradients in place to a global L2 norm of at most the job's `clip_norm`.

        Args:
            grads: as `local_gradients` gives them.

        Returns:
            The norm before, 0-dim fp32, without a wait for the device.
        """
        norm = global_norm(grads, self.device)
        if self.optimization.clip_norm is not None:
            clip_grads_with_norm_(self._parameters.values(), self.optimization.clip_norm, norm)
        return norm

    def optimizer_step(self, overflow: torch.Tensor | None) -> None:
        """Updates the weights.

        Args:
            overflow: 0-dim bool, True where an fp16 gradient is not finite and the step is to be skipped; None where
                that cannot be (fp32, bf16).
        """
        if overflow is None:
            self._optimizer.step()
        else:
            conditional_step(self._optimizer, overflow)

    # -- the step ------------------------------------------------------------------------------------------------
    def train_step(self, micro_batches: Sequence[Any]) -> StepReport:
        check_micro_batches(micro_batches, self.optimization)
        return self._train(micro_batches, [1.0 / len(micro_batches)] * len(micro_batches))

    def _train(self, micro_batches: Sequence[Any], shares: Sequence[float]) -> StepReport:
        """One step in which micro-batch i counts `shares[i]` (they sum to 1, unless ranks hold unequal parts of the
        global batch: then the mean of their sums over the ranks is 1)."""
        optimization, scale = self.optimization, self._scale
        lr = optimization.lr_at(self._step)
        set_lr(self._optimizer, lr)
        meter = LossMeter()
        for index, (batch, share) in enumerate(zip(micro_batches, shares, strict=True)):
            with self.no_sync_context(is_last=index + 1 == len(micro_batches)):
                with self.autocast_context():
                    parts = self._callable(batch)
                loss = parts["loss"] * share if share != 1.0 else parts["loss"]
                (loss * scale.scale if scale is not None else loss).backward()
            meter.add(parts, share)
        self.all_reduce_gradients()
        grads = self.local_gradients()
        overflow: torch.Tensor | None = None
        used_scale: torch.Tensor | float = 1.0
        if scale is not None:
            used_scale = scale.scale.clone()
            overflow = self.overflow_on_any_rank(scale.unscale(grads))
        norm = self.clip_gradients(grads)
        del grads
        self.optimizer_step(overflow)
        if scale is not None and overflow is not None:
            scale.update(overflow)
        self._optimizer.zero_grad()
        self._step += 1
        return StepReport(
            losses=meter.mean(),
            grad_norm=norm,
            loss_scale=used_scale,
            skipped=overflow if overflow is not None else False,
            lr=lr,
        )

    @property
    def model(self) -> torch.nn.Module:
        return self._model

    # -- state ---------------------------------------------------------------------------------------------------
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in self._parameters.items()}

    def save(self, folder: Path) -> None:
        """Every rank holds the same state, so rank 0 writes it; the others wait until it is on disk."""
        if self.rank == 0:
            write_state(folder / STATE, self._state())
        self.barrier()

    def load(self, folder: Path) -> None:
        self._load_state(self._read(folder / STATE))
        self.barrier()

    def _read(self, path: Path) -> dict[str, Any]:
        """The state in `path`, which must be of this engine, world size and training."""
        return read_state(path, engine=self.name, world_size=self.world_size, training=self._training())

    def _training(self) -> dict[str, Any]:
        """What decides the arithmetic: a checkpoint is only resumed where it is the same."""
        return of_training(self.optimization)

    def _state(self) -> dict[str, Any]:
        buffers = {name: buffer.detach().cpu() for name, buffer in self._model.named_buffers()}
        return {
            "engine": self.name,
            "world_size": self.world_size,
            TRAINING: self._training(),
            "step": self._step,
            "weights": {name: value.cpu() for name, value in self.local_weights().items()},
            "buffers": buffers,
            "optimizer": self.optimizer_state(),
            "scale": self._scale.state() if self._scale is not None else None,
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        names, found = set(self._parameters), set(state["weights"])
        if names != found:
            odd = sorted(names ^ found)[0]
            raise BackendError(f"the checkpoint is of another model: it differs in tensor '{odd}'")
        if (state["scale"] is None) != (self._scale is None):
            raise BackendError(
                "the checkpoint was trained in another precision: resume with the precision it was saved with"
            )
        with torch.no_grad():
            for name, value in self.local_weights().items():
                if value.shape != state["weights"][name].shape:
                    raise BackendError(f"the checkpoint is of another model: tensor '{name}' has another shape")
                value.copy_(state["weights"][name])
            for name, buffer in self._model.named_buffers():
                if name in state["buffers"]:
                    buffer.copy_(state["buffers"][name])
        self.load_optimizer_state(state["optimizer"])
        # A step that was cut, say by a peer's death between backward and exchange, has left its gradients: the next
        # backward pass would add to them.
        self._optimizer.zero_grad()
        if self._scale is not None and state["scale"] is not None:
            self._scale.load(state["scale"])
        self._step = state["step"]

    # -- records -------------------------------------------------------------------------------------------------
    def describe(self) -> dict[str, Any]:
        optimization = self.optimization
        facts = {
            "engine": self.name,
            "torch": torch.__version__,
            "device": str(self.device),
            "world_size": self.world_size,
            "launcher": self.facts.launcher,
            "precision": optimization.precision,
            "precision_mode": optimization.precision_mode,
            "autocast": optimization.precision != "fp32",
            "master_weights": "fp32",
            "optimizer": optimizer_facts(self._optimizer),
            "clipping": "torch" if optimization.clip_norm is not None else None,
            "accumulation": optimization.accumulation,
            "zero_stage": None,
            "trainable_parameters": sum(p.numel() for p in self._parameters.values()),
            "loss_scale_rule": describe_scale(self._scale),
            "batch_norm_statistics": batch_norm_facts(self._model),
            "settings": self.settings.to_dict(),
        }
        return json.loads(json.dumps(facts, default=str))

    def close(self) -> None:
        """Nothing to leave."""


def describe_scale(scale: DynamicScale | None) -> dict[str, Any] | None:
    """The fp16 rule for a record; None where there is none."""
    if scale is None:
        return None
    rule = scale.rule
    return {
        "implementation": "backends.shared.loss_scale.DynamicScale",
        "initial": 2.0**rule.initial_power,
        "window": rule.window,
        "hysteresis": rule.hysteresis,
        "floor": rule.floor if math.isfinite(rule.floor) else 0.0,
    }


def batch_norm_facts(model: torch.nn.Module) -> str | None:
    """No engine synchronizes batch normalization: its statistics, hence its loss, depend on how samples are split."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    trained = [m for m in norms if any(p.requires_grad for p in m.parameters(recurse=False))]
    return "of each rank's own micro-batch" if trained else None
