"""`anomalygpt-7b` made small: from random weights, and from a folder laid out like the published files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from core_model.build import build
from core_model.errors import ModelError
from core_model.language.llama import Llama, LlamaConfig
from core_model.pretrained import registry
from core_model.vision import imagebind
from core_model.vision.imagebind import ImageBindConfig
from core_model.vision.vit import ViTConfig

VISION = ViTConfig(width=24, layers=3, heads=4, patch=14, grid=4, layer_scale=False, patch_bias=False, pre_norm=True)
SMALL = ImageBindConfig(vision=VISION, text_width=16, text_layers=2, text_heads=4, vocab=512, context=40, joint=12)
LANGUAGE = LlamaConfig(vocab=512, width=32, layers=2, heads=4, kv_heads=4, mlp=48)
OVERRIDES = {"taps": "0,2", "text_width": 12, "prompt_channels": "4,8,16", "image_size": 56}


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch) -> None:
    monkeypatch.setattr(imagebind, "HUGE", SMALL)
    monkeypatch.setattr(registry, "VICUNA_7B", LANGUAGE)


def test_random_weights_train(samples) -> None:
    model = build("anomalygpt-7b", random_weights=True, overrides=OVERRIDES, frozen_dtype=torch.bfloat16)
    assert {p.dtype for p in model.frozen_parameters().values() if p.dim() > 1} == {torch.bfloat16, torch.float32}
    assert not any(p.requires_grad for p in model.projection.parameters())
    batch = model.collate(samples(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith(("decoder.", "prompt_learner.")), name
    assert model.text.encoded == 1
    model.answer(batch.images, batch.categories, ["Where?"] * 4, max_new_tokens=3)


def tokenizer_folder(folder: Path) -> None:
    """A byte-level tokenizer with begin and end tokens, the last two of 512 ids (CLIP's place for them)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters |= {f"<unused{index}>": index for index in range(len(letters), 510)}
    letters |= {"<start>": 510, "<end>": 511}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>").save_pretrained(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = build("anomalygpt-7b", random_weights=True, overrides=OVERRIDES)
    vision = {f"vision.{name}": t for name, t in source.encoder.trunk.vision.state_dict().items()}
    state = published_names({**vision, **other_tensors(source)})
    torch.save(state, tmp_path / "imagebind_huge.pth")
    tokenizer_folder(tmp_path / "clip")
    tokenizer_folder(tmp_path / "vicuna")
    llama = Llama(LANGUAGE)
    torch.save(llama.state_dict(), tmp_path / "vicuna" / "pytorch_model.bin")
    config = {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "rms_norm_eps": 1e-5,
    }
    (tmp_path / "vicuna" / "config.json").write_text(json.dumps(config))
    torch.save(
        {"llama_proj.weight": torch.full((32, 12), 0.5), "llama_proj.bias": torch.ones(32)}, tmp_path / "pandagpt.pt"
    )
    return tmp_path


def other_tensors(source: torch.nn.Module) -> dict[str, torch.Tensor]:
    trunk = source.encoder.trunk
    text = {f"text.{name}": tensor for name, tensor in trunk.text.state_dict().items()}
    return {"project.weight": trunk.project.weight, **text}


def published_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published key of each tensor, by asking the loader which of all candidate keys it turns into ours."""
    from core_model.pretrained.key_mapping import imagebind_tensors

    heads = ("cls_token", "pos_embedding_helper.pos_embed", "token_embedding.weight", "pos_embed")
    candidates = [f"modality_preprocessors.{tower}.{head}" for tower in ("vision", "text") for head in heads]
    for kind in ("weight", "bias"):
        candidates += [f"modality_trunks.vision.pre_transformer_layer.0.{kind}", f"modality_heads.vision.0.{kind}"]
        candidates += [f"modality_heads.text.proj.{i}.{kind}" for i in (0, 1)] + [f"modality_heads.vision.2.{kind}"]
    inner = ["attn.in_proj_weight", "attn.in_proj_bias"]
    inner += [
        f"{m}.{k}" for m in ("attn.out_proj", "norm_1", "norm_2", "mlp.fc1", "mlp.fc2") for k in ("weight", "bias")
    ]
    candidates += [f"modality_trunks.{t}.blocks.{i}.{n}" for t in ("vision", "text") for i in range(3) for n in inner]
    found = {}
    for key in candidates:
        for ours in imagebind_tensors({key: torch.zeros(1)}):
            if ours in tensors:
                found[key] = tensors[ours].clone()
    stem = tensors["vision.patch_embedding.weight"]
    found["modality_preprocessors.vision.rgbt_stem.proj.1.weight"] = torch.stack((stem / 2, stem / 2), dim=2)
    return found


def test_published_folder(folder: Path, samples) -> None:
    model = build("anomalygpt-7b", overrides={**OVERRIDES, "weights": str(folder)})
    source = build("anomalygpt-7b", random_weights=True, overrides=OVERRIDES)
    batch = model.collate(samples(2))
    ours, theirs = model.encoder(batch.images), source.encoder(batch.images)
    torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=1e-4, atol=1e-5)
    assert (model.projection.to_language.weight == 0.5).all()
    assert model.describe()["deltas"] == 2
    model(batch)["loss"].backward()
    assert model.prompt_learner.base_prompts.grad is not None
    text = "Is it damaged?"
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    assert model.encoder.trunk.tokenizer.eos_id == 511  # the tower reads at the largest id


def test_what_is_missing_is_named(folder: Path) -> None:
    overrides = {**OVERRIDES, "weights": str(folder)}
    (folder / "pandagpt.pt").unlink()
    with pytest.raises(ModelError, match=r"neither pandagpt\.pt nor anomalygpt\.pt"):
        build("anomalygpt-7b", overrides=overrides)
    (folder / "imagebind_huge.pth").unlink()
    with pytest.raises(ModelError, match=r"no checkpoint .*imagebind_huge\.pth"):
        build("anomalygpt-7b", overrides=overrides)
