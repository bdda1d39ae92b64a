"""DeepSpeed's json: one source of truth. "auto" is filled, a disagreement is refused by name, dead keys are
explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.base import BackendError, LossScale, Optimization
from backends.deepspeed.config import DeepSpeedSettings, from_job, merge
from backends.deepspeed.user_json import DEAD_KEYS, read_user_config

# The study's optimization: AdamW 1e-4, clip 1, fp16 from 2^12, ZeRO-2 with the optimizer on the CPU, small buckets.
STUDY = Optimization(
    lr=1e-4,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=1e-3,
    clip_norm=1.0,
    accumulation=8,
    warmup_steps=10,
    total_steps=100,
    precision="fp16",
    precision_mode="native",
    loss_scale=LossScale(initial_power=12, window=1000, floor=1),
)
STUDY_SETTINGS = DeepSpeedSettings(
    zero_stage=2, offload_optimizer="cpu", reduce_bucket_size=50_000, allgather_bucket_size=50_000
)
STUDY_FILE: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 8,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 1e-3}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 10, "total_num_steps": "auto"}},
    "fp16": {"enabled": True, "initial_scale_power": 12, "loss_scale_window": 1000, "min_loss_scale": 1},
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu"},
        "reduce_bucket_size": 50000,
        "allgather_bucket_size": 5e4,
        "overlap_comm": True,
    },
    "activation_checkpointing": {"partition_activations": False},
}


def merged(
    user: dict[str, Any], optimization: Optimization = STUDY, settings: DeepSpeedSettings = STUDY_SETTINGS
) -> dict[str, Any]:
    job = from_job(settings, optimization, world_size=2, safe_modules=None)
    return merge(user, job, origin="ds.json", optimization=optimization)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The study's file with one value put in at a dotted path."""
    config = json.loads(json.dumps(STUDY_FILE))
    node = config
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return config


def test_a_file_that_agrees_is_accepted_and_passes_through() -> None:
    found = merged(STUDY_FILE)
    assert found["_batch"] == {"train_micro_batch_size_per_gpu": 2}  # compared with the first batch
    assert found["zero_optimization"]["overlap_comm"] is True
    assert found["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert found["activation_checkpointing"] == {"partition_activations": False}
    assert found["fp16"]["hysteresis"] == 1
    assert found["optimizer"]["params"]["lr"] == pytest.approx(1e-5)  # of step 0: the schedule is the harness's


def test_auto_is_filled_in() -> None:
    config = {
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "fp16": {"enabled": "auto", "initial_scale_power": "auto"},
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": "auto", "reduce_bucket_size": "auto"},
        "optimizer": {"type": "auto", "params": {"lr": "auto", "weight_decay": "auto"}},
    }
    found = merged(config)
    assert found["gradient_accumulation_steps"] == 8
    assert found["gradient_clipping"] == 1.0
    assert found["fp16"]["initial_scale_power"] == 12
    assert found["zero_optimization"]["stage"] == 2
    assert found["zero_optimization"]["reduce_bucket_size"] == 50000
    assert "bf16" not in found
    assert "auto" not in json.dumps(found)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("gradient_accumulation_steps", 4, "'gradient_accumulation_steps' is 4 but the job says 8"),
        ("gradient_clipping", 0.5, "'gradient_clipping' is 0.5 but the job says 1.0"),
        ("zero_optimization.stage", 3, "'zero_optimization.stage' is 3 but the job says 2"),
        (
            "zero_optimization.reduce_bucket_size",
            500,
            "'zero_optimization.reduce_bucket_size' is 500 but the job says 50000",
        ),
        (
            "zero_optimization.offload_optimizer.device",
            "nvme",
            "'zero_optimization.offload_optimizer.device' is 'nvme'",
        ),
        ("fp16.initial_scale_power", 16, "'fp16.initial_scale_power' is 16 but the job says 12"),
        ("fp16.enabled", False, "'fp16.enabled' is False but the job trains in fp16"),
        ("bf16.enabled", True, "'bf16.enabled' is True but the job trains in fp16"),
        ("optimizer.params.lr", 1e-3, "'optimizer.params.lr' is 0.001 but the job says 0.0001"),
        ("optimizer.params.weight_decay", 0.01, "'optimizer.params.weight_decay' is 0.01 but the job says 0.001"),
        ("optimizer.params.max_grad_norm", 1.0, "'optimizer.params.max_grad_norm' is not something the job can decide"),
        ("optimizer.type", "Lamb", "'optimizer.type' is Lamb but the job's optimizer is adamw"),
        ("scheduler.type", "OneCycle", "'scheduler.type' is OneCycle but the job's schedule is warmup_linear"),
        ("scheduler.params.warmup_num_steps", 3, "'scheduler.params.warmup_num_steps' is 3 but the job says 10"),
        ("communication_data_type", "auto", "'communication_data_type' is \"auto\" but nothing in the job decides it"),
        (
            "zero_optimization.offload_optimizer",
            True,
            "'zero_optimization.offload_optimizer' is True, DeepSpeed takes an object",
        ),
    ],
)
def test_a_disagreement_is_refused_by_name(path: str, value: Any, message: str) -> None:
    with pytest.raises(BackendError) as caught:
        merged(changed(path, value))
    assert message in str(caught.value)
    assert str(caught.value).startswith("ds.json: ")
    assert "\n" not in str(caught.value)


def test_deepspeeds_adam_is_adamw_unless_it_says_otherwise() -> None:
    assert merged(changed("optimizer.type", "Adam"))["optimizer"]["type"] == "AdamW"
    with pytest.raises(BackendError, match="DeepSpeed's Adam is AdamW unless adam_w_mode is false"):
        merged(
            {"optimizer": {"type": "Adam", "params": {}}},
            Optimization(optimizer="adam"),
            DeepSpeedSettings(),
        )


@pytest.mark.parametrize("key", sorted(DEAD_KEYS))
def test_dead_keys_are_explained(tmp_path: Path, key: str) -> None:
    file = tmp_path / "ds.json"
    config: dict[str, Any] = {}
    node = config
    *parents, last = key.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = True
    file.write_text(json.dumps(config))
    with pytest.raises(BackendError) as caught:
        read_user_config(str(file))
    assert f"key '{key}' is not one of today's DeepSpeed" in str(caught.value)


def test_every_key_that_deepspeed_removed_is_among_the_dead() -> None:
    config = pytest.importorskip("deepspeed.runtime.config")
    removed = set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS) | {
        f"zero_optimization.{k}" for k in config._REMOVED_ZERO_CONFIG_KEYS
    }
    assert removed <= set(DEAD_KEYS)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("[]", "is a JSON object"), (None, "no such DeepSpeed")]
)
def test_unreadable_files_are_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "ds.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BackendError, match=message):
        read_user_config(str(file))


def test_matched_precision_is_torch_autocast_with_a_full_precision_wire() -> None:
    job = from_job(DeepSpeedSettings(), Optimization(precision="bf16"), world_size=2, safe_modules=None)
    assert job["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert not {"fp16", "bf16", "optimizer"} & set(job)


def test_nothing_waits_for_the_device_each_step() -> None:
    job = from_job(DeepSpeedSettings(), Optimization(), world_size=2, safe_modules=None)
    assert job["timers"]["throughput"]["enabled"] is False
    assert job["wall_clock_breakdown"] is False
    assert job["steps_per_print"] is None
