"""What a worker's memory should be by arithmetic: weights, gradients and optimizer state for each ZeRO stage.

After Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (arXiv:1910.02054,
section 3 and figure 1): of P trained parameters on N workers, stage 1 shards the optimizer state, 2 the gradients too,
3 the weights too. With Adam in mixed precision the state is 12 bytes a parameter (fp32 master, mean, variance); engines
that train fp32 weights need no master (8 bytes), but DeepSpeed's ZeRO keeps one also then (deepspeed/runtime/zero/
stage_1_and_2.py, single_partition_of_fp32_groups), so its state is 12 bytes in any precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MIB = 2**20
_STATES = {"adamw": 2, "adam": 2, "sgd": 0}  # fp32 moments a parameter


def expected_mib(
    *,
    backend: str,
    trainable: int,
    frozen_bytes: float,
    workers: int,
    zero_stage: int | None = None,
    precision: str = "fp32",
    precision_mode: str = "matched",
    optimizer: str = "adamw",
    momentum: bool = False,
) -> dict[str, float]:
    """MiB of ``weights``, ``gradients`` and ``optimizer`` that one worker should hold at the update.

    trainable: trained parameters. frozen_bytes: of the frozen weights and buffers before sharding. zero_stage:
    DeepSpeed's stage (None for the other engines; fsdp2 counts as 3 without a master copy)."""
    stage = 3 if backend == "fsdp2" else (zero_stage or 0)
    half = backend == "deepspeed" and precision != "fp32" and precision_mode == "native"
    width = 2 if half else 4
    moments = 4 * (_STATES.get(optimizer, 2) + int(momentum))
    master = 4 if half or (backend == "deepspeed" and stage > 0) else 0
    shard = max(1, workers)
    # ZeRO-3 shards frozen weights too; our FSDP2 leaves them whole, they are needed in every forward pass.
    own = width * trainable / (shard if stage >= 3 else 1)
    held = own + frozen_bytes / (shard if stage >= 3 and backend == "deepspeed" else 1)
    gradients = width * trainable
    return {
        "weights": held / _MIB,
        "gradients": (gradients / shard if stage >= 2 else gradients) / _MIB,
        "optimizer": (moments + master) * trainable / (shard if stage >= 1 else 1) / _MIB,
    }


def sizes(model: Any) -> dict[str, float]:
    """``trainable`` (parameters) and ``frozen_bytes`` of an unsharded torch module."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    return {"trainable": trainable, "frozen_bytes": float(frozen + buffers)}


def memory_by_kind(ranks: Sequence[Mapping[str, Any]], expected: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """``kinds`` and ``theory`` for result.json, MiB, the highest rank for each kind. ranks: what each rank measured:
    ``kinds`` (`harness.instruments.step_timing`) and ``device_mib``, its peak on the GPU, of which the rest is
    activations, buffers and what the allocator lost; on a CPU the rest is not known. {} where no step was sampled."""
    measured = [rank["kinds"] for rank in ranks if rank.get("kinds")]
    if not measured:
        return {}
    kinds = {name: max(own.get(name, 0.0) for own in measured) for name in ("weights", "gradients", "optimizer")}
    rest = [
        rank["device_mib"] - sum(rank["kinds"].values()) for rank in ranks if rank.get("kinds") and rank["device_mib"]
    ]
    if rest:
        kinds["activations"] = max(0.0, *rest)
    return {"kinds": kinds, "theory": dict(expected)}


def expected_mib_of(
    job: Mapping[str, Any], described: Mapping[str, Any], measured: Mapping[str, float]
) -> dict[str, float]:
    """`expected_mib` for a job, its engine's description and the `sizes` of its model."""
    return expected_mib(
        backend=str(job["backend"]),
        trainable=int(measured["trainable"]),
        frozen_bytes=measured["frozen_bytes"],
        workers=int(job["nodes"]) * int(job["slots"]),
        zero_stage=described.get("zero_stage"),
        precision=str(job["precision"]),
        precision_mode=str(job["precision_mode"]),
        optimizer=str(job["optimizer"]),
        momentum=False,
    )
