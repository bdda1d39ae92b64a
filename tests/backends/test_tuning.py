"""What may be tried: settings that exist, that keep what is computed, and that differ from one another."""

from __future__ import annotations

from typing import Any

import pytest

import backends
from backends.base import BackendError, Optimization
from backends.tuning import Candidate, Situation, spelled

ENGINES: list[tuple[str, dict[str, Any]]] = [
    ("horovod", {}),
    ("ddp", {}),
    ("fsdp2", {}),
    *(("deepspeed", {"zero_stage": stage}) for stage in range(4)),
]
SITUATIONS = [
    Situation(workers=2, nodes=1, device="cpu", precision="fp32", gradient_elements=300_001),
    Situation(workers=8, nodes=2, device="cuda", precision="bf16", gradient_elements=608_000_000),
]
NOT_TO_TRY = {"zero_stage", "compression", "op", "communication_data_type", "memory_efficient_linear", "optimizer_impl"}


def of(name: str, given: dict[str, Any], situation: Situation) -> tuple[Candidate, ...]:
    return backends.backend_class(name).candidates(backends.settings_from(name, given), situation)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda item: item.device)
@pytest.mark.parametrize(("name", "given"), ENGINES, ids=lambda item: str(item))
def test_every_candidate_is_a_valid_setting_that_keeps_the_arithmetic(
    name: str, given: dict[str, Any], situation: Situation
) -> None:
    found = of(name, given, situation)
    assert bool(found) == (given.get("zero_stage") != 0), "stage 0 has nothing to try"
    assert len({item.name for item in found}) == len(found)
    as_it_comes = backends.settings_from(name, given)
    for item in found:
        assert backends.settings_from(name, {**given, **item.settings}) != as_it_comes, item.name
        assert item.why
        assert item.source
        assert not NOT_TO_TRY & set(item.settings)
        assert item.exact or name == "fsdp2"


def test_gpu_settings_are_tried_on_gpus_only() -> None:
    cpu, gpu = ({key for item in of("horovod", {}, where) for key in item.settings} for where in SITUATIONS)
    assert gpu - cpu == {"async_completion", "nccl_streams", "hierarchical_allreduce"}


def test_one_horovod_worker_has_nothing_to_tune() -> None:
    assert of("horovod", {}, Situation(workers=1, nodes=1, device="cpu", precision="fp32", gradient_elements=9)) == ()


def test_settings_are_spelled_as_behind_an_engines_name() -> None:
    from harness.job.engines import parse_backend

    settings = {"overlap_comm": True, "reduce_bucket_size": 5_000_000, "cycle_time_ms": 0.1}
    assert parse_backend(f"deepspeed:{spelled(settings)}") == {"backend": "deepspeed", "engine": settings}


def test_bf16_gathers_need_a_job_in_bf16() -> None:
    engine = backends.backend_class("fsdp2")
    settings = backends.settings_from("fsdp2", {"gather_dtype": "bf16"})
    where: dict[str, Any] = {"world_size": 2, "micro_batch": 1, "launcher": "torchrun"}
    engine.check_job(settings, Optimization(precision="bf16"), **where)
    with pytest.raises(BackendError, match="gather_dtype bf16 needs --precision bf16, the job trains in fp32"):
        engine.check_job(settings, Optimization(), **where)
