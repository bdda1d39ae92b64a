from __future__ import annotations

import pytest
import torch

from core_model.anomalygpt.prompt_learner import PromptLearner


def test_eighteen_prompts_base_ones_first() -> None:
    learner = PromptLearner((4, 8, 16), 24)
    prompts = learner(torch.rand(3, 56, 56))
    assert prompts.shape == (3, 18, 24)
    assert learner.prompts == 18
    torch.testing.assert_close(prompts[1, :9], learner.base_prompts)


def test_the_nine_map_prompts_are_the_nine_places() -> None:
    """A defect in a corner changes that corner's prompt vector most."""
    torch.manual_seed(0)
    learner = PromptLearner((4, 8, 16), 24)
    empty = torch.zeros(1, 56, 56)
    for row, column in ((0, 0), (0, 2), (2, 0), (2, 2)):
        spot = empty.clone()
        spot[0, row * 44 : row * 44 + 12, :][:, column * 22 : column * 22 + 12] = 0
        spot[0, 22 * row : 22 * row + 12, 22 * column : 22 * column + 12] = 1
        change = (learner(spot) - learner(empty))[0, 9:].norm(dim=-1)
        assert change.argmax().item() == 3 * row + column


def test_maps_of_another_side_are_resampled() -> None:
    learner = PromptLearner((4, 8, 16), 24)
    flat = torch.full((1, 112, 112), 0.3)
    torch.testing.assert_close(learner(flat), learner(flat[:, :56, :56]), rtol=1e-4, atol=1e-6)


def test_paper_count() -> None:
    """1 -> 4 -> 16 -> 64 -> 256 -> 1024 -> 4096: 104.9 M of it in the 5x5 convolution."""
    with torch.device("meta"):
        learner = PromptLearner((4, 16, 64, 256, 1024), 4096)
    assert learner.input_side == 224
    assert learner.to_prompts.weight.numel() == 104_857_600
    assert sum(p.numel() for p in learner.parameters()) == 112_663_480 - 4 * (1280 * 1024 + 1024)


@pytest.mark.parametrize("channels", [(4, 16, 64, 256, 1024), (4, 8, 16)])
def test_signal_survives_the_stack_at_the_start(channels: tuple[int, ...]) -> None:
    """Prompts start at the size asked for, and a defect moves them."""
    torch.manual_seed(0)
    learner = PromptLearner(channels, 32, prompt_std=0.1)
    spot = torch.zeros(1, learner.input_side, learner.input_side)
    spot[:, : learner.input_side // 3, : learner.input_side // 3] = 1
    change = (learner(spot) - learner(torch.zeros_like(spot)))[0, 9:]
    assert 0.01 < change.std().item() < 1.0
    assert learner.base_prompts.std().item() == pytest.approx(0.1, rel=0.2)


def test_gradient_against_finite_differences() -> None:
    torch.manual_seed(0)
    learner = PromptLearner((2, 3), 4, prompt_std=1.0).double()
    maps = torch.rand(1, 28, 28, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: learner(x).square().sum(), (maps,), atol=1e-4, nondet_tol=1e-7)
