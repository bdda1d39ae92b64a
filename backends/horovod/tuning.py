"""What may be tried to make Horovod faster: when its background thread looks for gradients, and how it fuses them."""

from __future__ import annotations

from backends.tuning import Candidate, Situation

_TENSOR_FUSION = "Horovod's docs/tensor-fusion.rst"
_AUTOTUNE = "Horovod's docs/autotune.rst"
_GROUPS = "horovod pull requests 1130 and 2453: groups are sent whole, so that a short cycle makes no small messages"
_ASYNC = "horovod pull request 2963, measured on two H100 (issue 20)"
_MLPERF = "NVIDIA's MLPerf training submissions set HOROVOD_CYCLE_TIME=0.1 and one NCCL stream or two"
_HIERARCHICAL = "Horovod's docs/autotune.rst, hierarchical allreduce"


def candidates(situation: Situation) -> tuple[Candidate, ...]:
    """The candidates in the order in which they are tried; none for one worker, which exchanges nothing.

    Args:
        situation: the job; fusion is tried at sizes that cut its gradients into several messages.
    """
    if situation.workers == 1:
        return ()
    found: list[Candidate] = []
    if situation.device == "cuda":
        found.append(
            _of(_ASYNC, "the host queues the optimizer instead of waiting for the exchange", async_completion=True)
        )
    found += [
        _of(_GROUPS, "a few large all-reduces, each sent when its gradients are complete", num_groups=4),
        _of(_MLPERF, "gradients are picked up sooner after they are ready", cycle_time_ms=0.1),
        _of(_AUTOTUNE, "Horovod's own search for fusion and cycle", tune_steps=1),
        _of(_GROUPS, "all gradients as one all-reduce: the fewest negotiations", num_groups=1),
        _of(_TENSOR_FUSION, "more gradients are fused before they are sent", cycle_time_ms=5.0),
        _of(_GROUPS, "finer groups begin earlier in the backward pass", num_groups=10),
    ]
    for share in (4, 16):
        size = _rounded(situation.gradient_mib / share)
        found.append(_of(_TENSOR_FUSION, f"about {share} messages a step", fusion_threshold_mb=size))
    if situation.device == "cuda":
        found.append(_of(_MLPERF, "two exchanges at a time", nccl_streams=2))
        if situation.nodes > 1:
            found.insert(
                3,
                _of(_HIERARCHICAL, "sums inside a host first: less traffic between hosts", hierarchical_allreduce=True),
            )
    found.append(
        _of(_TENSOR_FUSION, "every gradient on its own: no copies into the fusion buffer", fusion_threshold_mb=0.0)
    )
    return tuple(found)


def _of(source: str, why: str, **settings: object) -> Candidate:
    return Candidate(settings=settings, why=why, source=source)


def _rounded(mib: float) -> float:
    """MiB to two digits, at least 1/128 MiB."""
    return max(0.0078125, float(f"{mib:.2g}"))
