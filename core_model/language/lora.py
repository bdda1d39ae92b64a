"""LoRA (Hu et al. 2021) on the language model's attention, through peft; optional, off in the paper's training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core_model.errors import ModelError

if TYPE_CHECKING:
    from core_model.language.model import LanguageModel

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def add_lora(language: LanguageModel, *, rank: int, alpha: int) -> None:
    """Adds trainable low-rank pairs to q, k, v and o of every layer, in place; no dropout, so that a sample's gradient
    depends on nothing else. Raises ModelError where peft is missing."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError("LoRA needs peft: run `pip install peft`, or leave model.lora at 0") from error
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=TARGETS)
    inject_adapter_in_model(config, language.transformer)
    for name, parameter in language.transformer.named_parameters():
        parameter.requires_grad_("lora_" in name)
