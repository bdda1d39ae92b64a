from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core_model.anomalygpt.decoder import ImageDecoder, mean_map, to_image
from core_model.errors import ModelError

ALL = ("linear", "norm", "batchnorm", "dropout", "residual")


def look(channels: tuple[int, ...] = (12, 12), batch: int = 2) -> tuple:
    torch.manual_seed(0)
    tokens = tuple(torch.randn(batch, 16, c) for c in channels)
    text = F.normalize(torch.randn(batch, 2, 8), dim=-1)
    return tokens, ((4, 4),) * len(channels), text


def test_log_odds_are_the_papers_softmax_over_two_scaled_cosines() -> None:
    tokens, grids, text = look()
    decoder = ImageDecoder((12, 12), 8, scale=100.0)
    odds = decoder(tokens, grids, text)
    for adapter, block, result in zip(decoder.adapters, tokens, odds, strict=True):
        y = F.normalize(F.linear(block, adapter.head.weight, adapter.head.bias), dim=-1)
        similarity = 100.0 * y @ text.transpose(1, 2)  # (B, N, [normal, abnormal])
        expected = torch.softmax(similarity, dim=-1)[..., 1].view(-1, 4, 4)
        torch.testing.assert_close(torch.sigmoid(result), expected, rtol=1e-4, atol=1e-5)


def test_grown_map_has_the_pictures_side_and_lies_in_0_to_1() -> None:
    tokens, grids, text = look()
    odds = to_image(ImageDecoder((12, 12), 8)(tokens, grids, text), 56)
    assert odds.shape == (2, 2, 56, 56)
    maps = mean_map(odds)
    assert maps.shape == (2, 56, 56)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_grown_map_and_its_gradient_are_torchs_bilinear_ones() -> None:
    torch.manual_seed(0)
    odds = [torch.randn(2, 4, 4, requires_grad=True), torch.randn(2, 6, 3, requires_grad=True)]
    size = {"size": (56, 56), "mode": "bilinear", "align_corners": False}
    expected = torch.cat([F.interpolate(block[:, None], **size) for block in odds], dim=1)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), odds)
    grown = to_image(odds, 56)
    torch.testing.assert_close(grown, expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(torch.autograd.grad((grown * weights).sum(), odds), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "mlp", "conv3x3"])
def test_heads_and_all_steps_train_every_parameter(head: str) -> None:
    tokens, grids, text = look()
    decoder = ImageDecoder((12, 12), 8, layers=(head, *ALL[1:]), learned_scale=True)
    sum(block.square().sum() for block in decoder(tokens, grids, text)).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if "branch" in name or "bias" not in name:
            assert parameter.grad.abs().max() > 0, name


def test_conv3x3_sees_neighbours_and_linear_does_not() -> None:
    tokens, grids, text = look((12,))
    changed = tokens[0].clone()
    changed[:, 5] += 3.0
    for head, expected in (("linear", 1), ("mlp", 1), ("conv3x3", 9)):
        decoder = ImageDecoder((12,), 8, layers=(head,))
        before, after = decoder(tokens, grids, text)[0], decoder((changed,), grids, text)[0]
        touched = ((before - after).abs() > 1e-4).flatten(1).any(dim=0).sum().item()
        assert touched == expected, head


def test_residual_step_starts_as_the_identity() -> None:
    tokens, grids, text = look()
    plain, residual = ImageDecoder((12, 12), 8), ImageDecoder((12, 12), 8, layers=("linear", "residual"))
    residual.load_state_dict(plain.state_dict(), strict=False)
    for a, b in zip(plain(tokens, grids, text), residual(tokens, grids, text), strict=True):
        assert torch.equal(a, b)


def test_learned_text_needs_none_given() -> None:
    tokens, grids, _ = look()
    decoder = ImageDecoder((12, 12), 8, learned_text=True)
    sum(block.sum() for block in decoder(tokens, grids, None)).backward()
    assert decoder.text.grad.abs().max() > 0


def test_blocks_of_different_width_and_grid() -> None:
    torch.manual_seed(0)
    tokens = (torch.randn(1, 64, 5), torch.randn(1, 16, 9))
    odds = ImageDecoder((5, 9), 8, learned_text=True)(tokens, ((8, 8), (4, 4)), None)
    assert to_image(odds, 32).shape == (1, 2, 32, 32)


@pytest.mark.parametrize("layers", [("line",), ("linear", "drop"), ()])
def test_unknown_layers_are_refused_by_name(layers: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=r"decoder (head|layer)"):
        ImageDecoder((12,), 8, layers=layers)


def test_gradient_against_finite_differences() -> None:
    tokens, grids, text = look((6,), batch=1)
    decoder = ImageDecoder((6,), 8, layers=("mlp", "norm", "residual"), scale=5.0)
    weight = decoder.adapters[0].head.first.weight
    direction = torch.randn_like(weight)
    direction /= direction.norm()

    def value() -> torch.Tensor:
        return torch.sigmoid(decoder(tokens, grids, text)[0]).square().sum()

    (gradient,) = torch.autograd.grad(value(), weight)
    with torch.no_grad():
        step = 1e-2
        weight.add_(step * direction)
        above = value().item()
        weight.sub_(2 * step * direction)
        below = value().item()
    assert (above - below) / (2 * step) == pytest.approx((gradient * direction).sum().item(), rel=2e-2, abs=1e-3)
