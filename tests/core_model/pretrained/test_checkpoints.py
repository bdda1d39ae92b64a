"""Loaders of published checkpoints, on files with the published keys, made small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core_model.build import build
from core_model.errors import ModelError
from core_model.execution.frozen import build_empty
from core_model.language.llama import Llama, LlamaConfig
from core_model.language.text_tokenizers import HashTokenizer
from core_model.pretrained.key_mapping import apply_deltas, imagebind_tensors, load_llama_folder, read_torch
from core_model.pretrained.wheels import assign
from core_model.vision.imagebind import ImageBind, ImageBindConfig
from core_model.vision.vit import ViTConfig

WIDTH, TEXT, JOINT, LAYERS, HEADS, PATCH, GRID = 24, 16, 12, 2, 4, 7, 3
CONFIG = ImageBindConfig(
    vision=ViTConfig(
        width=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        patch=PATCH,
        grid=GRID,
        layer_scale=False,
        patch_bias=False,
        pre_norm=True,
    ),
    text_width=TEXT,
    text_layers=LAYERS,
    text_heads=HEADS,
    vocab=60,
    context=10,
    joint=JOINT,
)


def published_imagebind() -> dict[str, Tensor]:
    """A small state dict with the keys of imagebind_huge.pth (those of another sense too)."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    state = {
        "modality_preprocessors.vision.cls_token": draw(1, 1, WIDTH),
        "modality_preprocessors.vision.rgbt_stem.proj.1.weight": draw(WIDTH, 3, 2, PATCH, PATCH),
        "modality_preprocessors.vision.pos_embedding_helper.pos_embed": draw(1, 1 + GRID**2, WIDTH),
        "modality_trunks.vision.pre_transformer_layer.0.weight": 1 + draw(WIDTH),
        "modality_trunks.vision.pre_transformer_layer.0.bias": draw(WIDTH),
        "modality_heads.vision.0.weight": 1 + draw(WIDTH),
        "modality_heads.vision.0.bias": draw(WIDTH),
        "modality_heads.vision.2.weight": draw(JOINT, WIDTH),
        "modality_preprocessors.text.mask": torch.zeros(10, 10),
        "modality_preprocessors.text.token_embedding.weight": draw(60, TEXT),
        "modality_preprocessors.text.pos_embed": draw(1, 10, TEXT),
        "modality_heads.text.proj.0.weight": 1 + draw(TEXT),
        "modality_heads.text.proj.0.bias": draw(TEXT),
        "modality_heads.text.proj.1.weight": draw(JOINT, TEXT),
        "modality_postprocessors.text.1.log_logit_scale": torch.tensor(4.6),
        "modality_preprocessors.audio.cls_token": draw(1, 1, 8),
        "modality_trunks.audio.blocks.0.attn.bias_k": draw(1, 1, 8),
    }
    for tower, width in (("vision", WIDTH), ("text", TEXT)):
        for index in range(LAYERS):
            block = f"modality_trunks.{tower}.blocks.{index}"
            state |= {
                f"{block}.attn.in_proj_weight": draw(3 * width, width),
                f"{block}.attn.in_proj_bias": draw(3 * width),
                f"{block}.attn.out_proj.weight": draw(width, width),
                f"{block}.attn.out_proj.bias": draw(width),
                f"{block}.norm_1.weight": 1 + draw(width),
                f"{block}.norm_1.bias": draw(width),
                f"{block}.norm_2.weight": 1 + draw(width),
                f"{block}.norm_2.bias": draw(width),
                f"{block}.mlp.fc1.weight": draw(4 * width, width),
                f"{block}.mlp.fc1.bias": draw(4 * width),
                f"{block}.mlp.fc2.weight": draw(width, 4 * width),
                f"{block}.mlp.fc2.bias": draw(width),
            }
    return state


def reference_blocks(state: dict[str, Tensor], tower: str, x: Tensor, causal: bool) -> list[Tensor]:
    """The paper's pre-norm blocks, through torch's own MultiheadAttention."""
    width = x.shape[-1]
    results = []
    for index in range(LAYERS):
        block = f"modality_trunks.{tower}.blocks.{index}"

        def get(name: str, block: str = block) -> Tensor:
            return state[f"{block}.{name}"]

        attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        attention.load_state_dict({k: get(f"attn.{k}") for k in attention.state_dict()})
        mask = torch.triu(torch.full((x.shape[1],) * 2, -torch.inf), diagonal=1) if causal else None
        y = nn.functional.layer_norm(x, (width,), get("norm_1.weight"), get("norm_1.bias"), 1e-6)
        x = x + attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = nn.functional.layer_norm(x, (width,), get("norm_2.weight"), get("norm_2.bias"), 1e-6)
        y = nn.functional.gelu(nn.functional.linear(y, get("mlp.fc1.weight"), get("mlp.fc1.bias")))
        x = x + nn.functional.linear(y, get("mlp.fc2.weight"), get("mlp.fc2.bias"))
        results.append(x)
    return results


