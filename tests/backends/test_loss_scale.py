"""The shared fp16 rule, held against torch's GradScaler and against DeepSpeed's where they mean the same."""

from __future__ import annotations

import pytest
import torch

from backends.base import LossScale
from backends.shared.loss_scale import DynamicScale

CPU = torch.device("cpu")
PATTERN = [0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]


def scales(rule: LossScale, pattern: list[int]) -> list[float]:
    dynamic, seen = DynamicScale(rule, CPU), []
    for overflow in pattern:
        seen.append(float(dynamic.scale))
        dynamic.update(torch.tensor(bool(overflow)))
    return seen


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_without_hysteresis_it_is_gradscaler(window: int) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=window)
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    expected = []
    for overflow in PATTERN:
        expected.append(scaler.get_scale())
        loss = scaler.scale((parameter * (float("inf") if overflow else 1.0)).sum())
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scales(LossScale(initial_power=6, window=window, floor=0.0), PATTERN) == expected


def test_hysteresis_forgives_and_is_refilled_by_growth() -> None:
    rule = LossScale(initial_power=4, window=3, hysteresis=2)
    assert scales(rule, [1, 1, 1, 0, 0, 0, 1, 1, 0]) == [16, 16, 8, 4, 4, 4, 8, 8, 4]


def test_the_floor_holds() -> None:
    assert min(scales(LossScale(initial_power=2, floor=1.0), [1] * 10)) == 1.0


@pytest.mark.parametrize("hysteresis", [1, 2, 3])
def test_deepspeeds_scaler_differs_by_one_good_step_only(hysteresis: int) -> None:
    """Its window is counted from the step AFTER an overflow (or after the start): window + 1 good steps, then
    window."""
    pytest.importorskip("deepspeed")
    from deepspeed import comm
    from deepspeed.runtime.fp16 import loss_scaler

    window = 4
    theirs = loss_scaler.DynamicLossScaler(2.0**6, window, 1.0, hysteresis, False, raise_error_at_min_scale=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm, "get_rank", lambda *a: 1)
        # one overflow first, so that both count from one
        pattern = [1, *[0] * 12]
        seen = []
        for overflow in pattern:
            seen.append(theirs.cur_scale)
            theirs.update_scale(bool(overflow))
    mine = scales(LossScale(initial_power=6, window=window, hysteresis=hysteresis), pattern)
    grew_theirs = [i for i in range(1, len(seen)) if seen[i] > seen[i - 1]]
    grew_mine = [i for i in range(1, len(mine)) if mine[i] > mine[i - 1]]
    assert grew_mine[0] == 1 + window
    assert grew_theirs[0] == grew_mine[0] + 1


def test_unscale_divides_and_finds_what_is_not_finite() -> None:
    dynamic = DynamicScale(LossScale(initial_power=3), CPU)
    fine = [torch.full((3,), 8.0), torch.full((2,), 16.0, dtype=torch.float64)]
    assert not dynamic.unscale(fine)
    assert fine[0].tolist() == [1.0] * 3
    assert fine[1].tolist() == [2.0] * 2
    for bad in (float("inf"), float("nan"), -float("inf")):
        assert dynamic.unscale([torch.tensor([1.0, bad])])


def test_state_comes_back() -> None:
    rule = LossScale(initial_power=6, window=3, hysteresis=2)
    first = DynamicScale(rule, CPU)
    for overflow in PATTERN[:7]:
        first.update(torch.tensor(bool(overflow)))
    second = DynamicScale(rule, CPU)
    second.load(first.state())
    for overflow in PATTERN:
        assert float(first.scale) == float(second.scale)
        for dynamic in (first, second):
            dynamic.update(torch.tensor(bool(overflow)))
