"""DeepSpeed: ZeRO stages 0 to 3, offload, precision matched (``torch_autocast``) or native.

What DeepSpeed does by itself differs from the other engines in ways that its source shows; each is levelled here and
written into `describe()["levelled"]`:

- ``engine.backward`` divides by the accumulation steps (trap 2), so the loss is handed over undivided.
- Under ``torch_autocast`` with fp16, ZeRO 1-3 step one torch GradScaler a parameter group, but detect overflow and clip
  BEFORE it unscales: the norm that is clipped is still scaled (so gradients shrink by the scale), and the skipped step
  returns before ``GradScaler.update``, so the scale never falls (deepspeed/runtime/zero/stage_1_and_2.py, step and
  _optimizer_step). Instead DeepSpeed's external-scale hook (`override_loss_scale`) is fed from the one
  `loss_scale.DynamicScale` rule, which its overflow check, norm and clipping do honour. ZeRO-0 takes the same rule
  through its scaler attribute.
- the throughput timer waits for the GPU every micro-step; it is off.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from backends.base import Availability, Backend, BackendError, Optimization, StepReport
from backends.checkpoint import read_manifest, write_manifest
from backends.deepspeed_build import build_adam
from backends.deepspeed_config import (
    CHANGE_ONE,
    DeepSpeedSettings,
    explain_dead_keys,
    from_job,
    merge,
    read_user_config,
)
from backends.exchange import Exchange, counting_torch
from backends.loss_scale import DynamicScale
from backends.process import ProcessFacts
from backends.process_group import choose_device, join, leave
from backends.step_backend import batch_norm_facts, describe_scale
from backends.torch_collectives import TorchCollectives
from backends.torch_step import (
    LossMeter,
    arrange,
    autocast,
    build_optimizer,
    check_micro_batches,
    clip,
    gradients,
    optimizer_facts,
    set_lr,
    trainable,
)

_TAG = "engine"  # DeepSpeed's name for the folder inside ours


class DeepSpeedBackend(TorchCollectives, Backend):
    """One rank of a DeepSpeed job, under the deepspeed launcher, torchrun, mpirun or srun."""

    name = "deepspeed"
    Settings = DeepSpeedSettings
    settings: DeepSpeedSettings

    def __init__(
        self, settings: DeepSpeedSettings, facts: ProcessFacts, *, device: str = "auto", timeout_s: float = 300.0
    ) -> None:
        super().__init__(settings, facts, device=device, timeout_s=timeout_s)
        self._user = read_user_config(settings.config) if settings.config else {}
        explain_dead_keys(settings.extra, "deepspeed extra")
        self.device = choose_device(device, facts.local_rank)
        if self.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed takes a GPU that it finds
        # DeepSpeed reads these whoever launched it.
        os.environ.setdefault("LOCAL_RANK", str(facts.local_rank))
        os.environ.setdefault("RANK", str(facts.rank))
        os.environ.setdefault("WORLD_SIZE", str(facts.world_size))
        self._library = join(facts, self.device, timeout_s)
        self.engine: Any = None
        self._deepspeed = _import_deepspeed(facts.rank)
        _skip_shared_memory_op(self._deepspeed)
        kind = "nccl" if self.device.type == "cuda" else "gloo"
        self._deepspeed.init_distributed(dist_backend=kind, auto_mpi_discovery=False, verbose=False)

    @classmethod
    def availability(cls) -> Availability:
        if importlib.util.find_spec("deepspeed") is None:
            return Availability(
                usable=False, reason="DeepSpeed is not installed: pip install deepspeed, or run make setup"
            )
        return Availability(usable=True, version=importlib.metadata.version("deepspeed"))

    # -- training ------------------------------------------------------------------------------------------------
    def prepare(self, model: torch.nn.Module, optimization: Optimization) -> None:
        self.optimization = optimization
        self._step = 0
        arrange(model, optimization)
        self._module: Any = model.to(self.device)
        self._native = optimization.precision != "fp32" and optimization.precision_mode == "native"
        named = trainable(model)
        self._names = list(named)
        self._buffers_from_rank_0()
        config = self._configuration(optimization, named)
        self._batch_claims = config.pop("_batch", None)
        self._config = config
        optimizer = None
        if "optimizer" not in config:
            optimizer = build_optimizer(named.values(), optimization, self._optimizer_device())
        if self._native:
            _autocast_inside(model, optimization, self.device)
        _forget_autocast()
        plain_linear = functional.linear
        try:
            if "optimizer" in config:
                build_adam(on_cpu=self.settings.offload_optimizer != "none")
            self.engine, *_ = self._deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                model_parameters=list(named.values()),
                config=config,
                dist_init_required=False,
            )
        except BackendError:
            raise
        except (AssertionError, ValueError, NotImplementedError) as error:
            raise BackendError(f"deepspeed refuses this job: {' '.join(str(error).split())[:300]}") from None
        except Exception as error:  # what the compiler of an extension raises has no common class
            if not _is_build_failure(error):
                raise
            raise BackendError(
                f"deepspeed could not compile its optimizer ({' '.join(str(error).split())[:160]}): "
                "use optimizer_impl=torch, or install g++, ninja and, for a GPU, the CUDA toolkit of this torch"
            ) from None
        # Stage 3 replaces torch.nn.functional.linear for the whole process and for good: other models (evaluation,
        # other engines) would compute with it too. It is put back here and taken out for this engine's own passes.
        self._linear, functional.linear = functional.linear, plain_linear
        self._inner = self.engine.optimizer
        self._grad_norm: torch.Tensor | float | None = None
        self._scale = self._external_scale(optimization)
        self._z0_scaler: _StageZeroScaler | None = None
        if self.settings.zero_stage == 0 and not self._native:
            self._observe_stage_zero()

    def _configuration(self, optimization: Optimization, named: dict[str, torch.nn.Parameter]) -> dict[str, Any]:
        """The job's configuration, with the user's json and the extra keys under it."""
        wire = self.settings.communication_data_type
        safe: list[str] | None = None
        if optimization.precision != "fp32" and optimization.precision_mode == "matched" and wire not in ("", "fp32"):
            if wire != optimization.precision:
                raise BackendError(
                    f"deepspeed under {optimization.precision} autocast exchanges fp32 or {optimization.precision}, "
                    f"not {wire}: "
                    f"use communication_data_type={optimization.precision}"
                )
            safe = _owners(self._module)
        job = from_job(self.settings, optimization, world_size=self.world_size, safe_modules=safe)
        user = {**self._user, **self.settings.extra}
        if not user:
            return job
        return merge(user, job, origin=self.settings.config or "deepspeed extra", optimization=optimization)

    def _optimizer_device(self) -> torch.device:
        """Where the optimizer's state lives: decides between torch's fused and foreach kernels."""
        return torch.device("cpu") if self.settings.offload_optimizer != "none" else self.device

    def _buffers_from_rank_0(self) -> None:
        """DeepSpeed broadcasts parameters when it is initialized, but not buffers."""
        from backends.torch_collectives import broadcast_tensors

        broadcast_tensors([buffer for buffer in self._module.buffers() if buffer.numel()])

    def _external_scale(self, optimization: Optimization) -> DynamicScale | None:
        if optimization.precision != "fp16" or self._native:
            return None
        if self.settings.zero_stage > 0:
            self._inner.torch_autocast_gradscaler = None  # see the module's text
        return DynamicScale(optimization.loss_scale, self.device)

    def _observe_stage_zero(self) -> None:
        """Stage 0 clips and drops the norm; keep it. fp16: put the shared scale rule in the scaler's place."""
        if self._scale is not None:
            self._z0_scaler = _StageZeroScaler(self._scale, self._module, self._keep_norm)
            self.engine.torch_autocast_z0_gradscaler = self._z0_scaler
        engine = self.engine

        def clip_and_keep() -> None:
            from deepspeed.runtime.utils import clip_grad_norm_

            parameters = [p for p in engine.module.parameters() if p.requires_grad]
            self._keep_norm(clip_grad_norm_(parameters=parameters, max_norm=engine.gradient_clipping(), mpu=engine.mpu))

        engine.clip_fp32_gradients = clip_and_keep

    def _keep_norm(self, norm: torch.Tensor | float | None) -> None:
        self._grad_norm = norm

    def train_step(self, micro_batches: Sequence[Any]) -> StepReport:
        optimization, engine, scale = self.optimization, self.engine, self._scale
        check_micro_batches(micro_batches, optimization)
        if self._batch_claims:
            self._check_batch(micro_batches)
        lr = optimization.lr_at(self._step)
        set_lr(self._inner, lr)
        used_scale: torch.Tensor | float = 1.0
        if scale is not None:
            used_scale = scale.scale.clone()
            if self.settings.zero_stage > 0:
                self._inner.custom_loss_scaler = True
                self._inner.external_loss_scale = float(used_scale)  # ZeRO compares it on the host
        elif self._native and optimization.precision == "fp16":
            used_scale = float(self._inner.loss_scale)
        meter, share = LossMeter(), 1.0 / len(micro_batches)
        with _linear(self._linear):
            for index, batch in enumerate(micro_batches):
                parts = engine(batch)
                engine.backward(parts["loss"])
                if index + 1 == len(micro_batches) and self._norm_is_ours():
                    self._grad_norm = clip(gradients(engine.module.parameters()), None, self.device)
                engine.step()
                meter.add(parts, share)
        skipped = self._finish_scale()
        self._step += 1
        return StepReport(losses=meter.mean(), grad_norm=self._norm(), loss_scale=used_scale, skipped=skipped, lr=lr)

    def _norm_is_ours(self) -> bool:
        """Stage 0 without clipping and without a scaler computes no norm at all."""
        return (
            self.settings.zero_stage == 0
            and not self._native
            and self.optimization.clip_norm is None
            and self._scale is None
        )

    def _norm(self) -> torch.Tensor | float | None:
        if self.settings.zero_stage == 0 and not self._native:
            return self._grad_norm
        return self.engine.get_global_grad_norm()

    def _finish_scale(self) -> torch.Tensor | bool:
        """Moves the shared fp16 scale; says whether the step was dropped."""
        if self._z0_scaler is not None:
            return self._z0_scaler.overflow
        skipped = bool(getattr(self._inner, "overflow", False))
        if self._scale is not None:
            self._scale.update(torch.tensor(skipped, device=self.device))
        return skipped

    def _check_batch(self, micro_batches: Sequence[Any]) -> None:
        """The user's json named batch sizes: compare them with what is really trained."""
        micro = _samples(micro_batches[0])
        real = {
            "train_micro_batch_size_per_gpu": micro,
            "train_batch_size": micro * len(micro_batches) * self.world_size,
        }
        for key, claimed in (self._batch_claims or {}).items():
            if claimed != real[key]:
                raise BackendError(
                    f"{self.settings.config}: '{key}' is {claimed} but the job says {real[key]}: {CHANGE_ONE}"
                )
        self._batch_claims = None

    @property
    def model(self) -> torch.nn.Module:
        return self._module

    # -- state ---------------------------------------------------------------------------------------------------
    def weights(self) -> dict[str, torch.Tensor]:
        """ZeRO-3 gathers parameter by parameter; native half precision reads the fp32 masters."""
        named = dict(self._module.named_parameters())
        stage = self.settings.zero_stage
        if stage == 0 and self._native:
            masters = _stage_zero_masters(self._inner)
            return {name: masters[id(named[name])].detach().float().cpu().clone() for name in self._names}
        if stage == 3 or (stage > 0 and self._native):
            from deepspeed.utils import safe_get_full_fp32_param

            return {name: safe_get_full_fp32_param(named[name]).detach().float().cpu().clone() for name in self._names}
        return {name: named[name].detach().to("cpu", torch.float32, copy=True) for name in self._names}

    def save(self, folder: Path) -> None:
        """DeepSpeed's own files (one a rank where states are sharded) and a manifest that makes damage visible."""
        extra = {"step": self._step, "scale": self._scale.state() if self._scale is not None else None}
        self.engine.save_checkpoint(
            str(folder), tag=_TAG, client_state=extra, save_latest=False, exclude_frozen_parameters=True
        )
        self.barrier()
        if self.rank == 0:
            write_manifest(folder, engine=self.name, world_size=self.world_size, facts=self._identity() | extra)
        self.barrier()

    def load(self, folder: Path) -> None:
        manifest = read_manifest(folder, engine=self.name, world_size=self.world_size)
        for key, mine in self._identity().items():
            if manifest.get(key) != mine:
                raise BackendError(
                    f"{folder}: saved with {key} {manifest.get(key)}, this run has {mine}: resume with the same"
                )
        try:
            path, _ = self.engine.load_checkpoint(
                str(folder), tag=_TAG, load_module_strict=False, load_lr_scheduler_states=False
            )
        except (RuntimeError, ValueError, KeyError, EOFError, AssertionError, FileNotFoundError) as error:
            raise BackendError(f"{folder}: DeepSpeed cannot read it ({' '.join(str(error).split())[:160]})") from None
        if path is None:
            raise BackendError(f"{folder}: DeepSpeed finds no checkpoint in it")
        self._step = manifest["step"]
        if self._scale is not None:
            self._scale.load(manifest["scale"])
        self.barrier()

    def _identity(self) -> dict[str, Any]:
        return {
            "zero_stage": self.settings.zero_stage,
            "precision": self.optimization.precision,
            "precision_mode": self.optimization.precision_mode,
            "tensors": len(self._names),
        }

    # -- records -------------------------------------------------------------------------------------------------
    def describe(self) -> dict[str, Any]:
        optimization, engine = self.optimization, self.engine
        zero = engine._config.zero_config
        wire = self.settings.communication_data_type or ("fp32" if not self._native else optimization.precision)
        inner = getattr(self._inner, "optimizer", self._inner)
        facts = {
            "engine": self.name,
            "deepspeed": self._deepspeed.__version__,
            "torch": torch.__version__,
            "device": str(self.device),
            "world_size": self.world_size,
            "launcher": self.facts.launcher,
            "communication": self._library,
            "precision": optimization.precision,
            "precision_mode": optimization.precision_mode,
            "autocast": optimization.precision != "fp32",
            "master_weights": "fp32",
            "wire_dtype": wire,
            "zero_stage": int(engine.zero_optimization_stage()),
            "zero_optimizer": type(self._inner).__name__,
            "optimizer": optimizer_facts(inner),
            "clipping": "deepspeed" if optimization.clip_norm is not None else None,
            "accumulation": optimization.accumulation,
            "activation_checkpointing": optimization.activation_checkpointing,
            "compile": optimization.compile,
            "reduce_bucket_elements": int(zero.reduce_bucket_size),
            "allgather_bucket_elements": int(zero.allgather_bucket_size),
            "overlap_comm": bool(zero.overlap_comm),
            "reduce_scatter": bool(zero.reduce_scatter),
            "offload_optimizer": self.settings.offload_optimizer,
            "offload_param": self.settings.offload_param,
            "trainable_parameters": sum(
                getattr(p, "ds_numel", p.numel()) for p in self._module.parameters() if p.requires_grad
            ),
            "loss_scale_rule": describe_scale(self._scale) or self._native_rule(),
            "levelled": self._levelled(),
            "departures": self._departures(),
            "batch_norm_statistics": batch_norm_facts(self._module),
            "config": self._config,
            "settings": self.settings.to_dict(),
        }
        return json.loads(json.dumps(facts, default=str))

    def _native_rule(self) -> dict[str, Any] | None:
        if not (self._native and self.optimization.precision == "fp16"):
            return None
        return {"implementation": "deepspeed DynamicLossScaler", **self._config["fp16"]}

    def _levelled(self) -> list[str]:
        """Where the engine was made to do what the others do, in words."""
        done = ["throughput timer off: it waits for the device every micro-step"]
        if self._scale is not None:
            done.append(
                "fp16 scale from the shared rule: under ZeRO, DeepSpeed's autocast GradScaler clips scaled gradients "
                "and never shrinks"
            )
        if self._native:
            done.append("forward inside autocast, so that fp32 batches meet half-precision weights")
        if self.settings.zero_stage > 0 and self.optimization.precision == "fp32":
            done.append(
                "a non-finite norm skips the step (DeepSpeed's rule under ZeRO); the trainer stops on a non-finite loss"
            )
        return done

    def counting_exchange(self) -> AbstractContextManager[Exchange]:
        return counting_torch()

    def release(self) -> None:
        if self.engine is not None:
            self.engine.destroy()
            _forget(self.engine)
        self.engine = self._inner = self._module = None

    def _departures(self) -> list[str]:
        """How this is not quite the training of the other engines, from DeepSpeed's source."""
        precision, found = self.optimization.precision, []
        if (
            self.settings.zero_stage == 3
            and precision != "fp32"
            and self.engine._config.zero_config.memory_efficient_linear
        ):
            found.append(
                "stage 3's memory-efficient linear layer adds an fp32 bias to the rounded product where autocast "
                "rounds the bias too (LinearFunctionForZeroStage3.forward, deepspeed/runtime/zero/linear.py): "
                "memory_efficient_linear=false computes like the others but keeps gathered weights meanwhile"
            )
        if not self._native:
            return found
        found.append(f"weights and gradients are {precision}; fp32 masters are updated and rounded back every step")
        if not self.settings.communication_data_type:
            found.append(f"gradients are summed in {precision} on the wire")
        if self.settings.zero_stage == 0:
            found.append(
                "stage 0 steps once with zero gradients when it is made (initialize_optimizer_states), so weights are "
                "decayed once more and Adam's step count begins at 1"
            )
            if precision == "fp16":
                found.append("stage 0 halves the scale at the first overflow: its optimizer knows no hysteresis")
        if precision == "fp16":
            found.append("the scale doubles after window + 1 good steps, and at its minimum an overflow ends the run")
        return found

    def close(self) -> None:
        self.release()
        leave()


