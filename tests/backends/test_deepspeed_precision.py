"""Where the shared fp16 rule lives under DeepSpeed: nothing of it is read back from the device in a step."""

from __future__ import annotations

import pytest
import torch

from backends.base import LossScale, Optimization
from backends.deepspeed.half_precision import shared_scale

FP16 = Optimization(precision="fp16", loss_scale=LossScale(initial_power=4, window=2))
DEVICE = torch.device("meta")  # whose numbers cannot be read: reading one is what a GPU would have to be waited for


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_asks_the_host_so_the_rule_is_there(stage: int) -> None:
    scale = shared_scale(FP16, DEVICE, zero_stage=stage)
    assert scale is not None
    seen = []
    for skipped in (False, False, True, False):
        seen.append(float(scale.scale))
        scale.update(torch.tensor(skipped))
    assert seen == [16.0, 16.0, 32.0, 16.0]


def test_stage_zero_leaves_it_on_the_device() -> None:
    scale = shared_scale(FP16, DEVICE, zero_stage=0)
    assert scale is not None
    assert scale.scale.device == DEVICE


def test_other_precisions_have_no_scale() -> None:
    for other in (
        Optimization(),
        Optimization(precision="bf16"),
        Optimization(precision="fp16", precision_mode="native"),
    ):
        assert shared_scale(other, DEVICE, zero_stage=2) is None
