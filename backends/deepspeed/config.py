"""DeepSpeed's configuration: made from the job, merged with a user's own json, with one source of truth.

Keys that the job decides (batch split, accumulation, clipping, precision, optimizer, schedule, and every setting that
was asked for) are owned by the job: a json may say "auto" there, or the same value, and is refused by name otherwise.
All other keys pass through to DeepSpeed untouched; `backends.deepspeed.user_json` has read and checked them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from backends.base import BackendError, EngineSettings, Optimization
from backends.declared import declared, unknown

CHANGE_ONE = 'change one of them, or write "auto"'

Offload = Literal["none", "cpu", "nvme"]
Elements = Annotated[int | None, Field(ge=1)]


@declared(BackendError, "deepspeed: ")
class DeepSpeedSettings(EngineSettings):
    """Settings of DeepSpeed; None = its own default, given in brackets.

    Args:
        zero_stage: what is sharded: 0 nothing, 1 optimizer states, 2 and gradients, 3 and parameters.
        offload_optimizer, offload_param: none, cpu or nvme (parameters: stage 3 only); pin_memory, nvme_path: how and
            where to.
        reduce_bucket_size, allgather_bucket_size: elements, not bytes, exchanged at a time [5e8].
        overlap_comm: reduce while backward goes on [stage 3 only].
        reduce_scatter, contiguous_gradients, round_robin_gradients: see DeepSpeed's ZeRO page [true, true, false].
        use_multi_rank_bucket_allreduce: stages 1 and 2 all-reduce buckets and keep a part; false = one reduce to each
            owner: less traffic, smaller messages [true].
        stage3_prefetch_bucket_size, stage3_param_persistence_threshold, stage3_max_live_parameters: see DeepSpeed's
            ZeRO-3 page.
        memory_efficient_linear: stage 3's own linear layer, which keeps no gathered weights for backward, but rounds
            elsewhere than torch's [true].
        communication_data_type: type of gradients on the wire; "" = that of the gradients.
        gradient_predivide_factor: splits the averaging before and after the sum.
        optimizer_impl: ``torch`` = the class that all engines use, ``deepspeed`` = FusedAdam or CPUAdam (compiled on
            first use), ``auto`` = torch in precision mode matched and deepspeed in native.
        config: a DeepSpeed json of the user's.
        extra: further keys of that json, merged over it.
    """

    zero_stage: Annotated[int, Field(ge=0, le=3, description="DeepSpeed's ZeRO stage, 0-3.")] = 2
    offload_optimizer: Offload = "none"
    offload_param: Offload = "none"
    pin_memory: bool = False
    nvme_path: str = ""
    reduce_bucket_size: Elements = None
    allgather_bucket_size: Elements = None
    overlap_comm: bool | None = None
    reduce_scatter: bool | None = None
    contiguous_gradients: bool | None = None
    round_robin_gradients: bool | None = None
    use_multi_rank_bucket_allreduce: bool | None = None
    stage3_prefetch_bucket_size: Annotated[int | None, Field(ge=0)] = None
    stage3_param_persistence_threshold: Annotated[int | None, Field(ge=0)] = None
    stage3_max_live_parameters: Annotated[int | None, Field(ge=0)] = None
    memory_efficient_linear: bool | None = None
    communication_data_type: Literal["", "fp32", "fp16", "bf16"] = ""
    gradient_predivide_factor: Annotated[float | None, Field(gt=0)] = None
    optimizer_impl: Literal["auto", "torch", "deepspeed"] = "auto"
    config: str = ""

    def __post_init__(self) -> None:
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise BackendError("deepspeed: offload_optimizer needs zero_stage 1, 2 or 3")
        if self.offload_param != "none" and self.zero_stage != 3:
            raise BackendError("deepspeed: offload_param needs zero_stage 3")
        if "nvme" in (self.offload_optimizer, self.offload_param) and not self.nvme_path:
            raise BackendError("deepspeed: offload to nvme needs nvme_path, a folder on the disk to use")

    def implementation(self, optimization: Optimization) -> str:
        """``torch`` or ``deepspeed``: whose optimizer class is used."""
        if self.optimizer_impl != "auto":
            return self.optimizer_impl
        return "deepspeed" if optimization.precision_mode == "native" and optimization.optimizer != "sgd" else "torch"


# Filled in by the job, but only known once a batch is seen: checked at the first step.
BATCH_KEYS = ("train_micro_batch_size_per_gpu", "train_batch_size")


def lowers_wire(settings: DeepSpeedSettings, optimization: Optimization) -> bool:
    """Whether gradients travel in the low type that autocast computes in."""
    matched = optimization.precision != "fp32" and optimization.precision_mode == "matched"
    return matched and settings.communication_data_type not in ("", "fp32")


def check_wire(settings: DeepSpeedSettings, optimization: Optimization) -> None:
    """Raises BackendError for a type on the wire that autocast cannot have."""
    if lowers_wire(settings, optimization) and settings.communication_data_type != optimization.precision:
        raise BackendError(
            f"deepspeed under {optimization.precision} autocast exchanges fp32 or {optimization.precision}, "
            f"not {settings.communication_data_type}: use communication_data_type={optimization.precision}"
        )


def from_job(
    settings: DeepSpeedSettings, optimization: Optimization, *, world_size: int, safe_modules: list[str] | None
) -> dict[str, Any]:
    """The configuration that the job decides; nothing that matters is left to a default that another engine lacks."""
    zero: dict[str, Any] = {"stage": settings.zero_stage}
    for name in (
        "reduce_bucket_size",
        "allgather_bucket_size",
        "overlap_comm",
        "reduce_scatter",
        "contiguous_gradients",
        "round_robin_gradients",
        "use_multi_rank_bucket_allreduce",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_max_live_parameters",
        "memory_efficient_linear",
    ):
        if getattr(settings, name) is not None:
            zero[name] = getattr(settings, name)
    for name in ("offload_optimizer", "offload_param"):
        device = getattr(settings, name)
        if device != "none":
            zero[name] = {"device": device, "pin_memory": settings.pin_memory}
            if device == "nvme":
                zero[name]["nvme_path"] = settings.nvme_path
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # the backend never sees sample counts before the first step
        "gradient_accumulation_steps": optimization.accumulation,
        "gradient_clipping": optimization.clip_norm if optimization.clip_norm is not None else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        # DeepSpeed's throughput timer waits for the GPU twice a micro-step; no other engine does that.
        "timers": {"throughput": {"enabled": False}},
    }
    if settings.communication_data_type:
        config["communication_data_type"] = settings.communication_data_type
    if settings.gradient_predivide_factor is not None:
        config["gradient_predivide_factor"] = settings.gradient_predivide_factor
    config |= _precision(optimization, safe_modules)
    if settings.implementation(optimization) == "deepspeed":
        config["optimizer"] = optimizer_block(optimization)
    return config


def _precision(optimization: Optimization, safe_modules: list[str] | None) -> dict[str, Any]:
    if optimization.precision == "fp32":
        return {}
    if optimization.precision_mode == "matched":
        # The list names the modules whose parameters travel in the low type; it does not change what is computed.
        return {
            "torch_autocast": {
                "enabled": True,
                "dtype": {"bf16": "bfloat16", "fp16": "float16"}[optimization.precision],
                "lower_precision_safe_modules": safe_modules or [],
            }
        }
    if optimization.precision == "bf16":
        return {"bf16": {"enabled": True}}
    rule = optimization.loss_scale
    return {
        "fp16": {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": rule.initial_power,
            "loss_scale_window": rule.window,
            "hysteresis": rule.hysteresis,
            "consecutive_hysteresis": False,
            "min_loss_scale": rule.floor,
        }
    }


def optimizer_block(optimization: Optimization) -> dict[str, Any]:
    """DeepSpeed's own optimizer. ``Adam`` means AdamW there unless told otherwise (deepspeed/runtime/engine.py)."""
    if optimization.optimizer == "sgd":
        raise BackendError("deepspeed has no SGD of its own: use optimizer_impl=torch with --optimizer sgd")
    params = {
        "lr": optimization.lr_at(0),
        "betas": list(optimization.betas),
        "eps": optimization.eps,
        "weight_decay": optimization.weight_decay,
    }
    if optimization.optimizer == "adam":
        return {"type": "Adam", "params": params | {"adam_w_mode": False}}
    return {"type": "AdamW", "params": params}


