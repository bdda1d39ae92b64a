"""The prompt learner: from the anomaly map to vectors that the language model reads (AnomalyGPT, section 3.3)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAP_PROMPTS = 9  # a 5x5 convolution without padding on the 7x7 bottom of the stack leaves 3x3


class PromptLearner(nn.Module):
    """9 learned base prompts, and 9 prompts made of the map by convolutions.

    Stages of 3x3 convolution, ReLU and 2x2 max pooling widen 1 channel to ``channels`` and halve the side each, down to
    7x7; a 5x5 convolution to the language model's width then leaves 3x3 places = 9 vectors, one for each place of the
    3x3 grid that answers name. A map of another side than 7 * 2^stages is resampled first.

    Args:
        channels: (4, 16, 64, 256, 1024) in the paper.
        prompt_std: standard deviation of the base prompts at the start; the standard deviation of the language model's
            embeddings keeps the vectors in the range it knows.
    """

    def __init__(
        self, channels: tuple[int, ...], width: int, *, base_prompts: int = 9, prompt_std: float = 0.02
    ) -> None:
        super().__init__()
        self.input_side = 7 * 2 ** len(channels)
        self.prompt_std = prompt_std
        sizes = (1, *channels)
        stages = [nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(sizes)]
        self.stages = nn.ModuleList(stages)
        self.to_prompts = nn.Conv2d(channels[-1], width, 5)
        self.base_prompts = nn.Parameter(torch.empty(base_prompts, width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """He initialization, so that the map's signal survives the stack (torch's default loses 0.4 x a stage).

        The stages' biases are torch's uniform ones, not zero: where the map is empty, a zero bias puts every unit of a
        region exactly on ReLU's kink, and then the last bit of a sum decides whether the region has a gradient. Two
        engines that sum in another order would part there (seen: 1.6 % of a gradient from a change of 1e-8).
        """
        convolutions: list[Any] = [*self.stages]
        for stage in convolutions:
            nn.init.kaiming_normal_(stage.weight, nonlinearity="relu")
            limit = stage.weight[0].numel() ** -0.5
            nn.init.uniform_(stage.bias, -limit, limit)
        nn.init.kaiming_normal_(self.to_prompts.weight, nonlinearity="linear")
        self.to_prompts.weight.mul_(self.prompt_std)
        self.to_prompts.bias.zero_()  # type: ignore[union-attr]
        self.base_prompts.normal_(0.0, self.prompt_std)

    @property
    def prompts(self) -> int:
        return MAP_PROMPTS + self.base_prompts.shape[0]

    def forward(self, maps: Tensor) -> Tensor:
        """(B, 9 + 9, width): base prompts first.

        Args:
            maps: (B, S, S) probabilities of "defect".
        """
        x = maps[:, None]
        if x.shape[-1] != self.input_side:
            size = (self.input_side, self.input_side)
            x = F.interpolate(x.float(), size=size, mode="bilinear", antialias=True).to(x.dtype)
        for stage in self.stages:
            x = F.max_pool2d(F.relu(stage(x)), 2)
        from_map = self.to_prompts(x).flatten(2).transpose(1, 2)
        base = self.base_prompts.to(from_map.dtype).expand(len(maps), -1, -1)
        return torch.cat((base, from_map), dim=1)
