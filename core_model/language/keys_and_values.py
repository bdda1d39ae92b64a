"""Keys and values of positions that went before: a cache that grows, and a constant text before every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core_model.language.ragged import Ragged

if TYPE_CHECKING:
    from core_model.language.llama import LlamaConfig

Past = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # a layer's new keys and values -> all that it looks at


class KeyValueCache:
    """Keys and values of the positions seen so far, one pair a layer, in buffers of fixed size.

    Shapes: (batch, kv_heads, capacity, head_width). `advance` is called once a forward pass, after its last layer.
    """

    def __init__(self, config: LlamaConfig, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype):
        shape = (batch, config.kv_heads, capacity, config.head_width)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self.length = 0

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes this pass's keys and values behind the old ones and returns all of them."""
        end = self.length + key.shape[2]
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def of_layer(self, layer: int) -> Past:
        """What `layer` calls with its new keys and values, to get all."""
        return lambda key, value: self.update(layer, key, value)

    def advance(self, steps: int) -> None:
        self.length += steps


class Prefix:
    """Rotated keys and values, a pair a layer, of tokens that stand before every sample: (1, kv_heads, P, head_width).

    While the model is frozen they are the same in every step, and no gradient needs to flow through them.
    """

    def __init__(self, cache: KeyValueCache) -> None:
        self.keys = [key.detach().clone() for key in cache.keys]
        self.values = [value.detach().clone() for value in cache.values]
        self.length = cache.length

    def of_layer(self, layer: int) -> Past:
        """Puts the prefix before the layer's keys and values (B, kv_heads, T, D): (B, kv_heads, P + T, D)."""
        keys, values = self.keys[layer], self.values[layer]

        def before(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            batch = len(key)
            return (
                torch.cat((keys.expand(batch, -1, -1, -1), key), dim=2),
                torch.cat((values.expand(batch, -1, -1, -1), value), dim=2),
            )

        return before

    def of_ragged_layer(self, layer: int, ragged: Ragged) -> Past:
        """The same for a row of samples: keys and values (N, kv_heads, D) -> (K, kv_heads, D)."""
        keys, values = self.keys[layer][0].transpose(0, 1), self.values[layer][0].transpose(0, 1)
        return lambda key, value: (ragged.with_known(key, keys), ragged.with_known(value, values))

    def mask(self, length: int, device: torch.device) -> Tensor:
        """(T, P + T) bool: every place sees the prefix, itself and what is between."""
        return torch.ones(length, self.length + length, dtype=torch.bool, device=device).tril(self.length)
