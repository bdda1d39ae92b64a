"""A LLaMA-type causal language model, small and quick to start.

Parameter names are those of transformers' ``LlamaForCausalLM``, so that Vicuna, SmolLM2, PandaGPT's delta weights and
peft's LoRA (``q_proj`` ...) fit as they are; a test holds the outputs to transformers'. Written here because a
training step needs three things at once that a general class does not give: logits at the answer positions only, one
fused attention call without a mask (padding is on the right), and a start without the import of a model library.
Source of the architecture: Touvron et al. 2023 (LLaMA), Su et al. 2021 (RoPE), Ainslie et al. 2023 (grouped queries).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core_model.errors import ModelError
from core_model.execution.joined import joined_weight
from core_model.language.keys_and_values import KeyValueCache, Past, Prefix
from core_model.language.packing import Packing
from core_model.language.ragged import Ragged, kernel_takes
from core_model.language.rotary import rotary_table, rotate


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Shape of the transformer. ``tied``: the output layer is the input embedding (no weight of its own)."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = False
    max_positions: int = 2048

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @classmethod
    def from_transformers(cls, values: Mapping[str, Any]) -> LlamaConfig:
        """From the content of a ``config.json`` of model type llama. Raises ModelError for what this one lacks: left
        out, it would compute something else without a word."""
        rope = values.get("rope_parameters") or {}
        scaling = values.get("rope_scaling") or {}
        width_a_head = values["hidden_size"] // values["num_attention_heads"]
        for name, found, own in (
            ("rope_type", rope.get("rope_type") or scaling.get("rope_type") or scaling.get("type"), "default"),
            ("hidden_act", values.get("hidden_act"), "silu"),
            ("head_dim", values.get("head_dim"), width_a_head),
            ("attention_bias", values.get("attention_bias"), False),
            ("mlp_bias", values.get("mlp_bias"), False),
        ):
            if found is not None and found != own:
                raise ModelError(
                    f"config.json has {name} {found}, this LLaMA is {own}: use it as model.language=hub:NAME"
                )
        return cls(
            vocab=values["vocab_size"],
            width=values["hidden_size"],
            layers=values["num_hidden_layers"],
            heads=values["num_attention_heads"],
            kv_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
            mlp=values["intermediate_size"],
            rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0),
            norm_eps=values["rms_norm_eps"],
            tied=bool(values.get("tie_word_embeddings", False)),
            max_positions=values.get("max_position_embeddings", 2048),
        )


class RMSNorm(nn.Module):
    """Root mean square normalization (Zhang & Sennrich 2019), statistics in fp32 whatever the input's type."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention with rotary positions; keys and values may be shared by groups of query heads."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * config.head_width
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, kv_width, bias=False)
        self.v_proj = nn.Linear(config.width, kv_width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)
        self.joined: Tensor | None = None  # weights of q, k and v in one tensor, see `Llama.join`

    def _projected(self, x: Tensor) -> Sequence[Tensor]:
        if self.joined is None:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        kv_width = self.config.kv_heads * self.config.head_width
        return F.linear(x, self.joined).split((self.config.width, kv_width, kv_width), dim=-1)

    def _in_one_row(self, x: Tensor, cos: Tensor, sin: Tensor, past: Past | None, ragged: Ragged) -> Tensor:
        """x: (1, N, width), samples one after another."""
        width = self.config.head_width
        query, key, value = (part.view(part.shape[1], -1, width) for part in self._projected(x))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if past is not None:
            key, value = past(key, value)
        return self.o_proj(ragged.attend(query, key, value).reshape(x.shape))

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        past: Past | None,
        packing: Packing | Ragged | None = None,
    ) -> Tensor:
        if isinstance(packing, Ragged):
            return self._in_one_row(x, cos, sin, past, packing)
        config = self.config
        query, key, value = self._projected(x)
        if packing is not None:
            query, key, value = packing.unpack(query), packing.unpack(key), packing.unpack(value)
        batch, length, _ = query.shape
        query = query.view(batch, length, config.heads, config.head_width).transpose(1, 2)
        key = key.view(batch, length, config.kv_heads, config.head_width).transpose(1, 2)
        value = value.view(batch, length, config.kv_heads, config.head_width).transpose(1, 2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if past is not None:
            key, value = past(key, value)
        grouped = config.kv_heads != config.heads
        if grouped and mask is not None:  # no fused GPU kernel takes both a mask and groups
            repeats = config.heads // config.kv_heads
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
            grouped = False
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None and length > 1, enable_gqa=grouped
        )
        out = out.transpose(1, 2).reshape(batch, length, config.width)
        return self.o_proj(out if packing is None else packing.pack(out))


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.width, bias=False)
        self.joined: Tensor | None = None  # weights of gate and up in one tensor, see `Llama.join`

    def forward(self, x: Tensor) -> Tensor:
        if self.joined is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = F.linear(x, self.joined).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        past: Past | None,
        packing: Packing | Ragged | None = None,
    ) -> Tensor:
        x = x + self.self_attn(_for_products(self.input_layernorm(x)), cos, sin, mask, past, packing)
        return x + self.mlp(_for_products(self.post_attention_layernorm(x)))

    def joinable(self) -> tuple[tuple[Any, tuple[str, ...]], ...]:
        """Parts with an attribute ``joined``, and the names of their layers that take the same input."""
        return (self.self_attn, ("q_proj", "k_proj", "v_proj")), (self.mlp, ("gate_proj", "up_proj"))


def _for_products(x: Tensor) -> Tensor:
    """`x` in autocast's type: cast once and kept once for backward, where each of several products would do it."""
    return x.to(_product_dtype(x))


