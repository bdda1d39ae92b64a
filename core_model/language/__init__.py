"""The language model: LLaMA-type transformer, tokenizers, dialogue format, transformers' models."""