def _forget(engine: Any) -> None:
    """Lets go of the engine's tensors. ``destroy()`` leaves closures of the engine and of its optimizer in hooks that
    autograd keeps for good, so that neither is ever collected: the next engine of the process would have weights,
    masters and moments of this one beside its own (5.8 GiB more at 608 M parameters on an H100)."""
    for holder in (engine.optimizer, getattr(engine.optimizer, "parameter_offload", None), engine):
        if holder is not None:
            holder.__dict__.clear()


class _StageZeroScaler:
    """What engine.torch_autocast_z0_gradscaler must answer to, over the shared rule."""

    def __init__(self, scale: DynamicScale, module: torch.nn.Module, keep_norm: Any) -> None:
        self._rule, self._module, self._keep_norm = scale, module, keep_norm
        self.overflow = torch.zeros((), dtype=torch.bool, device=scale.scale.device)
        self._unscaled = False

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * self._rule.scale

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        self.overflow = self._rule.unscale(gradients(self._module.parameters()))
        self._unscaled = True

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        from backends.torch_step import conditional_step

        if not self._unscaled:  # without clipping DeepSpeed does not ask for it
            self.unscale_(optimizer)
            self._keep_norm(clip(gradients(self._module.parameters()), None, self.overflow.device))
        conditional_step(optimizer, self.overflow)

    def update(self) -> None:
        self._rule.update(self.overflow)
        self._unscaled = False


