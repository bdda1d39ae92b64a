"""Frozen linear layers of one input as one: their weights lie in one tensor, so one product serves all.

Larger products fill a GPU better, forward and in the input's gradient, and the gradient needs no sum over the layers.
The layers keep their parameters, names and all, as views of the joined tensor: nothing is stored twice. Whoever moves,
recasts or replaces a parameter takes it out of there; then the layers are joined again or left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def joined_weight(layers: Sequence[nn.Module], known: Tensor | None = None) -> Tensor | None:
    """(sum of outputs, inputs): the weights of `layers`, one below the other, whose parameters become views of it.

    Args:
        layers: of one input.
        known: what an earlier call made; returned as it is where the layers' weights still lie there.

    Returns:
        None where they cannot be joined: trained or empty (sharded away) weights, biases, other kinds of layers (LoRA),
        hooks that an engine has put on one.
    """
    weights: list[nn.Parameter] = []
    for layer in layers:
        if type(layer) is not nn.Linear or layer.bias is not None or layer._forward_hooks or layer._forward_pre_hooks:
            return None
        weights.append(layer.weight)
    if any(type(weight) is not nn.Parameter or weight.requires_grad or not weight.numel() for weight in weights):
        return None
    if known is not None and _lie_in(weights, known):
        return known
    with torch.no_grad():
        joined = torch.cat([weight.detach() for weight in weights])
        for weight, part in zip(weights, joined.split([len(weight) for weight in weights]), strict=True):
            weight.data = part
    return joined


def _lie_in(weights: Sequence[Tensor], joined: Tensor) -> bool:
    """Whether the weights are the parts of `joined`, in order."""
    place = joined.data_ptr()
    for weight in weights:
        if weight.data_ptr() != place or weight.dtype != joined.dtype or not weight.is_contiguous():
            return False
        place += weight.numel() * weight.element_size()
    return place == joined.data_ptr() + joined.numel() * joined.element_size()
