"""What may be tried to make DeepSpeed faster within its ZeRO stage: buckets, and what overlaps with the backward pass.

None = DeepSpeed's own default is what every candidate is measured against.
"""

from __future__ import annotations

from backends.tuning import Candidate, Situation

_CONFIG = "DeepSpeed's docs/_pages/config-json.md, zero_optimization"
_BUCKETS = (
    "deepspeed/runtime/zero/stage_1_and_2.py: a bucket of 5e8 elements is full after the last gradient of most models"
)
_COMMON = "the ZeRO-2 configuration of Hugging Face's DeepSpeed guide, found in many repositories"
_STAGE_3 = "deepspeed/runtime/zero/config.py, stage3_*"


def candidates(zero_stage: int, situation: Situation) -> tuple[Candidate, ...]:
    """The candidates in the order in which they are tried.

    Args:
        zero_stage: it stays as it is. Stage 0 has no setting to try: its gradients are summed in one call after the
            backward pass (deepspeed/runtime/engine.py, allreduce_gradients).
        situation: the job; buckets are cut to its gradients. One worker exchanges nothing, but its gradients still
            pass through the buckets.
    """
    if zero_stage == 0:
        return ()
    return _stage_3(situation) if zero_stage == 3 else _stages_1_and_2(situation)


def _stages_1_and_2(situation: Situation) -> tuple[Candidate, ...]:
    quarter, sixteenth = _part(situation, 4), _part(situation, 16)
    return (
        _of(_BUCKETS, "several buckets, reduced while backward goes on", overlap_comm=True, reduce_bucket_size=quarter),
        _of(_CONFIG, "reduces while backward goes on", overlap_comm=True),
        _of(_BUCKETS, "smaller buckets: less memory to fill and copy", reduce_bucket_size=quarter),
        _of(_CONFIG, "gradients stay where they are: no copies into a buffer", contiguous_gradients=False),
        _of(_CONFIG, "a reduction to each owner: less traffic, more messages", use_multi_rank_bucket_allreduce=False),
        _of(_COMMON, "what most users copy", overlap_comm=True, reduce_bucket_size=200_000_000,
            allgather_bucket_size=200_000_000),
        _of(_BUCKETS, "many small buckets overlap most", overlap_comm=True, reduce_bucket_size=sixteenth),
        _of(_CONFIG, "updated weights are gathered in parts", allgather_bucket_size=quarter),
        _of(_CONFIG, "an all-reduce instead of reductions to owners", reduce_scatter=False),
        _of(_CONFIG, "the work of partitioning is spread over the ranks", round_robin_gradients=True),
        _of(_BUCKETS, "the finest buckets", reduce_bucket_size=sixteenth),
    )  # fmt: skip


def _stage_3(situation: Situation) -> tuple[Candidate, ...]:
    quarter, sixteenth = _part(situation, 4), _part(situation, 16)
    return (
        _of(_STAGE_3, "small weights stay on every rank: fewer gathers", stage3_param_persistence_threshold=1_000_000),
        _of(_STAGE_3, "weights are gathered further ahead", stage3_prefetch_bucket_size=500_000_000),
        _of(_CONFIG, "no second stream to wait for", overlap_comm=False),
        _of(_STAGE_3, "smaller buckets are reduced earlier", reduce_bucket_size=quarter),
        _of(_STAGE_3, "gathered weights are kept longer", stage3_max_live_parameters=4_000_000_000),
        _of(_STAGE_3, "weights are gathered less far ahead", stage3_prefetch_bucket_size=max(2, sixteenth)),
        _of(_CONFIG, "gradients stay where they are: no copies into a buffer", contiguous_gradients=False),
        _of(_STAGE_3, "only the smallest weights stay on every rank", stage3_param_persistence_threshold=10_000),
        _of(_STAGE_3, "many small buckets overlap most", reduce_bucket_size=sixteenth),
    )


def _of(source: str, why: str, **settings: object) -> Candidate:
    return Candidate(settings=settings, why=why, source=source)


def _part(situation: Situation, parts: int) -> int:
    """Elements of a bucket of which the gradients fill `parts`, to two digits, even (ZeRO's alignment)."""
    return max(1024, 2 * round(float(f"{situation.gradient_elements / parts:.2g}") / 2))