def merge(
    user: Mapping[str, Any], job: Mapping[str, Any], *, origin: str, optimization: Optimization
) -> dict[str, Any]:
    """`user` with the job's values put in. Raises BackendError that names the first value in disagreement."""
    user = dict(user)
    if user.get("gradient_allreduce_op", "auto") not in ("mean", "auto"):
        raise BackendError(
            f"{origin}: 'gradient_allreduce_op' is {user['gradient_allreduce_op']!r}, but every engine here averages "
            "gradients over the workers: remove it"
        )
    if user.get("gradient_allreduce_op") == "auto":
        user.pop("gradient_allreduce_op")
    deferred = {key: user.pop(key) for key in BATCH_KEYS if key in user and user[key] != "auto"}
    for key in BATCH_KEYS:
        user.pop(key, None)
    _check_precision(user, optimization, origin)
    _check_optimizer(user, optimization, origin)
    _check_scheduler(user, optimization, origin)
    merged = _fill(user, job, origin, "")
    _no_auto_left(merged, origin, "")
    if deferred:
        merged["_batch"] = deferred  # taken out again and checked by the backend
    return merged


def _fill(user: Mapping[str, Any], job: Mapping[str, Any], origin: str, prefix: str) -> dict[str, Any]:
    merged = dict(user)
    for key, wanted in job.items():
        path = f"{prefix}{key}"
        given = user.get(key, "auto")
        if given is None or given == "auto":
            merged[key] = wanted
        elif isinstance(wanted, Mapping):
            if not isinstance(given, Mapping):
                raise BackendError(f"{origin}: '{path}' is {given!r}, DeepSpeed takes an object there")
            merged[key] = _fill(given, wanted, origin, f"{path}.")
        elif path in _FREE:
            merged[key] = given
        elif not _same(given, wanted):
            raise BackendError(f"{origin}: '{path}' is {given!r} but the job says {wanted!r}: {CHANGE_ONE}")
    return merged