def _import_deepspeed(rank: int) -> Any:
    """DeepSpeed prints configuration and flattening notes at INFO on every rank; warnings are enough."""
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        # Where scripts/warm_deepspeed.py has compiled the extensions; the user-wide default is shared between clones.
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch 2.13 deprecates: one line a call and rank, nothing a user can
    # mend.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    return deepspeed


@contextmanager
def _linear(function: Any) -> Iterator[None]:
    """torch.nn.functional.linear is `function` within."""
    plain, functional.linear = functional.linear, function
    try:
        yield
    finally:
        functional.linear = plain


def _skip_shared_memory_op(deepspeed: Any) -> None:
    """On the CPU, DeepSpeed's communication set-up compiles a shared-memory all-reduce (20 s, needs g++) that only
    inference_all_reduce uses; training never calls it (deepspeed/comm/torch.py)."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _is_build_failure(error: Exception) -> bool:
    """Whether `error` came out of building or loading one of DeepSpeed's extensions."""
    words = ("Error building extension", "Unable to JIT load", "CUDA_HOME", "Ninja is required", "nvcc")
    return type(error).__name__ == "CUDAMismatchException" or any(word in str(error) for word in words)


def _forget_autocast() -> None:
    """torch_autocast leaves process-wide flags that a later engine with another precision would obey."""
    from deepspeed.runtime import torch_autocast

    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
    torch_autocast.TORCH_AUTOCAST_DTYPE = None


