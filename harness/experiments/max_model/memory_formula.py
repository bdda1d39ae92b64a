"""The highest memory that a worker needs while it trains a shape, by arithmetic: what `harness experiment max-model`
starts from.

`harness.instruments.memory_theory` says what a worker HOLDS at the update (weights, gradients, optimizer state by ZeRO
stage). The largest model is decided by the highest moment of a step, so what comes and goes is added here, with its
source:

- activations: bytes that torch saves for backward, counted by saved_tensors_hooks on this repository's Llama: a token
  and layer 40 width + 16 mlp in fp32, 34 width + 8 mlp under autocast (attention fused); logits 12 bytes a token and
  vocabulary entry (logits, their log-softmax, its gradient);
- casts: autocast keeps a 2-byte copy of every linear weight until forward ends, so that backward finds it;
- DDP's buckets hold all gradients all the time, the others' are freed at the update;
- DeepSpeed's reduce bucket is allocated whole (5e8 elements), whatever the model (stage_1_and_2.py setup_buckets,
  stage3.py); it keeps an fp32 copy of its weights' part also where the weights are fp32; stages 1 and 2 flatten the
  gradients' part once more for the update, stage 1 beside all reduced gradients; stage 3 keeps up to 1e9 gathered
  weights and copies the gradients of a group of 1e9 weights;
- on the CPU, torch's multi-tensor Adam takes a temporary of the size of one moment; the GPU's fused kernel none.
- a whole model is built on each worker before it is sharded (`Backend.prepare` takes a module).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import backends
from harness.experiments.max_model.model_sizes import ModelSizes
from harness.experiments.max_model.shapes import Grid, Shape
from harness.instruments.memory_theory import expected_mib

_MIB = 2**20
_BUCKET = 500_000_000  # elements: reduce_bucket_size
_NAMES = {"single": "one process", "ddp": "DDP", "fsdp2": "FSDP2", "deepspeed": "DeepSpeed", "horovod": "Horovod"}
_DEEPSPEED_MIB = 60.0  # what its modules take in a process while it is initialized, measured on a CPU
_LIVE = 1_000_000_000  # elements: stage3_max_live_parameters, stage3_max_reuse_distance, sub_group_size


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An engine with its settings, as ``deepspeed:zero_stage=2+offload_optimizer=cpu`` names it."""

    backend: str
    engine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For tables: ``DeepSpeed ZeRO-2, optimizer on CPU``."""
        engine = dict(self.engine)
        text = _NAMES.get(self.backend, self.backend)
        if self.backend == "deepspeed":
            text += f" ZeRO-{engine.pop('zero_stage', 2)}"
        for key, what in (("offload_optimizer", "optimizer"), ("offload_param", "weights"), ("cpu_offload", "state")):
            where = engine.pop(key, "none")
            if where not in ("none", False):
                text += f", {what} on {'CPU' if where in ('cpu', True) else where}"
        return ", ".join([text, *(f"{key} {value}" for key, value in sorted(engine.items()) if key != "nvme_path")])

    @property
    def name(self) -> str:
        """For file names and keys."""
        return "-".join([self.backend, *(f"{key}-{value}" for key, value in sorted(self.engine.items()))])

    def option(self, name: str, default: Any) -> Any:
        """A setting of the engine's, `default` where the engine has none or leaves it to its library."""
        value = getattr(backends.settings_from(self.backend, dict(self.engine)), name, None)
        return default if value is None else value


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all tries of a search share. micro_batch: samples a worker and step. on_gpu: weights live on a GPU."""

    micro_batch: int = 1
    precision: str = "bf16"
    precision_mode: str = "matched"
    activation_checkpointing: bool = False
    on_gpu: bool = True


@dataclass(frozen=True, kw_only=True)
class Demand:
    """MiB of one worker at its highest moment. phase: which one. device, host: on the GPU and beside it (on a CPU all
    is device). held: weights, gradients, optimizer by `harness.instruments.memory_theory`."""

    device: float
    host: float
    phase: str
    held: Mapping[str, float]


def demand(setting: Setting, shape: Shape, workers: int, training: Training) -> Demand:
    """The predicted demand of one worker of `workers` that trains a shape of the grid."""
    return demand_of(setting, sizes_of_shape(setting, shape, training), workers, training)


def sizes_of_shape(setting: Setting, shape: Shape, training: Training) -> ModelSizes:
    """A shape of the grid, as the formula takes any model. What its forward pass keeps depends on the engine where that
    trains half-precision weights itself (precision_mode native)."""
    half = training.precision != "fp32"
    all_half = half and training.precision_mode == "native" and setting.backend in ("deepspeed", "fsdp2")
    casts = 2.0 * shape.linear if half and not all_half else 0.0
    return ModelSizes(
        trained=shape.parameters,
        block=shape.layer,
        table=shape.spec.vocab * shape.spec.width,
        forward_bytes=casts + _activations(shape, training, all_half),
    )


def demand_of(setting: Setting, sizes: ModelSizes, workers: int, training: Training) -> Demand:
    """The predicted demand of one worker of `workers` for a model of any kind."""
    phases, host = _phases(setting, sizes, workers, training)
    if not training.on_gpu:
        phases = {name: value + host for name, value in phases.items()}
        phases["build"] -= host  # nothing is offloaded yet
        if setting.backend == "deepspeed":
            phases = {name: value + _DEEPSPEED_MIB * _MIB for name, value in phases.items()}
        host = 0.0
    phase = max(phases, key=lambda name: phases[name])
    held = expected_mib(
        backend=setting.backend,
        trainable=sizes.trained,
        frozen_bytes=sizes.frozen_bytes,
        workers=workers,
        zero_stage=setting.option("zero_stage", None),
        precision=training.precision,
        precision_mode=training.precision_mode,
    )
    return Demand(device=phases[phase] / _MIB, host=host / _MIB, phase=phase, held=held)


def largest(
    setting: Setting, grid: Grid, workers: int, training: Training, *, device_mib: float, host_mib: float
) -> int:
    """The highest grid point whose predicted demand fits. device_mib: that a worker may use; host_mib: of all workers
    of the machine together, for what is offloaded."""

    def fits(point: int) -> bool:
        need = demand(setting, grid.shape(point), workers, training)
        return need.device <= device_mib and need.host * workers <= host_mib

    low, high = grid.point(1e4), grid.point(1e13)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _phases(setting: Setting, sizes: ModelSizes, workers: int, training: Training) -> tuple[dict[str, float], float]:
    """Bytes on the device by phase, and on the host."""
    native = training.precision != "fp32" and training.precision_mode == "native"
    temporary = 0.0 if training.on_gpu else 4.0  # bytes a parameter that the update touches
    if setting.backend == "deepspeed":
        phases, host = _deepspeed(setting, sizes, workers, native, temporary)
    else:
        phases, host = _torch(setting, sizes, workers, temporary)
    # ZeRO-3 shards frozen weights too, but what is being used is gathered: at most stage3_max_live_parameters.
    sharded = setting.backend == "deepspeed" and int(setting.option("zero_stage", 2)) == 3
    frozen = sizes.frozen_bytes / (workers if sharded else 1)
    passes = frozen
    if sharded:
        passes += min(sizes.frozen_bytes, 2.0 * float(setting.option("stage3_max_live_parameters", _LIVE)))
    return {name: value + (passes if name in ("forward", "backward") else frozen) for name, value in phases.items()} | {
        "build": phases["build"] + sizes.frozen_bytes
    }, host


def _torch(setting: Setting, sizes: ModelSizes, workers: int, temporary: float) -> tuple[dict[str, float], float]:
    """Of the trained weights in plain torch, DDP, FSDP2 and Horovod."""
    count, forward = sizes.trained, sizes.forward_bytes
    build = {"build": 4.0 * count}
    if setting.backend == "fsdp2":
        own = count / workers
        table = 4.0 * sizes.table
        unit = 4.0 * max(sizes.block, sizes.table)
        # Gathered beside the one in use; in backward also its gradient, whole, before and after the exchange.
        ahead, behind = 1, 3
        whole = 4.0 * count if not setting.option("reshard_after_forward", True) else 0.0
        state, step = 12 * own, (16 + temporary) * own
        if setting.option("cpu_offload", False):
            passes = table + (1 + ahead) * unit + whole
            return build | {"forward": passes + forward, "backward": passes + behind * unit}, (16 + 4) * own
        passes = table + ahead * unit + whole
        return build | {
            "forward": state + passes + forward,
            "backward": state + 4 * own + passes + behind * unit,
            "update": step,
        }, 0.0
    held = 4.0 * count if setting.backend == "ddp" else 0.0  # gradients outside backward
    fusion = 0.0
    if setting.backend == "horovod" and workers > 1:
        fusion = min(4.0 * count, float(setting.option("fusion_threshold_mb", 128)) * _MIB)
    return build | {
        "forward": 12.0 * count + held + forward + fusion,
        "backward": 16.0 * count + fusion,
        "update": (16.0 + temporary) * count + fusion,
    }, 0.0


def _deepspeed(
    setting: Setting, sizes: ModelSizes, workers: int, native: bool, temporary: float
) -> tuple[dict[str, float], float]:
    count, own, forward = float(sizes.trained), sizes.trained / workers, sizes.forward_bytes
    width = 2.0 if native else 4.0
    stage = int(setting.option("zero_stage", 2))
    elements = float(setting.option("reduce_bucket_size", _BUCKET))
    overlap = bool(setting.option("overlap_comm", stage == 3))
    bucket = width * elements * (2 if overlap and stage in (1, 2) else 1)
    build = {"build": 4.0 * count}
    if stage == 0:
        master = 4.0 if native else 0.0
        state = (width + master + 8) * count
        # engine.py `buffered_allreduce_fallback`, on one worker too: a bucket ends behind the tensor that overfills it.
        flat = width * min(elements + sizes.table, count)
        return build | {
            "forward": state + forward,
            "backward": state + width * count + flat,
            "update": state + (width + master + temporary) * count,
        }, 0.0
    offloaded = setting.option("offload_optimizer", "none") != "none"
    if stage < 3:
        state = width * count + (0.0 if offloaded else 12 * own)
        gradients = width * count if stage == 1 else (0.0 if offloaded else 4 * own)
        flat = 0.0 if offloaded else (4 if native else 8) * own + (width * count if stage == 1 else 0.0)
        host = (4 + width + 4 + 8 + 4) * own if offloaded else 0.0
        # The weights are copied into one flat tensor before the old ones are freed, where that fits.
        return build | {
            "forward": state + forward,
            "backward": state + gradients + bucket,
            "update": state + max(flat, (4 + temporary) * own if not offloaded else 0.0),
        }, host
    live = float(setting.option("stage3_max_live_parameters", _LIVE))
    gathered = width * min(live, count)
    weights = 0.0 if setting.option("offload_param", "none") != "none" else width * own
    # fp32 weights too: stage3.py compares a torch.device with a string, so it never shares them with the optimizer.
    master = 4.0 * own
    group = min(float(_LIVE), own)
    if offloaded:
        host = (4 + 8 + 4 + 4 + 4) * own + (width * own - weights)
        state, update = weights + bucket, weights + bucket
    else:
        host = width * own - weights
        state = weights + master + 8 * own + 4 * own + bucket
        update = state + (4 + temporary) * group
    return build | {
        "forward": state + gathered + forward,
        "backward": state + gathered + width * max(sizes.block, sizes.table),
        "update": update,
    }, host


def _activations(shape: Shape, training: Training, all_half: bool) -> float:
    """Bytes kept from forward to backward."""
    spec = shape.spec
    tokens = training.micro_batch * spec.length
    if training.precision == "fp32":
        layer = 40 * spec.width + 16 * spec.mlp
    else:
        layer = (20 if all_half else 28) * spec.width + 8 * spec.mlp
    stream = (2 if all_half else 4) * spec.width
    layers = spec.layers * stream + layer if training.activation_checkpointing else spec.layers * layer
    return float(tokens * (layers + 12 * spec.vocab))
