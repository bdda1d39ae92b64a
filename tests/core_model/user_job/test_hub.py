"""Models of transformers from a configuration alone: every task keeps the contract, every mistake is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core_model.errors import ModelError
from core_model.user_job.checks import check
from core_model.user_job.hub_shapes import SHAPES
from core_model.user_job.model import UserModel, build_user_model

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 300, "samples": 16}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 300,
    "samples": 16,
}
VIT = {key: value for key, value in BERT.items() if key != "vocab_size"} | {"image_size": 32, "num_labels": 5}
LLAMA = {**BERT, "num_key_value_heads": 2, "head_dim": 16}
QWEN = {key: value for key, value in LLAMA.items() if key != "head_dim"}
OPT = {key: value for key, value in BERT.items() if key != "intermediate_size"} | {
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "opt": ("facebook/opt-1.3b", OPT),
    "llama": ("llama-3-8b", LLAMA),
    "qwen": ("Qwen/Qwen2.5-0.5B", QWEN),
    "bert": ("bert-base-uncased", BERT),
    "vit": ("vit-base-patch16-224", VIT),
}


def build(name: str, settings: dict[str, Any], data: str = "synthetic", **more: Any) -> UserModel:
    return build_user_model(f"hf:{name}", settings, seed=0, data=data, random_weights=True, **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_contract(family: str) -> None:
    name, settings = FAMILIES[family]
    model = build(name, {**settings, "dropout": 0})
    found = check(model)
    assert (found.samples, found.noisy) == (16, False)
    facts = model.describe()
    assert facts["attention"] in ("sdpa", "eager")
    assert facts["trainable_parameters"] == sum(p.numel() for p in model.parameters())


def test_dropout_is_the_configurations_own_unless_it_is_set() -> None:
    assert check(build("gpt2", GPT2)).noisy


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_adapters_in_float32_beside_frozen_half_precision(family: str) -> None:
    name, settings = FAMILIES[family]
    model = build(name, {**settings, "dropout": 0, "lora": 2}, frozen_dtype=torch.bfloat16)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in key or "classifier" in key or "score" in key for key in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in model.frozen_parameters().values()} == {torch.bfloat16}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(model.collate([model.own_dataset().get(index) for index in range(2)]))["loss"]
    loss.backward()
    assert all(p.grad is not None for p in trained.values())


@pytest.mark.parametrize(("name", "millions"), [
    ("gpt2", 124), ("gpt2-medium", 355), ("gpt2-xl", 1558), ("opt-125m", 125), ("opt-1.3b", 1316), ("opt-6.7b", 6658),
    ("llama-3-8b", 8030), ("qwen2.5-0.5b", 494), ("qwen2.5-7b", 7616), ("vit-base-patch16-224", 86.6),
    ("bert-base-uncased", 109.5),
])  # fmt: skip
def test_built_in_shapes_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    model = build(name, {}, device="meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=5e-3)


def test_all_shapes_are_checked() -> None:
    assert len(SHAPES) == 11


def test_a_text_is_packed_by_bytes_and_a_part_is_held_out(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("To be, or not to be, that is the question. " * 40)
    model = build("gpt2", {**GPT2, "length": 32, "dropout": 0}, f"text:{file}")
    sample = model.own_dataset().get(0)["input_ids"]
    assert bytes(sample.tolist()).decode() == "To be, or not to be, that is the"
    assert model.describe()["tokenizer"] == "bytes"
    check(model)
    assert set(model.evaluate()) == {"held_out_loss"}
    assert len(model.own_dataset()) + len(model.job.evaluate.data) == 53


def test_lines_of_unequal_length_weigh_the_same(tmp_path: Path) -> None:
    file = tmp_path / "reviews.jsonl"
    rows = [{"text": "good " * (1 + number), "label": ["bad", "good"][number % 2]} for number in range(12)]
    file.write_text("\n".join(map(json.dumps, rows)))
    check(build("gpt2", {**GPT2, "dropout": 0}, f"jsonl:{file}"))
    model = build("bert-base-uncased", {**BERT, "dropout": 0}, f"jsonl:{file}")
    check(model)
    assert model.module.model.config.num_labels == 2
    assert set(model.evaluate()) == {"held_out_loss", "held_out_accuracy"}


def test_a_folder_with_configuration_weights_and_nothing_else(tmp_path: Path) -> None:
    """Pretrained weights from a folder; the seed does not touch them."""
    first = build("gpt2", {**GPT2, "dropout": 0})
    first.module.model.save_pretrained(tmp_path)
    model = build_user_model(f"hf:{tmp_path}", {"dropout": 0, "samples": 16}, seed=7)
    wanted, found = first.state_dict(), model.state_dict()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert model.describe()["spec"]["preset"] == f"hf:{tmp_path.name}"


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for on in (False, True):
        model = build("gpt2", {**GPT2, "dropout": 0}).train()
        model.set_activation_checkpointing(on)
        model(model.collate([model.own_dataset().get(0)]))["loss"].backward()
        gradients.append(model.module.model.transformer.wte.weight.grad)
    assert torch.equal(*gradients)


REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "unknown name": ("no-such-model", {}, "synthetic", "shapes that need no files: gpt2"),
    "unknown setting": ("gpt2", {"n_hed": 3}, "synthetic", "did you mean 'n_head'"),
    "length": ("gpt2", {}, "tokens:9999", "9999 tokens a sample: the model takes 1024"),
    "no number": ("gpt2", {}, "tokens:many", "write the number of tokens a sample"),
    "pictures for text": ("gpt2", {}, "pixels", "takes tokens:LENGTH, text:FILE or jsonl:FILE"),
    "text for pictures": ("vit-base-patch16-224", {}, "tokens:12", "takes pixels"),
    "no file": ("gpt2", {}, "text:/nowhere/x.txt", "/nowhere/x.txt cannot be read"),
    "text for classes": ("bert-base-uncased", {}, "text:/nowhere/x.txt", "takes tokens:LENGTH or jsonl:FILE"),
    "wrong type": ("gpt2", {"lora": "many"}, "synthetic", "lora: 'many' is not a whole number"),
    "wrong layers": ("gpt2", {**GPT2, "lora": 2, "lora_targets": "nothing"}, "synthetic", "LoRA: "),
    "attention": ("gpt2", {"attention": "fast"}, "synthetic", "attention"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_one_line(kind: str) -> None:
    name, settings, data, said = REFUSED[kind]
    with pytest.raises(ModelError) as error:
        build(name, settings, data, device="meta")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "said"), [
    ("", "it is empty"), ('{"txt": "a"}', "line 1: it has no field 'text'"), ("{", "line 1: no JSON"),
    ('{"text": "abc"}\n{"text": "a"}', "line 2: its text has fewer than two tokens"),
])  # fmt: skip
def test_damaged_lines_are_named(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text(content)
    with pytest.raises(ModelError, match=said):
        build("gpt2", GPT2, f"jsonl:{file}", device="meta")
