"""Language models of transformers, family by family: embeddings and logits as the model's own forward pass makes
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core_model.build import embedding_std
from core_model.errors import ModelError
from core_model.language.dialogue_format import Collator
from core_model.language.huggingface import HubCausalLM, load_causal_lm
from core_model.language.model import LanguageModel
from core_model.language.text_tokenizers import ByteTokenizer
from core_model.pretrained.placement import Placement

WIDTH = 32
COMMON: dict[str, Any] = {
    "vocab_size": ByteTokenizer.vocab,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "granite": {
        "num_key_value_heads": 2,
        "logits_scaling": 8.0,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.2,
        "attention_multiplier": 0.05,
    },
    "granitemoe": {"num_key_value_heads": 2, "logits_scaling": 8.0, "num_local_experts": 2},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.0625},
    "gemma": GROUPED,
    "gemma2": {**GROUPED, "final_logit_softcapping": 0.5, "attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 8},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16, "dropout": 0.0},
    "gpt2": {},
    "qwen2": {"num_key_value_heads": 2},
}


def made(family: str, **options: Any) -> Any:
    """A tiny model of the family, with random weights that matter."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[family](**{**COMMON, **(options or FAMILIES[family])})
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3, generator=generator)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_of_embeddings_are_those_of_tokens(family: str) -> None:
    model = made(family)
    hub = HubCausalLM(model)
    hub.check()
    ids = torch.randint(3, COMMON["vocab_size"], (2, 9), generator=torch.Generator().manual_seed(1))
    own = model(input_ids=ids).logits
    hidden = hub(hub.embed(ids))
    torch.testing.assert_close(hub.logits(hidden), own, rtol=0, atol=0)
    torch.testing.assert_close(hub.logits(hidden[[1, 0, 1], [3, 5, 8]]), own[[1, 0, 1], [3, 5, 8]])  # as losses ask
    assert hub.config.width == hub.embed(ids).shape[-1]
    torch.testing.assert_close(model(input_ids=ids).logits, own, rtol=0, atol=0)  # nothing is left behind


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_what_stands_before(family: str) -> None:
    hub = HubCausalLM(made(family).requires_grad_(False))
    embeddings = hub.embed(torch.arange(3, 9)[None]).clone().requires_grad_()
    hub.logits(hub(embeddings)).square().sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().max() > 0


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "granitemoe"])
def test_answers_are_the_same_with_and_without_a_cache(family: str) -> None:
    hub, tokenizer = HubCausalLM(made(family)), ByteTokenizer()
    language = LanguageModel(hub, tokenizer, Collator(tokenizer=tokenizer))
    generator = torch.Generator().manual_seed(3)
    width = hub.config.width
    picture, prompts = torch.randn(2, width, generator=generator), torch.randn(2, 3, width, generator=generator)
    asked = [language.collator.encode_question(question) for question in ("Where?", "Is there any defect here?")]
    answers = language.generate(picture, prompts, asked, max_new_tokens=6)
    assert answers == language.generate(picture, prompts, asked, max_new_tokens=6, use_cache=False)


@torch.no_grad()
def test_capped_attention_is_loaded_and_caps(tmp_path: Path) -> None:
    """Forced to sdpa, which has no cap, Gemma-2 was not loaded at all."""
    capped, plain = (made("gemma2", **{**FAMILIES["gemma2"], "attn_logit_softcapping": cap}) for cap in (0.1, None))
    ids = torch.arange(3, 12)[None]
    hidden = [hub(hub.embed(ids)) for hub in (HubCausalLM(capped), HubCausalLM(plain))]
    assert (hidden[0] - hidden[1]).abs().max() > 1e-3
    capped.config.save_pretrained(tmp_path)
    loaded, tokenizer = load_causal_lm(str(tmp_path), Placement(random=True))
    assert loaded.inner.config._attn_implementation == "eager"
    assert tokenizer.encode("a b")


def test_prompts_start_in_the_range_of_scaled_embeddings() -> None:
    hub = HubCausalLM(made("gemma"))
    plain = float(hub.inner.get_input_embeddings().weight.detach().std())
    assert embedding_std(hub) == pytest.approx(plain * WIDTH**0.5, rel=1e-3)


def test_a_family_that_scales_tokens_alone_is_refused_by_name(tmp_path: Path) -> None:
    """Falcon-H1 multiplies the embeddings of tokens, not those that it is given."""
    options = {**GROUPED, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
    HubCausalLM(made("falcon_h1", **options)).check()
    scaled = made("falcon_h1", **options, embedding_multiplier=3.0)
    with pytest.raises(ModelError, match="FalconH1ForCausalLM makes other logits of embeddings than of tokens"):
        HubCausalLM(scaled).check()
    scaled.config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="FalconH1ForCausalLM"):
        load_causal_lm(str(tmp_path), Placement(random=True))


def test_a_model_that_fails_on_embeddings_is_one_line() -> None:
    """MiniCPM3 cannot run with this configuration at all: whatever it raises is one line."""
    with pytest.raises(ModelError, match="MiniCPM3ForCausalLM cannot be given embeddings") as caught:
        HubCausalLM(made("minicpm3", **GROUPED)).check()
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_language_model_is_one_line(tmp_path: Path) -> None:
    from transformers import ViTConfig

    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot load the language model") as caught:
        load_causal_lm(str(tmp_path), Placement(random=True))
    assert "\n" not in str(caught.value)
