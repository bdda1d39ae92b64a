"""Engines by name: what there is, what is not, and settings that do not exist, each in one line."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import backends
from backends.base import BackendError

ROOT = Path(__file__).resolve().parents[2]


def test_unknown_engine_names_the_choices() -> None:
    with pytest.raises(
        BackendError, match="unknown engine 'megatron': choose one of single, ddp, fsdp2, deepspeed, horovod"
    ):
        backends.load("megatron")


def test_every_engine_says_whether_it_is_usable() -> None:
    for name in backends.names():
        state = backends.availability(name)
        assert state.version if state.usable else state.reason


@pytest.mark.parametrize(("name", "package"), [("horovod", "horovod"), ("deepspeed", "deepspeed")])
def test_a_missing_engine_is_one_line_with_the_remedy(monkeypatch, name: str, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda found, *a: None if found == package else real(found, *a))
    with pytest.raises(BackendError, match=f"engine '{name}' cannot be used here: .*make setup") as caught:
        backends.load(name)
    assert "\n" not in str(caught.value)


def test_unknown_setting_is_named() -> None:
    with pytest.raises(
        BackendError, match=r"engine 'horovod' has no setting 'zero_stage': it has .*fusion_threshold_mb"
    ):
        backends.settings_from("horovod", {"zero_stage": 2})


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("deepspeed", {"zero_stage": 5}, "zero_stage: must be at most 3, got 5"),
        ("deepspeed", {"zero_stage": 0, "offload_optimizer": "cpu"}, "offload_optimizer needs zero_stage 1, 2 or 3"),
        ("deepspeed", {"zero_stage": 2, "offload_param": "cpu"}, "offload_param needs zero_stage 3"),
        (
            "deepspeed",
            {"communication_data_type": "int8"},
            "communication_data_type: 'int8' is not one of fp32, fp16, bf16",
        ),
        ("horovod", {"compression": "bf16"}, "compression: 'bf16' is not one of none, fp16"),
        (
            "horovod",
            {"op": "adasum", "gradient_predivide_factor": 2.0},
            "gradient_predivide_factor belongs to op 'average'",
        ),
        ("horovod", {"extra": {"FUSION": 1}}, "must start with HOROVOD_"),
    ],
)
def test_settings_that_cannot_work_are_refused(name: str, values: dict, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        backends.settings_from(name, values)


def test_importing_the_package_imports_neither_torch_nor_an_engine() -> None:
    code = (
        "import sys, backends, backends.process.rank, backends.base\n"
        "print([m for m in ('torch', 'horovod', 'deepspeed') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.strip() == "[]"


def test_horovod_settings_become_its_variables() -> None:
    from backends.horovod.settings import variables

    found = variables(
        {
            "fusion_threshold_mb": 32,
            "cycle_time_ms": 0.5,
            "cache_capacity": 0,
            "async_completion": True,
            "nccl_streams": 2,
            "controller": "gloo",
            "extra": {"HOROVOD_X": 1},
        },
        timeout_s=40,
    )
    assert found == {
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "40",
        "HOROVOD_STALL_CHECK_TIME_SECONDS": "10",
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "40",
        "HOROVOD_FUSION_THRESHOLD": str(32 * 2**20),
        "HOROVOD_CYCLE_TIME": "0.5",
        "HOROVOD_CACHE_CAPACITY": "0",
        "HOROVOD_ENABLE_ASYNC_COMPLETION": "1",
        "HOROVOD_NUM_NCCL_STREAMS": "2",
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_X": "1",
    }
    # what is not asked for is left to Horovod, and to an environment that the user made
    assert not {"HOROVOD_FUSION_THRESHOLD", "HOROVOD_TIMELINE", "HOROVOD_AUTOTUNE"} & set(variables({}))