# What the job fills in as a good default but a user's file may change: nothing of the equivalence contract.
_FREE = {
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "timers.throughput.enabled",
    "zero_optimization.offload_optimizer.pin_memory",
    "zero_optimization.offload_param.pin_memory",
    "torch_autocast.lower_precision_safe_modules",
}


def _same(given: Any, wanted: Any) -> bool:
    if isinstance(given, str) or isinstance(wanted, str) or isinstance(given, bool) or isinstance(wanted, bool):
        return given == wanted
    if isinstance(given, (list, tuple)) and isinstance(wanted, (list, tuple)):
        return len(given) == len(wanted) and all(map(_same, given, wanted))
    try:
        return math.isclose(float(given), float(wanted), rel_tol=1e-12)
    except (TypeError, ValueError):
        return given == wanted


def _no_auto_left(node: Any, origin: str, prefix: str) -> None:
    """Hugging Face's "auto" that no setting of the job decides: in zero_optimization it is DeepSpeed's own default, as
    DeepSpeed itself reads it; elsewhere it is refused."""
    for key, value in list(node.items()):
        if isinstance(value, Mapping):
            _no_auto_left(value, origin, f"{prefix}{key}.")
        elif value == "auto" and prefix.startswith("zero_optimization."):
            del node[key]
        elif value == "auto":
            raise BackendError(
                f"{origin}: '{prefix}{key}' is \"auto\" but nothing in the job decides it: give a value or remove it"
            )


def _check_precision(user: dict[str, Any], optimization: Optimization, origin: str) -> None:
    """fp16 / bf16 / torch_autocast blocks: enabled must be what the job trains in, in the job's precision mode."""
    native = optimization.precision_mode == "native"
    for block, precision in (("fp16", "fp16"), ("bf16", "bf16"), ("bfloat16", "bf16"), ("torch_autocast", "")):
        given = user.get(block)
        if not isinstance(given, Mapping):
            continue
        if precision:
            wanted = native and optimization.precision == precision
        else:
            wanted = not native and optimization.precision != "fp32"
        enabled = given.get("enabled", "auto")
        if enabled not in ("auto", wanted):
            remedy = (
                ""
                if not enabled
                else (
                    f": use --precision {precision or 'bf16'} --precision-mode {'native' if precision else 'matched'}, "
                    'or write "auto"'
                )
            )
            raise BackendError(
                f"{origin}: '{block}.enabled' is {enabled} but the job trains in {optimization.precision}, "
                f"precision mode "
                f"{optimization.precision_mode}{remedy}"
            )
        if not wanted:
            user.pop(block)