@pytest.fixture
def imagebind() -> ImageBind:
    trunk = build_empty(lambda: ImageBind(CONFIG, (0, 1)))
    return assign(trunk, imagebind_tensors(published_imagebind()), "test").eval()


@torch.no_grad()
def test_imagebind_vision_equals_the_published_two_frame_model(imagebind: ImageBind) -> None:
    state = published_imagebind()
    pixels = torch.randn(2, 3, PATCH * GRID, PATCH * GRID, generator=torch.Generator().manual_seed(1))
    video = torch.stack((pixels, pixels), dim=2)
    stem = state["modality_preprocessors.vision.rgbt_stem.proj.1.weight"]
    x = nn.functional.conv3d(video, stem, stride=(2, PATCH, PATCH)).flatten(2).transpose(1, 2)
    x = torch.cat((state["modality_preprocessors.vision.cls_token"].expand(2, -1, -1), x), dim=1)
    x = x + state["modality_preprocessors.vision.pos_embedding_helper.pos_embed"]
    norm = "modality_trunks.vision.pre_transformer_layer.0"
    x = nn.functional.layer_norm(x, (WIDTH,), state[f"{norm}.weight"], state[f"{norm}.bias"], 1e-6)
    blocks = reference_blocks(state, "vision", x, causal=False)
    head = "modality_heads.vision"
    pooled = nn.functional.layer_norm(
        blocks[-1][:, 0], (WIDTH,), state[f"{head}.0.weight"], state[f"{head}.0.bias"], 1e-6
    )
    features = imagebind(pixels)
    torch.testing.assert_close(features.pooled, pooled @ state[f"{head}.2.weight"].T, rtol=1e-4, atol=1e-4)
    for ours, block in zip(features.tokens, blocks, strict=True):
        torch.testing.assert_close(ours, block[:, 1:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_imagebind_text_is_read_at_the_end_token(imagebind: ImageBind) -> None:
    state = published_imagebind()
    ids = torch.tensor([[58, 5, 7, 59, 0, 0], [58, 3, 59, 0, 0, 0]])
    prefix = "modality_preprocessors.text"
    x = state[f"{prefix}.token_embedding.weight"][ids] + state[f"{prefix}.pos_embed"][:, :6]
    last = reference_blocks(state, "text", x, causal=True)[-1][torch.arange(2), torch.tensor([3, 2])]
    head = "modality_heads.text.proj"
    last = nn.functional.layer_norm(last, (TEXT,), state[f"{head}.0.weight"], state[f"{head}.0.bias"], 1e-6)
    torch.testing.assert_close(imagebind.text(ids), last @ state[f"{head}.1.weight"].T, rtol=1e-4, atol=1e-4)
    imagebind.tokenizer = HashTokenizer(58, bos=58, eos=59)
    together = imagebind.encode_text(["a photo of a broken tile.", "tile"])
    torch.testing.assert_close(imagebind.encode_text(["tile"])[0], together[1], rtol=1e-5, atol=1e-5)


def test_imagebind_of_another_size_is_refused() -> None:
    state = imagebind_tensors(published_imagebind())
    state["vision.positions"] = state["vision.positions"][:, :5]
    with pytest.raises(ModelError, match="does not fit"):
        assign(build_empty(lambda: ImageBind(CONFIG, (0,))), state, "test")
    del state["vision.positions"]
    with pytest.raises(ModelError, match=r"lacks vision.positions"):
        assign(build_empty(lambda: ImageBind(CONFIG, (0,))), state, "test")


# -- delta weights -----------------------------------------------------------------------------------------------------


def paper_like_tiny() -> torch.nn.Module:
    return build("tiny", overrides={"text": "language", "text_width": 64}, seed=5)


def pandagpt(rank: int = 4) -> dict[str, Tensor]:
    """Keys of PandaGPT's pytorch_model.pt at tiny's shapes: projection (joint 32 -> 64) and LoRA."""
    generator = torch.Generator().manual_seed(1)
    state = {
        "llama_proj.weight": torch.randn(64, 32, generator=generator),
        "llama_proj.bias": torch.randn(64, generator=generator),
    }
    for layer in range(2):
        for name, out in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)):
            key = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{name}"
            state[f"{key}.lora_A.default.weight"] = torch.randn(rank, 64, generator=generator) * 0.1
            state[f"{key}.lora_B.default.weight"] = torch.randn(out, rank, generator=generator) * 0.1
    return state


