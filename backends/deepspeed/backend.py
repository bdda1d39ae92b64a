"""DeepSpeed: ZeRO stages 0 to 3, offload, precision matched (``torch_autocast``) or native.

What DeepSpeed does by itself differs from the other engines in ways that its source shows; each is levelled here and
written into `describe()["levelled"]`:

- ``engine.backward`` divides by the accumulation steps, so the loss is handed over undivided.
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
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from backends.base import Availability, Backend, BackendError, EngineSettings, Optimization, StepReport
from backends.checks.traffic import Exchange, counting_torch
from backends.deepspeed.check import check_configuration
from backends.deepspeed.compile_ops import build_adam, to_compile
from backends.deepspeed.config import CHANGE_ONE, DeepSpeedSettings, check_wire, from_job, lowers_wire, merge
from backends.deepspeed.facts import departures, levelled, native_rule, zero_facts
from backends.deepspeed.half_precision import StageZeroScaler, autocast_inside, owners, shared_scale, stage_zero_masters
from backends.deepspeed.library import (
    forget,
    forget_autocast,
    import_deepspeed,
    linear,
    refusals,
    skip_shared_memory_op,
)
from backends.deepspeed.tuning import candidates
from backends.deepspeed.user_json import check_keys, user_config
from backends.process.rank import ProcessFacts
from backends.shared.checkpoint import read_manifest, write_manifest
from backends.shared.same_training import of_training
from backends.shared.step import batch_norm_facts, describe_scale
from backends.shared.step_parts import (
    LossMeter,
    build_optimizer,
    check_micro_batches,
    global_norm,
    gradients,
    optimizer_facts,
    set_lr,
    trainable,
)
from backends.torch.collectives import TorchCollectives
from backends.torch.rendezvous import choose_device, join, leave
from backends.tuning import Candidate, Situation

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
        self._user = user_config(settings)
        self.device = choose_device(device, facts.local_rank)
        if self.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed takes a GPU that it finds
        # DeepSpeed reads these whoever launched it, and must not find those of another launcher.
        os.environ["LOCAL_RANK"] = str(facts.local_rank)
        os.environ["RANK"] = str(facts.rank)
        os.environ["WORLD_SIZE"] = str(facts.world_size)
        self._library = join(facts, self.device, timeout_s)
        self.engine: Any = None
        self._deepspeed = import_deepspeed()
        skip_shared_memory_op(self._deepspeed)
        kind = "nccl" if self.device.type == "cuda" else "gloo"
        self._deepspeed.init_distributed(dist_backend=kind, auto_mpi_discovery=False, verbose=False)

    @classmethod
    def availability(cls) -> Availability:
        if importlib.util.find_spec("deepspeed") is None:
            return Availability(
                usable=False, reason="DeepSpeed is not installed: pip install deepspeed, or run make setup"
            )
        return Availability(usable=True, version=importlib.metadata.version("deepspeed"))

    @classmethod
    def check_job(
        cls, settings: EngineSettings, optimization: Optimization, *, world_size: int, micro_batch: int, launcher: str
    ) -> None:
        super().check_job(settings, optimization, world_size=world_size, micro_batch=micro_batch, launcher=launcher)
        assert isinstance(settings, DeepSpeedSettings)
        check_configuration(settings, optimization, world_size=world_size, micro_batch=micro_batch)

    @classmethod
    def candidates(cls, settings: EngineSettings, situation: Situation) -> tuple[Candidate, ...]:
        assert isinstance(settings, DeepSpeedSettings)
        return candidates(settings.zero_stage, situation)

    @classmethod
    def start_note(cls, settings: EngineSettings, optimization: Optimization) -> str:
        assert isinstance(settings, DeepSpeedSettings)
        if settings.implementation(optimization) != "deepspeed":
            return ""
        return to_compile("cpu_adam" if settings.offload_optimizer != "none" else "fused_adam")

    # -- training ------------------------------------------------------------------------------------------------
    def prepare(self, model: torch.nn.Module, optimization: Optimization) -> None:
        self.optimization = optimization
        self._step = 0
        self._module: Any = model.to(self.device)
        self._native = optimization.precision != "fp32" and optimization.precision_mode == "native"
        named = trainable(model)
        self._names = list(named)
        self._buffers_from_rank_0()
        config = self._configuration(optimization, named)
        self._batch_claims = config.pop("_batch", None)
        self._config = config
        if self._native:
            autocast_inside(model, optimization, self.device)
        forget_autocast()
        plain_linear = functional.linear
        with refusals():
            self.engine = self._initialized(config, named)
        # Stage 3 replaces torch.nn.functional.linear for the whole process and for good: other models (evaluation,
        # other engines) would compute with it too. It is put back here and taken out for this engine's own passes.
        self._linear, functional.linear = functional.linear, plain_linear
        self._inner = self.engine.optimizer
        self._grad_norm: torch.Tensor | float | None = None
        stage = self.settings.zero_stage
        self._scale = shared_scale(optimization, self.device, zero_stage=stage)
        if self._scale is not None and stage > 0:
            self._inner.torch_autocast_gradscaler = None  # see the module's text
        self._z0_scaler: StageZeroScaler | None = None
        if stage == 0 and not self._native:
            self._observe_stage_zero()

    def _initialized(self, config: dict[str, Any], named: dict[str, torch.nn.Parameter]) -> Any:
        """DeepSpeed's engine around the model. Its optimizer is ours, unless `config` names DeepSpeed's own."""
        optimizer = None
        if "optimizer" in config:
            build_adam(on_cpu=self.settings.offload_optimizer != "none")
        else:
            optimizer = build_optimizer(named.values(), self.optimization, self._optimizer_device())
        engine, *_ = self._deepspeed.initialize(
            model=self._module,
            optimizer=optimizer,
            model_parameters=list(named.values()),
            config=config,
            dist_init_required=False,
        )
        return engine

    def _configuration(self, optimization: Optimization, named: dict[str, torch.nn.Parameter]) -> dict[str, Any]:
        """The job's configuration, with the user's json and the extra keys under it."""
        check_wire(self.settings, optimization)
        safe = owners(self._module) if lowers_wire(self.settings, optimization) else None
        job = from_job(self.settings, optimization, world_size=self.world_size, safe_modules=safe)
        if not self._user:
            return job
        origin = self.settings.config or "deepspeed extra"
        check_keys(self._user, origin)
        return merge(self._user, job, origin=origin, optimization=optimization)

    def _optimizer_device(self) -> torch.device:
        """Where the optimizer's state lives: decides between torch's fused and foreach kernels."""
        return torch.device("cpu") if self.settings.offload_optimizer != "none" else self.device

    def _buffers_from_rank_0(self) -> None:
        """DeepSpeed broadcasts parameters when it is initialized, but not buffers."""
        from backends.torch.collectives import broadcast_tensors

        broadcast_tensors([buffer for buffer in self._module.buffers() if buffer.numel()])

    def _observe_stage_zero(self) -> None:
        """Stage 0 clips and drops the norm; keep it. fp16: put the shared scale rule in the scaler's place."""
        if self._scale is not None:
            self._z0_scaler = StageZeroScaler(self._scale, self._module, self._keep_norm)
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
            if self.settings.zero_stage > 0:
                used_scale = float(scale.scale)  # on the host, where ZeRO compares it: no wait for the device
                self._inner.custom_loss_scaler = True
                self._inner.external_loss_scale = used_scale
            else:
                used_scale = scale.scale.clone()
        elif self._native and optimization.precision == "fp16":
            used_scale = float(self._inner.loss_scale)
        meter, share = LossMeter(), 1.0 / len(micro_batches)
        with linear(self._linear):
            for index, batch in enumerate(micro_batches):
                parts = engine(batch)
                engine.backward(parts["loss"])
                if index + 1 == len(micro_batches) and self._norm_is_ours():
                    self._grad_norm = global_norm(gradients(engine.module.parameters()), self.device)
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
            self._scale.update(torch.tensor(skipped))
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
            masters = stage_zero_masters(self._inner)
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
            write_manifest(folder, engine=self.name, world_size=self.world_size, training=self._training(), facts=extra)
        self.barrier()

    def load(self, folder: Path) -> None:
        manifest = read_manifest(folder, engine=self.name, world_size=self.world_size, training=self._training())
        try:
            path, _ = self.engine.load_checkpoint(
                str(folder), tag=_TAG, load_module_strict=False, load_lr_scheduler_states=False
            )
        except Exception as error:  # what is raised over a damaged file has no common class
            raise BackendError(f"{folder}: DeepSpeed cannot read it ({' '.join(str(error).split())[:160]})") from None
        if path is None:
            raise BackendError(f"{folder}: DeepSpeed finds no checkpoint in it")
        self._step = manifest["step"]
        if self._scale is not None:
            self._scale.load(manifest["scale"])
        self.barrier()

    def _training(self) -> dict[str, Any]:
        """What decides the arithmetic, and how the files are cut: a checkpoint is only resumed where it is the same."""
        return of_training(self.optimization) | {
            "zero_stage": self.settings.zero_stage,
            "communication_data_type": self.settings.communication_data_type,
            "tensors": len(self._names),
        }

    # -- records -------------------------------------------------------------------------------------------------
    def describe(self) -> dict[str, Any]:
        optimization, settings = self.optimization, self.settings
        wire = settings.communication_data_type or ("fp32" if not self._native else optimization.precision)
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
            "zero_optimizer": type(self._inner).__name__,
            "optimizer": optimizer_facts(getattr(self._inner, "optimizer", self._inner)),
            "clipping": "deepspeed" if optimization.clip_norm is not None else None,
            "accumulation": optimization.accumulation,
            **zero_facts(self.engine),
            "offload_optimizer": settings.offload_optimizer,
            "offload_param": settings.offload_param,
            "loss_scale_rule": describe_scale(self._scale) or native_rule(optimization, self._config),
            "levelled": levelled(settings, optimization),
            "departures": departures(settings, optimization, self.engine._config.zero_config),
            "batch_norm_statistics": batch_norm_facts(self._module),
            "config": self._config,
            "settings": settings.to_dict(),
        }
        return json.loads(json.dumps(facts, default=str))

    def counting_exchange(self) -> AbstractContextManager[Exchange]:
        return counting_torch()

    def release(self) -> None:
        if self.engine is not None:
            self.engine.destroy()
            forget(self.engine)
        self.engine = self._inner = self._module = None

    def close(self) -> None:
        self.release()
        leave()


def _samples(batch: Any) -> int:
    """How many samples a micro-batch holds: of a pair of tensors, the length of the first."""
    return len(batch[0]) if isinstance(batch, (tuple, list)) else len(batch)
