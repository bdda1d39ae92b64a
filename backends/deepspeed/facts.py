"""What DeepSpeed really does in a job, for its record: the facts of ZeRO, where the engine was levelled with the
others, and where it departs from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.base import Optimization
from backends.deepspeed.config import DeepSpeedSettings


def zero_facts(engine: Any) -> dict[str, Any]:
    """Stage, bucket sizes and trained parameters of a prepared engine."""
    zero = engine._config.zero_config
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    return {
        "zero_stage": int(engine.zero_optimization_stage()),
        "reduce_bucket_elements": int(zero.reduce_bucket_size),
        "allgather_bucket_elements": int(zero.allgather_bucket_size),
        "overlap_comm": bool(zero.overlap_comm),
        "reduce_scatter": bool(zero.reduce_scatter),
        "trainable_parameters": sum(getattr(p, "ds_numel", p.numel()) for p in trained),
    }


def _native(optimization: Optimization) -> bool:
    return optimization.precision != "fp32" and optimization.precision_mode == "native"


def native_rule(optimization: Optimization, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """DeepSpeed's own fp16 rule where it is in force."""
    if not (_native(optimization) and optimization.precision == "fp16"):
        return None
    return {"implementation": "deepspeed DynamicLossScaler", **config["fp16"]}


def levelled(settings: DeepSpeedSettings, optimization: Optimization) -> list[str]:
    """Where the engine was made to do what the others do, in words."""
    done = ["throughput timer off: it waits for the device every micro-step"]
    if _native(optimization):
        done.append("forward inside autocast, so that fp32 batches meet half-precision weights")
    elif optimization.precision == "fp16":
        done.append(
            "fp16 scale from the shared rule: under ZeRO, DeepSpeed's autocast GradScaler clips scaled gradients "
            "and never shrinks"
        )
    if settings.zero_stage > 0 and optimization.precision == "fp32":
        done.append(
            "a non-finite norm skips the step (DeepSpeed's rule under ZeRO); the trainer stops on a non-finite loss"
        )
    return done


def departures(settings: DeepSpeedSettings, optimization: Optimization, zero: Any) -> list[str]:
    """How this is not quite the training of the other engines, from DeepSpeed's source.

    Args:
        zero: its ZeRO part.
    """
    precision, found = optimization.precision, []
    if settings.zero_stage == 3 and precision != "fp32" and zero.memory_efficient_linear:
        found.append(
            "stage 3's memory-efficient linear layer adds an fp32 bias to the rounded product where autocast "
            "rounds the bias too (LinearFunctionForZeroStage3.forward, deepspeed/runtime/zero/linear.py): "
            "memory_efficient_linear=false computes like the others but keeps gathered weights meanwhile"
        )
    if not _native(optimization):
        return found
    found.append(f"weights and gradients are {precision}; fp32 masters are updated and rounded back every step")
    if not settings.communication_data_type:
        found.append(f"gradients are summed in {precision} on the wire")
    if settings.zero_stage == 0:
        found.append(
            "stage 0 steps once with zero gradients when it is made (initialize_optimizer_states), so weights are "
            "decayed once more and Adam's step count begins at 1"
        )
        if precision == "fp16":
            found.append("stage 0 halves the scale at the first overflow: its optimizer knows no hysteresis")
    if precision == "fp16":
        found.append("the scale doubles after window + 1 good steps, and at its minimum an overflow ends the run")
    return found