def anomalygpt() -> dict[str, Tensor]:
    """Keys of AnomalyGPT's pytorch_model.pt at tiny's shapes: each third module of its sequence is a convolution."""
    generator = torch.Generator().manual_seed(2)
    state = {"prompt_learner.base_prompts": torch.randn(9, 64, generator=generator)}
    channels = (1, 4, 8, 16)
    for stage in range(3):
        shape = (channels[stage + 1], channels[stage], 3, 3)
        state[f"prompt_learner.meta_net.{3 * stage}.weight"] = torch.randn(*shape, generator=generator)
        state[f"prompt_learner.meta_net.{3 * stage}.bias"] = torch.randn(shape[0], generator=generator)
    state["prompt_learner.meta_net.9.weight"] = torch.randn(64, 16, 5, 5, generator=generator)
    state["prompt_learner.meta_net.9.bias"] = torch.randn(64, generator=generator)
    for block in range(2):
        state[f"image_decoder.fc.{block}.weight"] = torch.randn(64, 32, generator=generator)
        state[f"image_decoder.fc.{block}.bias"] = torch.randn(64, generator=generator)
    return state


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    torch.save(pandagpt(), tmp_path / "pandagpt.pt")
    torch.save(anomalygpt(), tmp_path / "anomalygpt.pt")
    return [tmp_path / "pandagpt.pt", tmp_path / "anomalygpt.pt"]


def test_deltas_land_where_they_belong(files: list[Path]) -> None:
    model = paper_like_tiny()
    before = model.language.transformer.model.layers[1].self_attn.k_proj.weight.clone()
    loaded = apply_deltas(model, files, alpha=8.0)
    panda, anomaly = pandagpt(), anomalygpt()
    assert torch.equal(model.projection.to_language.weight, panda["llama_proj.weight"])
    assert torch.equal(model.decoder.adapters[1].head.weight, anomaly["image_decoder.fc.1.weight"])
    assert torch.equal(model.prompt_learner.stages[2].weight, anomaly["prompt_learner.meta_net.6.weight"])
    assert torch.equal(model.prompt_learner.to_prompts.bias, anomaly["prompt_learner.meta_net.9.bias"])
    assert torch.equal(model.prompt_learner.base_prompts, anomaly["prompt_learner.base_prompts"])
    key = "llama_model.base_model.model.model.layers.1.self_attn.k_proj.lora_{}.default.weight"
    change = 8.0 / 4 * panda[key.format("B")] @ panda[key.format("A")]
    merged = model.language.transformer.model.layers[1].self_attn.k_proj.weight
    torch.testing.assert_close(merged - before, change, rtol=1e-4, atol=1e-6)
    assert len(loaded) == 2 + 8 + 4 + 1 + 8  # projection, LoRA pairs, decoder, base prompts, convolutions


def test_later_files_replace_earlier_ones_without_adding_lora_twice(files: list[Path], tmp_path: Path) -> None:
    torch.save({**anomalygpt(), **pandagpt()}, tmp_path / "all.pt")
    once, twice = paper_like_tiny(), paper_like_tiny()
    apply_deltas(once, [tmp_path / "all.pt"])
    apply_deltas(twice, [files[0], tmp_path / "all.pt"])
    for (name, a), (_, b) in zip(once.named_parameters(), twice.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_wrong_deltas_are_refused(tmp_path: Path) -> None:
    def refused(state: dict, words: str) -> None:
        torch.save(state, tmp_path / "wrong.pt")
        with pytest.raises(ModelError, match=words):
            apply_deltas(paper_like_tiny(), [tmp_path / "wrong.pt"])

    refused({"something.else": torch.zeros(1)}, "no tensor of the delta weights fits")
    refused({"llama_proj.weight": torch.zeros(64, 99)}, r"\(64, 99\) in the file, \(64, 32\) in the model")
    refused({"image_decoder.fc.7.weight": torch.zeros(64, 32)}, "which this model lacks")
    half = {k: v for k, v in pandagpt().items() if "lora_B" not in k}
    refused(half, "cut off")


class Trap:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("trapped"),))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"llama_proj.weight": Trap()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="no checkpoint of plain tensors"):
        read_torch(tmp_path / "evil.pt")
    assert not Path("trapped").exists()
    (tmp_path / "cut.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="no checkpoint of plain tensors"):
        read_torch(tmp_path / "cut.pt")
    with pytest.raises(ModelError, match="no checkpoint"):
        read_torch(tmp_path / "absent.pt")


# -- a folder of a LLaMA-type model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["safetensors", "bin"])
def test_llama_folder(tmp_path: Path, style: str) -> None:
    from safetensors.torch import save_file

    config = LlamaConfig(vocab=40, width=16, layers=2, heads=4, kv_heads=2, mlp=24)
    source = Llama(config)
    state = dict(source.state_dict())
    values = {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "rms_norm_eps": 1e-5,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    names = sorted(state)
    if style == "bin":  # Vicuna v0: two shards, with rotary buffers that later versions dropped
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        torch.save({n: state[n] for n in names[:9]}, tmp_path / "pytorch_model-00001-of-00002.bin")
        rest = [n for n in state if n not in names[:9]]
        torch.save({n: state[n] for n in rest}, tmp_path / "pytorch_model-00002-of-00002.bin")
    else:
        save_file(state, tmp_path / "model.safetensors")
    loaded = load_llama_folder(tmp_path, torch.bfloat16)
    for name, tensor in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(torch.bfloat16)), name
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "opt"}))
    with pytest.raises(ModelError, match="type 'opt'"):
        load_llama_folder(tmp_path)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_llama_folder(tmp_path / "nowhere")
