"""Models that are no AnomalyGPT, by preset. By itself: whoever starts a job looks here and need not import torch."""

from __future__ import annotations

# preset -> "module:maker", called as maker(overrides, seed=, device=)
MODELS = {"llama-600m": "core_model.transformer_lm:build_transformer"}
