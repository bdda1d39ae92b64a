"""Per-sample losses against their formulas written out, their gradients, and their independence of the split."""

from __future__ import annotations

import math

import pytest
import torch

from core_model.anomalygpt.losses import LossWeights, combined_focal, dice, focal, token_cross_entropy
from core_model.errors import ModelError


def test_focal_is_the_formula_pixel_by_pixel() -> None:
    logits = torch.tensor([[[0.3, -2.0], [5.0, 0.0]]])
    mask = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    expected = 0.0
    for x, m in zip(logits.flatten().tolist(), mask.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x)) if m else 1 / (1 + math.exp(x))
        expected += -((1 - p) ** 2) * math.log(p) / 4
    assert focal(logits, mask).item() == pytest.approx(expected, rel=1e-6)


def test_dice_is_the_formula() -> None:
    logits = torch.tensor([[[0.3, -2.0], [5.0, 0.0]]])
    mask = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    p = torch.sigmoid(logits)
    expected = 1 - (2 * (p[0, 0, 0] + p[0, 1, 1]) + 1) / (p.sum() + 2 + 1)
    assert dice(logits, mask).item() == pytest.approx(expected.item(), rel=1e-6)


def test_perfect_map_costs_nothing() -> None:
    mask = (torch.rand(2, 8, 8) > 0.7).float()
    logits = (mask * 2 - 1) * 60
    for loss in (focal, dice, combined_focal):
        assert loss(logits, mask).max().item() < 1e-5


@pytest.mark.parametrize("loss", [focal, dice, combined_focal])
def test_saturated_maps_keep_a_finite_gradient(loss) -> None:
    logits = torch.tensor([[[200.0, -200.0], [0.0, 90.0]]], requires_grad=True)
    mask = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    loss(logits, mask).sum().backward()
    assert torch.isfinite(logits.grad).all()
    if loss is not dice:
        assert logits.grad[0, 0, 0].abs() > 0  # a wrong and sure pixel still pulls


@pytest.mark.parametrize("loss", [focal, dice])
def test_gradient_against_finite_differences(loss, monkeypatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)  # the losses compute in fp32: let them stay in fp64
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(2, 1, 4, 4) > 0.5).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), (logits,))


def test_combined_focal_weighs_a_small_defect_as_much_as_the_background() -> None:
    mask = torch.zeros(1, 32, 32)
    mask[0, 0, 0] = 1
    missed = torch.full((1, 32, 32), -6.0)
    assert combined_focal(missed, mask).item() > 100 * focal(missed, mask).item()
    good = torch.zeros(1, 32, 32)
    assert combined_focal(missed, good).item() < 1e-3  # no defect part where there is no defect


def test_combined_focal_adapts_gamma() -> None:
    """A class that is learned badly is focused less: its loss is nearer to plain cross-entropy."""
    mask = torch.ones(1, 4, 4)
    bad, well = torch.full((1, 4, 4), -3.0), torch.full((1, 4, 4), 3.0)

    def ratio(x):
        return combined_focal(x, mask).item() / focal(x, mask, gamma=0.0).item()

    p_bad, p_well = torch.sigmoid(bad[0, 0, 0]).item(), torch.sigmoid(well[0, 0, 0]).item()
    assert ratio(bad) == pytest.approx((1 - p_bad) ** (1 + 2 * p_bad), rel=1e-4)
    assert ratio(well) == pytest.approx((1 - p_well) ** (1 + 2 * p_well), rel=1e-4)


def test_cross_entropy_is_a_mean_over_each_samples_own_tokens() -> None:
    logits = torch.randn(5, 7)
    labels = torch.tensor([0, 1, 2, 3, 4])
    rows = torch.tensor([0, 1, 1, 1, 1])
    each = -torch.log_softmax(logits, dim=-1)[torch.arange(5), labels]
    expected = torch.stack((each[0], each[1:].mean()))
    torch.testing.assert_close(token_cross_entropy(logits, labels, rows, 2), expected)
    weights = torch.tensor([1.0, 4.0, 1.0, 1.0, 1.0])
    weighted = torch.stack((each[0], (each[1:] * weights[1:]).sum() / 7))
    torch.testing.assert_close(token_cross_entropy(logits, labels, rows, 2, weights), weighted)


def test_a_sample_without_answer_costs_nothing_and_is_finite() -> None:
    losses = token_cross_entropy(torch.randn(1, 7), torch.tensor([2]), torch.tensor([1]), 2)
    assert losses[0] == 0
    assert torch.isfinite(losses).all()


def test_unknown_map_loss_is_refused() -> None:
    with pytest.raises(ModelError, match="focal, combined_focal"):
        LossWeights(map_loss="squares")
