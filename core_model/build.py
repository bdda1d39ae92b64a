"""From a preset to its model: makes the parts that a `ModelSpec` names and joins them to an `AnomalyGPT`."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core_model import presets
from core_model.anomalygpt.context_decoder import make_decoder
from core_model.anomalygpt.losses import LossWeights
from core_model.anomalygpt.model import AnomalyGPT
from core_model.anomalygpt.projection import projection
from core_model.anomalygpt.prompt_learner import PromptLearner
from core_model.anomalygpt.text_features import TextFeatures
from core_model.errors import ModelError
from core_model.language.dialogue_format import Collator
from core_model.language.model import LanguageModel
from core_model.models import MODELS
from core_model.pretrained.placement import Placement
from core_model.pretrained.registry import make_encoder, make_language
from core_model.spec import ModelSpec, to_dict
from core_model.vision.encoder import Encoder


def build(
    preset: str,
    *,
    image_size: int = 0,
    random_weights: bool = False,
    overrides: Mapping[str, Any] | None = None,
    version: str = "",
    seed: int = 0,
    device: torch.device | str = "cpu",
    frozen_dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The model of a preset, on `device`, ready for `Backend.prepare`.

    Args:
        image_size: side in pixels, 0 = the preset's.
        random_weights: frozen parts with random weights (speed and memory studies).
        seed: of the trained parts' initial weights, drawn on the CPU: the same on every rank, engine and device.
        frozen_dtype: storage type of the frozen parts, applied while they are made.

    Raises:
        ModelError: for a preset, a field or a size that cannot be built.
    """
    if preset in MODELS:
        module, _, maker = MODELS[preset].partition(":")
        return getattr(importlib.import_module(module), maker)(overrides or {}, seed=seed, device=device)
    chosen = presets.spec(preset, overrides=overrides, version=version)
    if image_size:
        chosen = replace(chosen, image_size=image_size)
    return assemble(chosen, random_weights=random_weights, seed=seed, device=device, frozen_dtype=frozen_dtype)


def outline(
    preset: str,
    *,
    image_size: int = 0,
    overrides: Mapping[str, Any] | None = None,
    version: str = "",
) -> nn.Module | None:
    """The model as `build` would make it, without a single weight (on torch's meta device): what cannot be built raises
    ModelError in a moment, without reading a checkpoint. None for parts of a hub, which their files alone describe."""
    if preset in MODELS:
        return build(preset, overrides=overrides, device="meta")
    chosen = presets.spec(preset, overrides=overrides, version=version)
    if image_size:
        chosen = replace(chosen, image_size=image_size)
    if chosen.encoder.startswith("clip:") or chosen.language.startswith("hub:"):
        return None
    return assemble(replace(chosen, weights=""), random_weights=True, device="meta")


def draw_ahead(preset: str, *, overrides: Mapping[str, Any] | None = None, seed: int = 0) -> None:
    """Draws the start weights that `build` will want on a GPU, where a preset keeps them; nothing for the others."""
    if preset in MODELS:
        own = getattr(importlib.import_module(MODELS[preset].partition(":")[0]), "draw_ahead", None)
        if own is not None:
            own(overrides or {}, seed=seed)


def assemble(
    spec: ModelSpec,
    *,
    random_weights: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    frozen_dtype: torch.dtype = torch.float32,
) -> AnomalyGPT:
    """The model of `spec`. See `build`."""
    place = Placement(device=device, dtype=frozen_dtype, random=random_weights)
    encoder = make_encoder(spec, place)
    encoder.sides(spec.image_size)
    transformer, tokenizer = make_language(spec, place)
    language = LanguageModel(transformer, tokenizer, Collator(tokenizer=tokenizer, max_tokens=spec.max_tokens))
    model = AnomalyGPT(
        encoder=encoder,
        language=language,
        text=_text_features(spec, encoder, language),
        image_size=spec.image_size,
        loss_weights=LossWeights(**spec.losses),
        detach_map=spec.detach_map,
        scoring=spec.scoring,
        description={"spec": to_dict(spec), "random_weights": random_weights or spec.preset == "tiny"},
        **_trained_parts(spec, encoder, language, seed=seed),
    )
    model.projection.requires_grad_(spec.train_projection)
    model.set_cuda_graphs(spec.cuda_graphs)
    model.language.packed_on_gpu, model.language.prefix_on_gpu = spec.pack_on_gpu, spec.prefix_on_gpu
    model.language.joined = spec.join_frozen
    if spec.weights:
        from core_model.pretrained.published import load_deltas

        model.description["deltas"] = len(load_deltas(model, Path(spec.weights)))
    if spec.lora:
        from core_model.language.lora import add_lora

        _seeded("lora", seed, lambda: add_lora(model.language, rank=spec.lora, alpha=spec.lora_alpha))
    return model.to(device)


def _trained_parts(spec: ModelSpec, encoder: Encoder, language: LanguageModel, *, seed: int) -> dict[str, Any]:
    """Decoder, prompt learner and projection, by their names in `AnomalyGPT`, with the seed's start weights."""
    joint_already = spec.text == "tower"  # the encoder's embedding is in the space of its text tower

    def decoder() -> Any:
        return make_decoder(
            encoder.channels,
            spec.text_width,
            layers=spec.decoder_layers,
            scale=spec.scale,
            learned_scale=spec.learned_scale,
            learned_text=spec.text == "learned",
        )

    def prompt_learner() -> PromptLearner:
        return PromptLearner(spec.prompt_channels, language.width, prompt_std=embedding_std(language.transformer))

    def projecting() -> Any:
        return projection(
            spec.projection,
            embedding=0 if joint_already else encoder.embedding,
            joint=encoder.embedding if joint_already else spec.joint,
            width=language.width,
        )

    made = {"decoder": decoder, "prompt_learner": prompt_learner, "projection": projecting}
    return {part: _seeded(part, seed, make) for part, make in made.items()}


def _seeded(part: str, seed: int, make: Callable[[], Any]) -> Any:
    """Makes a trained part on the CPU with random numbers that depend on nothing but its name and the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + zlib.crc32(part.encode()))
        return make()


def embedding_std(transformer: Any) -> float:
    """Standard deviation of the language model's input embeddings: the range in which prompt vectors start."""
    table = transformer.embedding_table()
    return 0.02 if table.is_meta else float(table[:4096].detach().float().std())


def _text_features(spec: ModelSpec, encoder: Encoder, language: LanguageModel) -> TextFeatures | None:
    if spec.text == "learned":
        return None
    if spec.text == "language":
        if spec.text_width != language.width:
            text = f"text_width is {spec.text_width}: with text from the language model it is {language.width}"
            raise ModelError(text)
        return TextFeatures(language.sentence_vectors, centred=True)
    if spec.text == "tower":
        return TextFeatures(encoder.trunk.encode_text, centred=False)
    raise ModelError(f"unknown text source '{spec.text}': choose learned, language or tower")
