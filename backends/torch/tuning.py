"""What may be tried to make torch's own engines faster: DDP's buckets and graph, FSDP2's gathers."""

from __future__ import annotations

from backends.tuning import Candidate, Situation

_DDP = "torch's documentation of DistributedDataParallel"
_DDP_PAPER = "Li et al., PyTorch Distributed, VLDB 2020, section 5.2: the best bucket size depends on model and network"
_FSDP = "torch's documentation of fully_shard and FSDPModule; pytorch pull request 128884 (prefetching)"
_TORCHTITAN = "torchtitan's docs/fsdp.md"


def ddp_candidates(situation: Situation) -> tuple[Candidate, ...]:
    """DDP's candidates in the order in which they are tried; without peers its hooks still run.

    Args:
        situation: the job; buckets are cut to its gradients.
    """
    whole, quarter, sixteenth = (_mib(situation.gradient_mib / parts) for parts in (0.5, 4, 16))
    fixed = [
        _of(_DDP_PAPER, "larger buckets: fewer messages", bucket_cap_mb=100.0),
        _of(_DDP_PAPER, "much larger buckets", bucket_cap_mb=250.0),
        _of(_DDP_PAPER, "buckets of a few MiB", bucket_cap_mb=5.0),
    ]
    return (
        _of(_DDP, "the order of gradients is learned once, no search for unused parameters", static_graph=True),
        _of(_DDP_PAPER, "all gradients as one message", bucket_cap_mb=whole),
        _of(_DDP_PAPER, "about four messages", bucket_cap_mb=quarter),
        _of(_DDP_PAPER, "smaller buckets begin earlier", bucket_cap_mb=sixteenth),
        _of(_DDP, "gradients have memory of their own: one copy more, other layout", gradient_as_bucket_view=False),
        *(candidate for candidate in fixed if candidate.settings["bucket_cap_mb"] < situation.gradient_mib),
    )


def fsdp2_candidates(situation: Situation) -> tuple[Candidate, ...]:
    """FSDP2's candidates in the order in which they are tried.

    Args:
        situation: the job; bf16 gathers only where it computes in bf16.
    """
    found = [
        _of(_FSDP, "weights stay gathered from forward to backward: a gather less, more memory",
            reshard_after_forward=False),
        _of(_FSDP, "the next block's weights are asked for before this one computes", forward_prefetch=1),
        _of(_TORCHTITAN, "smaller groups of weights", wrap_min_parameters=100_000),
        _of(_TORCHTITAN, "larger groups of weights: fewer messages", wrap_min_parameters=10_000_000),
        _of(_FSDP, "two blocks ahead", forward_prefetch=2),
    ]  # fmt: skip
    if situation.precision == "bf16":
        why = "half the bytes of every gather; norms and biases are rounded to bf16 too"
        found.append(Candidate(settings={"gather_dtype": "bf16"}, why=why, source=_TORCHTITAN, exact=False))
    return tuple(found)


def _of(source: str, why: str, **settings: object) -> Candidate:
    return Candidate(settings=settings, why=why, source=source)


def _mib(mib: float) -> float:
    """MiB to two digits, at least 1/128 MiB."""
    return max(0.0078125, float(f"{mib:.2g}"))
