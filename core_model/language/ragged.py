"""Samples of unequal length one after another in one row, without any padding between them.

`core_model.language.packing` spares the products with weights their padding and still pads for attention; it serves
processors. GPUs have attention kernels for rows like these ("varlen", Dao 2023, FlashAttention-2): nothing is put at
other places and back. Behind the samples the row is filled up to a multiple of `ROWS`, so that few CUDA graphs serve
all batches; the filling is one sample more, whose hidden states nobody reads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 128  # rows of one tile of a GPU's matrix product: a started tile costs what a full one does
FINE = 16  # a row's filling is at most one part in so many, beyond the first tile
LONGEST = 128  # the longest sample is rounded up to a multiple of this: it only sizes the kernel's grid


def _find_kernel() -> tuple[Callable[..., Any], dict[str, Any], bool] | None:
    """torch's kernel, the options that make it causal, and whether it wants to be told of grouped queries; None where
    this torch has none that is known here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    if "window_size" in known:
        return varlen_attn, {"window_size": (-1, 0)}, "enable_gqa" in known
    if "is_causal" in known:
        return varlen_attn, {"is_causal": True}, "enable_gqa" in known
    return None


_KERNEL = _find_kernel()


def kernel_takes(head_width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch has a kernel for rows of samples with heads of this width, in this type, on this device."""
    if _KERNEL is None or device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return not head_width % 8 and head_width <= 256 and torch.cuda.get_device_capability(device) >= (8, 0)


def rows_for(tokens: int) -> int:
    """Length of the row that holds so many tokens: few different lengths, and little filling."""
    step = ROWS
    while step * 2 * FINE <= tokens:
        step *= 2
    return _up(tokens, step)


def longest_for(longest: int, rows: int) -> int:
    """What the kernel of a row of this length is told to be its longest sample, where that has `longest` tokens: few
    different numbers. The filling is a sample too, of at most the step of `rows_for`."""
    return max(_up(longest, LONGEST), LONGEST * max(1, rows // (LONGEST * FINE)))


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


class Ragged:
    """Where the samples of a row stand, and attention inside each of them.

    Args:
        starts: int32 (S + 1,), ascending: sample s takes the places starts[s] .. starts[s + 1] - 1; the last is `rows`.
        rows: length N of the row.
        longest: no sample is longer than this.
        known: number of positions before each sample whose keys and values are constant.
        by_kernel: attention by torch's kernel (`kernel_takes`), else by a mask over the whole row: the same result, for
            tests.
    """

    def __init__(self, starts: Tensor, *, rows: int, longest: int, known: int = 0, by_kernel: bool = False) -> None:
        device = starts.device
        self.longest, self.known, self.by_kernel = longest, known, by_kernel
        self.starts = starts
        places = torch.arange(rows, device=device)
        samples = torch.bucketize(places.to(starts.dtype), starts[1:], right=True)
        self.positions = places - starts[samples] + known
        # keys and values: before each sample the known ones
        self.key_starts = (starts + known * torch.arange(len(starts), device=device)).to(torch.int32)
        self.own_keys = places + known * (samples + 1)
        self.known_keys = (self.key_starts[:-1, None] + torch.arange(known, device=device)).flatten()

    def with_known(self, own: Tensor, known: Tensor) -> Tensor:
        """(K, heads, D): a sample's `known` keys or values (P, heads, D) before its `own`, which are (N, heads, D)."""
        whole = own.new_empty(len(own) + len(self.known_keys), *own.shape[1:])
        repeated = known.to(own.dtype).repeat(len(self.starts) - 1, 1, 1)
        return whole.index_copy_(0, self.known_keys, repeated).index_copy_(0, self.own_keys, own)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, heads, D): causal attention of each sample to its known positions and to itself.

        query: (N, heads, D). key, value: (K, kv_heads, D), K = N where nothing is known.
        """
        grouped = query.shape[1] != key.shape[1]
        if self.by_kernel and _KERNEL is not None:
            kernel, options, knows_groups = _KERNEL
            if grouped and knows_groups:
                options = {**options, "enable_gqa": True}
            elif grouped:
                repeats = query.shape[1] // key.shape[1]
                key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
            most = self.longest + self.known
            return kernel(query, key, value, self.starts, self.key_starts, self.longest, most, **options)
        query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self._mask(), enable_gqa=grouped)
        return out[0].transpose(0, 1)

    def _mask(self) -> Tensor:
        """(N, K) bool: the same sample, and not later."""
        places = torch.arange(
            len(self.own_keys) + len(self.known_keys), dtype=self.starts.dtype, device=self.starts.device
        )
        of_key = torch.bucketize(places, self.key_starts[1:], right=True)
        of_query = of_key[self.own_keys]
        position = places - self.key_starts[of_key]
        return (of_query[:, None] == of_key) & (position <= self.positions[:, None])


class RaggedBatch:
    """A padded batch of texts as such a row: in each sample the frame, then its text.

    Args:
        lengths: int64 (B,), true lengths of the texts.
        frame: number of tokens F that stand before each text.
        length: length T of the padded texts.
        text: int64 (M,), places of the text tokens in the flattened (B, T) texts, ascending.
    """

    def __init__(self, *, lengths: Tensor, frame: int, length: int, text: Tensor) -> None:
        batch, device = len(lengths), lengths.device
        self.tokens = batch * frame + len(text)
        self.rows = rows_for(self.tokens)
        self.longest = longest_for(frame + length, self.rows)
        samples = torch.zeros(batch + 2, dtype=torch.int32, device=device)
        samples[1:-1] = (lengths + frame).cumsum(0)
        samples[-1] = self.rows
        self.starts = samples
        self._frame = frame
        self._frames = (samples[:batch, None] + torch.arange(frame, device=device)).flatten()
        self._texts = torch.arange(len(text), device=device) + (text.div(length, rounding_mode="floor") + 1) * frame

    def row(self, frames: Tensor, texts: Tensor) -> Tensor:
        """(1, N, C) from frames (B, F, C) and text tokens (M, C); zero in the filling."""
        row = texts.new_zeros(self.rows, texts.shape[-1])
        row = row.index_copy_(0, self._frames, frames.flatten(0, 1)).index_copy_(0, self._texts, texts)
        return row[None]

    def before(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Places (A,) in the row of the tokens directly before the text tokens at `rows`, `columns` (A,)."""
        return self.starts[rows] + self._frame + columns - 1
