"""Shapes of models that may be built without downloading anything: random weights, the published sizes.

The figures are those of each model's published config.json; what is not named is the default of its family's class in
transformers.
"""

from __future__ import annotations

from typing import Any

_OPT = {"vocab_size": 50272, "max_position_embeddings": 2048}
_LLAMA_3 = {
    "vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "bos_token_id": 128_000, "eos_token_id": 128_001,
}  # fmt: skip
_QWEN_2 = {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-6}

# name, as the last part of its name on the hub in lower case -> (family, what differs from the family's defaults)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2-medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "opt-125m": ("opt", {**_OPT}),
    "opt-1.3b": (
        "opt",
        {**_OPT, "hidden_size": 2048, "word_embed_proj_dim": 2048, "num_hidden_layers": 24, "ffn_dim": 8192,
         "num_attention_heads": 32},
    ),
    "opt-6.7b": (
        "opt",
        {**_OPT, "hidden_size": 4096, "word_embed_proj_dim": 4096, "num_hidden_layers": 32, "ffn_dim": 16_384,
         "num_attention_heads": 32},
    ),
    "llama-3-8b": (
        "llama",
        {**_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    ),
    "qwen2.5-0.5b": (
        "qwen2",
        {**_QWEN_2, "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
         "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}},
    ),
    "qwen2.5-7b": (
        "qwen2",
        {**_QWEN_2, "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
         "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}},
    ),
    "vit-base-patch16-224": ("vit", {"num_labels": 1000}),
    "bert-base-uncased": ("bert", {"num_labels": 2}),
}  # fmt: skip
ALIASES = {"meta-llama-3-8b": "llama-3-8b"}


def shape_of(name: str) -> tuple[str, dict[str, Any]] | None:
    """Family and fields of the built-in shape that `name` means (``facebook/opt-1.3b``, ``opt-1.3b``), or None."""
    short = name.rsplit("/", 1)[-1].lower()
    return SHAPES.get(ALIASES.get(short, short))