def _product_dtype(x: Tensor) -> torch.dtype:
    """The type that products of `x` are computed in: autocast's, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class LlamaModel(nn.Module):
    """The transformer without its output layer."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.activation_checkpointing = False

    def forward(
        self,
        embeddings: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        prefix: Prefix | None = None,
        packing: Packing | Ragged | None = None,
    ) -> Tensor:
        """Hidden states (B, T, width) after the last norm.

        embeddings: (B, T, width). positions: (B, T) or (T,) integers, default: 0.. behind cache or prefix. mask: bool,
        broadcastable to (B, heads, T, keys), True = may look; None = causal over this call's positions, which is right
        for right-padded batches and, with a cache, for its first pass and for single-token passes. cache, prefix: what
        went before, one of them; a cache grows, a prefix does not and is shared by all samples.
        packing: embeddings and hidden states are (1, N, width), the tokens without padding; T is the padded length. Of
        a `Ragged` row, which takes no mask and no cache, positions are the row's own.
        """
        self._leave_replaced_weights()
        past = cache if cache is not None else prefix
        ragged = packing if isinstance(packing, Ragged) else None
        cos, sin, mask = self._places(embeddings, positions, mask, past, packing)
        x = embeddings
        for index, layer in enumerate(self.layers):
            if ragged is not None and prefix is not None:
                seen: Past | None = prefix.of_ragged_layer(index, ragged)
            else:
                seen = None if past is None else past.of_layer(index)
            if self.activation_checkpointing and cache is None and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, mask, seen, packing, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask, seen, packing)
        if cache is not None:
            cache.advance(embeddings.shape[1])
        return self.norm(x)

    def _leave_replaced_weights(self) -> None:
        """Joined weights are those of the layers only as long as nobody gave the layers others."""
        layers: Any = self.layers
        for layer in layers:
            for part, names in layer.joinable():
                if part.joined is not None and getattr(part, names[0]).weight.data_ptr() != part.joined.data_ptr():
                    part.joined = None

    def _places(
        self,
        embeddings: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        past: KeyValueCache | Prefix | None,
        packing: Packing | Ragged | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rotation (cosines, sines) of each place and the mask of a call of `forward`."""
        if isinstance(packing, Ragged):
            positions = packing.positions
        else:
            start = past.length if past is not None else 0
            length = embeddings.shape[1] if packing is None else packing.length
            if isinstance(past, Prefix):
                mask = past.mask(length, embeddings.device)
            if positions is None:
                positions = torch.arange(start, start + length, device=embeddings.device)
        cos, sin = rotary_table(positions, self.config.head_width, self.config.rope_theta)
        if positions.dim() == 2 or isinstance(packing, Ragged):
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        # in the type of the queries, which autocast makes
        dtype = _product_dtype(embeddings)
        return cos.to(dtype), sin.to(dtype), mask


class Llama(nn.Module):
    """`LlamaModel` and its output layer."""

    packs = True  # its forward takes a `Packing`

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.width, config.vocab, bias=False)
        self.tie()

    def tie(self) -> None:
        """Where the configuration says so, the output layer shares the input embedding's tensor; call again after the
        tensors were replaced."""
        if self.config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.model.embed_tokens(token_ids)

    def forward(self, embeddings: Tensor, **kwargs: Any) -> Tensor:
        return self.model(embeddings, **kwargs)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def new_cache(self, batch: int, capacity: int) -> KeyValueCache:
        weight = self.model.embed_tokens.weight
        return KeyValueCache(self.config, batch, capacity, device=weight.device, dtype=weight.dtype)

    @torch.no_grad()
    def prefix(self, token_ids: Tensor) -> Prefix:
        """Keys and values of constant tokens (P,), to be given to `forward` of every batch."""
        cache = self.new_cache(1, len(token_ids))
        self.model(self.embed(token_ids)[None], cache=cache)
        return Prefix(cache)

    def embedding_table(self) -> Tensor:
        return self.model.embed_tokens.weight

    @property
    def compiled(self) -> bool:
        """Whether torch.compile has the layers, which would compile again for each number of tokens."""
        return any(layer._compiled_call_impl is not None for layer in self.model.layers)

    @property
    def takes_rows(self) -> bool:
        """Whether attention has a kernel for rows of samples here (`core_model.language.ragged`)."""
        weight = self.model.embed_tokens.weight
        return kernel_takes(self.config.head_width, weight.dtype, weight.device)

    @property
    def graphable(self) -> bool:
        """Whether a forward and backward pass may be captured as CUDA graphs."""
        return not self.model.activation_checkpointing

    def set_activation_checkpointing(self, on: bool) -> None:
        self.model.activation_checkpointing = on

    def join(self, on: bool = True) -> bool:
        """Lets frozen projections that take the same input share one product (`core_model.execution.joined`), or not.
        Returns whether that changed where weights lie."""
        changed = False
        layers: Any = self.model.layers
        for layer in layers:
            for part, names in layer.joinable():
                joined = joined_weight([getattr(part, name) for name in names], part.joined) if on else None
                changed |= joined is not part.joined
                part.joined = joined
        return changed

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None, std: float = 0.02) -> None:
        """Normal weights of standard deviation `std`, as LLaMA's; norms stay 1."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, std, generator=generator)


def parameter_count(config: LlamaConfig) -> int:
    """Parameters of `Llama(config)`, a tied output layer counted once."""
    kv_width = config.kv_heads * config.head_width
    layer = 2 * config.width * config.width + 2 * config.width * kv_width + 3 * config.width * config.mlp
    layer += 2 * config.width
    tables = config.vocab * config.width * (1 if config.tied else 2)
    return config.layers * layer + tables + config.width
