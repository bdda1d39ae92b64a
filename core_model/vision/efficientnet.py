"""EfficientNet-Lite0 (Tan & Le 2019; the Lite variant: no squeeze-and-excitation, ReLU6), for inference.

Batch normalization is folded into the convolutions when the weights are converted, so the frozen encoder is
convolutions alone. Padding is TensorFlow's "same": at stride 2 the odd pixel goes to the right and the bottom.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core_model.errors import ModelError
from core_model.vision.encoder import Features

# (kernel, stride, expansion, channels in, channels out, repeats) of each stage
STAGES = (
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)
HEAD = 1280
BATCH_NORM_EPS = 1e-3
NORMALIZATION = ((127 / 255,) * 3, (128 / 255,) * 3)


def blocks() -> list[tuple[int, int, int, int, int]]:
    """(kernel, stride, expansion, channels in, channels out) of each of the 16 blocks."""
    result = []
    for kernel, stride, expansion, before, after, repeats in STAGES:
        for index in range(repeats):
            result.append((kernel, stride if index == 0 else 1, expansion, before if index == 0 else after, after))
    return result


class SameConv(nn.Conv2d):
    """Convolution whose output has ceil(side / stride) places."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride=stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            places = -(-side // self.stride[0])
            missing = max((places - 1) * self.stride[0] + self.kernel_size[0] - side, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


class InvertedBottleneck(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; added to the input where the shapes agree."""

    def __init__(self, kernel: int, stride: int, expansion: int, before: int, after: int) -> None:
        super().__init__()
        middle = before * expansion
        self.expand = SameConv(before, middle, 1) if expansion != 1 else None
        self.depthwise = SameConv(middle, middle, kernel, stride, groups=middle)
        self.project = SameConv(middle, after, 1)
        self.added = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.added else y


class EfficientNetLite0(nn.Module):
    """Trunk for `core_model.vision.encoder.Encoder`. taps: 0-based blocks whose feature maps are taken (4: stride 8, 40
    channels; 10: stride 16, 112 channels). The embedding is the mean of the 1280-channel head."""

    multiple = 32

    def __init__(self, taps: tuple[int, ...]) -> None:
        super().__init__()
        shapes = blocks()
        if not taps or min(taps) < 0 or max(taps) >= len(shapes):
            raise ModelError(f"tapped blocks {list(taps)}: the encoder has blocks 0 to {len(shapes) - 1}")
        self.taps = tuple(sorted(taps))
        self.channels = tuple(shapes[tap][-1] for tap in self.taps)
        self.embedding = HEAD
        self.stem = SameConv(3, 32, 3, 2)
        self.blocks = nn.ModuleList(InvertedBottleneck(*shape) for shape in shapes)
        self.head = SameConv(320, HEAD, 1)

    def forward(self, pixels: Tensor) -> Features:
        x = F.relu6(self.stem(pixels))
        tokens, grids = [], []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                tokens.append(x.flatten(2).transpose(1, 2))
                grids.append((x.shape[-2], x.shape[-1]))
        pooled = F.relu6(self.head(x)).mean(dim=(2, 3))
        return Features(tokens=tuple(tokens), grids=tuple(grids), pooled=pooled)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """He weights, so that the signal keeps its size through 50 layers."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and tensors of `EfficientNetLite0` from the published ones (``_blocks.3._expand_conv.weight`` and
    ``_blocks.3._bn0.*`` ...), each batch normalization folded into the convolution before it."""
    result: dict[str, Tensor] = {}

    def fold(convolution: str, norm: str, name: str) -> None:
        spread = torch.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
        factor = state[f"{norm}.weight"] / spread
        result[f"{name}.weight"] = (state[f"{convolution}.weight"] * factor[:, None, None, None]).contiguous()
        result[f"{name}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * factor

    fold("_conv_stem", "_bn0", "stem")
    fold("_conv_head", "_bn1", "head")
    for index, (_, _, expansion, _, _) in enumerate(blocks()):
        old, new = f"_blocks.{index}", f"blocks.{index}"
        if expansion != 1:
            fold(f"{old}._expand_conv", f"{old}._bn0", f"{new}.expand")
        fold(f"{old}._depthwise_conv", f"{old}._bn1", f"{new}.depthwise")
        fold(f"{old}._project_conv", f"{old}._bn2", f"{new}.project")
    return result