def _autocast_inside(model: torch.nn.Module, optimization: Optimization, device: torch.device) -> None:
    """Native half precision: every forward of `model` runs under autocast, which casts what is still fp32 (the
    batch)."""
    contexts: list[Any] = []

    def enter(*_: Any) -> None:
        context = autocast(optimization, device)
        context.__enter__()
        contexts.append(context)

    def leave_context(*_: Any) -> None:
        contexts.pop().__exit__(None, None, None)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave_context, always_call=True)


def _owners(model: torch.nn.Module) -> list[str]:
    """The classes of all modules that hold a trainable parameter themselves, as DeepSpeed wants them named."""
    found = {
        f"{type(module).__module__}.{type(module).__qualname__}"
        for module in model.modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
    }
    return sorted(found)


def _samples(batch: Any) -> int:
    """How many samples a micro-batch holds: of a pair of tensors, the length of the first."""
    return len(batch[0]) if isinstance(batch, (tuple, list)) else len(batch)


def _stage_zero_masters(optimizer: Any) -> dict[int, torch.Tensor]:
    """id(half parameter) -> its fp32 master in FP16_Optimizer (flat groups) or FP16_UnfusedOptimizer (lists)."""
    masters: dict[int, torch.Tensor] = {}
    for index, group in enumerate(optimizer.fp16_groups):
        if hasattr(optimizer, "fp32_groups"):
            copies = list(optimizer.fp32_groups[index])
        else:
            copies = list(torch._utils._unflatten_dense_tensors(optimizer.fp32_groups_flat[index], group))
        masters |= {id(half): master for half, master in zip(group, copies, strict=True)}
    return masters
