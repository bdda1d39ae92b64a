"""Parts of transformers behind our interfaces, from folders made here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core_model.build import build
from core_model.errors import ModelError
from core_model.language.dialogue_format import Collator
from core_model.language.huggingface import HubCausalLM
from core_model.language.llama import Llama, LlamaConfig
from core_model.language.model import LanguageModel
from core_model.language.text_tokenizers import ByteTokenizer

QUESTIONS = ["Is there any defect?", "Where?", "Tell me what you see in this picture."]


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    from transformers import CLIPConfig

    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 300,
        "eos_token_id": 299,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    CLIPConfig(text_config=text, vision_config=vision, projection_dim=20).save_pretrained(tmp_path)
    return tmp_path


def test_clip_preset(clip_folder: Path, samples) -> None:
    options = {"language": "llama-tiny", "prompt_channels": "4,8,16"}
    model = build(f"clip:{clip_folder}", random_weights=True, overrides=options)
    assert model.encoder.trunk.taps == (0, 1, 2, 3)
    assert model.image_size == 56
    batch = model.collate(samples(2))
    model(batch)["loss"].backward()
    assert model.text.encoded == 1
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    maps = model.anomaly_maps(batch.images, batch.categories)
    assert maps.shape == (2, 56, 56)
    trunk = model.encoder.trunk
    pixels = model.encoder.normalize(batch.images)
    with torch.no_grad():
        reference = trunk.clip.vision_model(pixel_values=pixels, output_hidden_states=True)
        features = model.encoder(batch.images)
    torch.testing.assert_close(features.tokens[2], reference.hidden_states[3][:, 1:])
    torch.testing.assert_close(features.pooled, trunk.clip.visual_projection(reference.pooler_output))
    alone, together = trunk.encode_text(["tile"]), trunk.encode_text(["a photo of a broken tile.", "tile"])
    torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-5)


def test_missing_clip_is_one_line() -> None:
    with pytest.raises(ModelError, match="cannot load the CLIP '/no/such/folder'") as error:
        build("clip:/no/such/folder")
    assert "\n" not in str(error.value)


def test_any_causal_model_behaves_as_ours() -> None:
    """The same weights through transformers and through `Llama`: hidden states, and answers with a cache."""
    from transformers import LlamaConfig as Reference
    from transformers import LlamaForCausalLM

    config = LlamaConfig(vocab=ByteTokenizer.vocab, width=32, layers=2, heads=4, kv_heads=2, mlp=48)
    ours = Llama(config).eval()
    ours.initialize(torch.Generator().manual_seed(0), std=0.4)
    theirs = LlamaForCausalLM(
        Reference(
            vocab_size=config.vocab,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            rms_norm_eps=config.norm_eps,
        )
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    tokenizer = ByteTokenizer()
    collator = Collator(tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(3)
    picture, prompts = torch.randn(3, 32, generator=generator), torch.randn(3, 18, 32, generator=generator)
    asked = [collator.encode_question(question) for question in QUESTIONS]
    answers = []
    for transformer in (ours, HubCausalLM(theirs)):
        language = LanguageModel(transformer, tokenizer, collator)
        answers.append(language.generate(picture, prompts, asked, max_new_tokens=10))
        assert answers[-1] == language.generate(picture, prompts, asked, max_new_tokens=10, use_cache=False)
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 3