def _check_block(block: Mapping[str, Any], name: str, known: tuple[str, ...], origin: str) -> None:
    for key in block:
        if key not in known:
            raise BackendError(f"{origin}: {unknown('key', f'{name}.{key}', [f'{name}.{item}' for item in known])}")
    if not isinstance(block.get("params") or {}, Mapping):
        raise BackendError(f"{origin}: '{name}.params' is {block['params']!r}, DeepSpeed takes an object there")


def _check_optimizer(user: dict[str, Any], optimization: Optimization, origin: str) -> None:
    """The optimizer block must say what the job says; the job's optimizer is what is built."""
    block = user.pop("optimizer", None)
    if not isinstance(block, Mapping):
        return
    _check_block(block, "optimizer", ("type", "params", "legacy_fusion"), origin)
    kind, params = block.get("type", "auto"), dict(block.get("params") or {})
    # DeepSpeed's own reading of the name: Adam is AdamW unless adam_w_mode is false.
    meaning = {"adamw": "adamw", "adam": "adamw" if params.get("adam_w_mode", True) else "adam", "sgd": "sgd"}
    if kind != "auto" and meaning.get(str(kind).lower()) != optimization.optimizer:
        raise BackendError(
            f"{origin}: 'optimizer.type' is {kind} but the job's optimizer is {optimization.optimizer}"
            + (" (DeepSpeed's Adam is AdamW unless adam_w_mode is false)" if str(kind).lower() == "adam" else "")
            + ': change one of them, or write "auto"'
        )
    wanted = {
        "lr": optimization.lr,
        "betas": optimization.betas,
        "eps": optimization.eps,
        "weight_decay": optimization.weight_decay,
    }
    for key, value in wanted.items():
        if key in params and params[key] != "auto" and not _same(params[key], value):
            shown = list(value) if isinstance(value, tuple) else value
            raise BackendError(
                f"{origin}: 'optimizer.params.{key}' is {params[key]!r} but the job says {shown!r}: {CHANGE_ONE}"
            )
    unknown = set(params) - set(wanted) - {"adam_w_mode", "torch_adam", "bias_correction", "foreach"}
    if unknown:
        raise BackendError(
            f"{origin}: 'optimizer.params.{sorted(unknown)[0]}' is not something the job can decide: remove it"
        )


def _check_scheduler(user: dict[str, Any], optimization: Optimization, origin: str) -> None:
    """The job's schedule is applied in every engine alike, so DeepSpeed's scheduler block may only repeat it."""
    block = user.pop("scheduler", None)
    if not isinstance(block, Mapping):
        return
    _check_block(block, "scheduler", ("type", "params"), origin)
    meaning = {
        "WarmupDecayLR": "warmup_linear",
        "WarmupCosineLR": "warmup_cosine",
        "WarmupLR": "constant",
        "auto": optimization.schedule,
    }
    kind, params = str(block.get("type", "auto")), dict(block.get("params") or {})
    if meaning.get(kind) != optimization.schedule:
        raise BackendError(
            f"{origin}: 'scheduler.type' is {kind} but the job's schedule is {optimization.schedule}: " + CHANGE_ONE
        )
    wanted = {
        "warmup_num_steps": optimization.warmup_steps,
        "total_num_steps": optimization.total_steps,
        "warmup_max_lr": optimization.lr,
        "warmup_min_lr": 0.0,
    }
    for key, value in wanted.items():
        if key in params and params[key] != "auto" and not _same(params[key], value):
            raise BackendError(
                f"{origin}: 'scheduler.params.{key}' is {params[key]!r} but the job says {value!r}: {CHANGE_ONE}"
            )
