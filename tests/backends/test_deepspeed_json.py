"""A user's DeepSpeed json: every key is held against what today's DeepSpeed reads; "auto" is Hugging Face's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.base import BackendError, Optimization
from backends.deepspeed.check import check_configuration
from backends.deepspeed.compile_ops import to_compile
from backends.deepspeed.config import DeepSpeedSettings, from_job, merge
from backends.deepspeed.user_json import check_keys, user_config


@pytest.fixture(scope="module", autouse=True)
def deepspeed() -> None:
    pytest.importorskip("deepspeed.runtime.config")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"gradient_cliping": 1.0}, "unknown key 'gradient_cliping': did you mean 'gradient_clipping'?"),
        (
            {"offload_optimizer": {"device": "cpu"}, "zero_optimization": {"stage": 2}},
            "key 'offload_optimizer' is ignored there: it belongs under 'zero_optimization'",
        ),
        (
            {"zero_optimization": {"gradient_clipping": 1.0}},
            "key 'zero_optimization.gradient_clipping' is ignored there: it belongs at the top level",
        ),
        ({"zero_optimization": {"overlap_com": True}}, "'zero_optimization.overlap_com': did you mean 'overlap_comm'?"),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            "'zero_optimization.offload_optimizer.devise': did you mean 'device'?",
        ),
        ({"fp16": {"loss_scale_windw": 4}}, "'fp16.loss_scale_windw': did you mean 'loss_scale_window'?"),
        (
            {"activation_checkpointing": {"partition_activation": True}},
            "'activation_checkpointing.partition_activation': did you mean 'partition_activations'?",
        ),
        ({"flops_profiler": {"enable": True}}, "'flops_profiler.enable': did you mean 'enabled'?"),
        ({"lern_rate": 1}, "unknown key 'lern_rate': DeepSpeed has none of that name"),
        (
            {"zero_optimization": {"reduce_bucket_size": "big"}},
            "zero_optimization.reduce_bucket_size: 'big' is not a whole number",
        ),
    ],
)
def test_a_key_that_deepspeed_does_not_read_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(BackendError) as caught:
        check_keys(config, "ds.json")
    assert str(caught.value).startswith("ds.json: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_of_them_are_named_at_once() -> None:
    with pytest.raises(BackendError, match=r"gradient_cliping.*; .*steps_per_prin"):
        check_keys({"gradient_cliping": 1.0, "steps_per_prin": 3}, "ds.json")
    with pytest.raises(BackendError, match=r"key 'opt_level' .*; key 'amp' .*; key 'zero_optimization.cpu_offload' "):
        user_config(DeepSpeedSettings(extra={"amp": {}, "opt_level": "O1", "zero_optimization": {"cpu_offload": True}}))


def test_what_a_hugging_face_file_says_is_accepted() -> None:
    file = {
        "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": "auto", "initial_scale_power": "auto"},
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "weight_decay": "auto"}},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto",
                       "total_num_steps": "auto"},
        },
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "sub_group_size": 1e9,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "steps_per_print": 2000,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
        "_comment": "from transformers' documentation",
    }  # fmt: skip
    settings, optimization = DeepSpeedSettings(zero_stage=3, extra=file), Optimization()
    user = user_config(DeepSpeedSettings(extra=file))
    check_keys({key: value for key, value in user.items() if key != "_comment"}, "ds.json")
    job = from_job(settings, optimization, world_size=1, safe_modules=None)
    merged = merge(user, job, origin="ds.json", optimization=optimization)
    assert "auto" not in json.dumps(merged)
    assert "reduce_bucket_size" not in merged["zero_optimization"], "DeepSpeed's own default: the job has no other"
    assert merged["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"fp16": True}, '\'fp16\' is true, DeepSpeed takes an object there: write {"fp16": {"enabled": true}}'),
        ({"zero_optimization": 2}, "'zero_optimization' is 2, DeepSpeed takes an object there"),
    ],
)
def test_a_value_in_place_of_a_block_is_one_line(config: dict[str, Any], says: str) -> None:
    with pytest.raises(BackendError) as caught:
        user_config(DeepSpeedSettings(extra=config))
    assert says in str(caught.value)


def test_extra_keys_are_laid_over_the_file_block_by_block(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": 2, "overlap_comm": true}}')
    found = user_config(
        DeepSpeedSettings(config=str(file), extra={"zero_optimization": {"round_robin_gradients": True}})
    )
    assert found == {"zero_optimization": {"stage": 2, "overlap_comm": True, "round_robin_gradients": True}}
    file.write_text('\ufeff{"steps_per_print": 1, "steps_per_print": 2}')
    with pytest.raises(BackendError, match="key 'steps_per_print' stands in it twice"):
        user_config(DeepSpeedSettings(config=str(file)))


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"gradient_cliping": 1.0}, "did you mean 'gradient_clipping'?"),
        ({"train_batch_size": 64}, "'train_batch_size' is 64 but the job says 8"),
        ({"gradient_allreduce_op": "sum"}, "'gradient_allreduce_op' is 'sum'"),
        ({"gradient_clipping": 0.5}, "'gradient_clipping' is 0.5 but the job says 1.0"),
        ({"optimizer": {"type": "AdamW", "parms": {}}}, "'optimizer.parms': did you mean 'optimizer.params'?"),
    ],
)
def test_the_launching_side_asks_deepspeed_itself(extra: dict[str, Any], says: str) -> None:
    with pytest.raises(BackendError) as caught:
        check_configuration(DeepSpeedSettings(extra=extra), Optimization(), world_size=2, micro_batch=4)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_good_file_passes_and_no_file_needs_no_question() -> None:
    settings = DeepSpeedSettings(extra={"wall_clock_breakdown": True, "train_batch_size": 8})
    check_configuration(settings, Optimization(), world_size=2, micro_batch=4)
    check_configuration(DeepSpeedSettings(), Optimization(), world_size=2, micro_batch=4)


def test_a_compilation_is_announced_until_it_is_done(tmp_path: Path) -> None:
    assert "DeepSpeed compiles its optimizer (cpu_adam) on first use" in to_compile("cpu_adam", tmp_path)
    (tmp_path / "py311" / "cpu_adam").mkdir(parents=True)
    (tmp_path / "py311" / "cpu_adam" / "cpu_adam.so").write_bytes(b"")
    assert to_compile("cpu_adam", tmp_path) == ""
