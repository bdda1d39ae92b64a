"""The frozen parts by name: `make_encoder` and `make_language`, pretrained or with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from core_model.errors import ModelError
from core_model.execution.frozen import freeze
from core_model.language.llama import Llama, LlamaConfig
from core_model.language.text_tokenizers import ByteTokenizer, FileTokenizer, HashTokenizer, HubTokenizer, Tokenizer
from core_model.pretrained import wheels
from core_model.pretrained.placement import Placement
from core_model.spec import FROZEN_SEED, ModelSpec
from core_model.vision.encoder import CLIP, IMAGENET, Encoder, ViTTrunk
from core_model.vision.joint import JointTrunk
from core_model.vision.vit import VisionTransformer, ViTConfig

TINY_VIT = ViTConfig(width=32, layers=4, heads=2, patch=7, grid=8, mlp_ratio=2)
TINY_LLAMA = LlamaConfig(vocab=ByteTokenizer.vocab, width=64, layers=2, heads=4, kv_heads=2, mlp=128)
VICUNA_7B = LlamaConfig(
    vocab=32_000, width=4096, layers=32, heads=32, kv_heads=32, mlp=11_008, norm_eps=1e-6, max_positions=2048
)


def make_encoder(spec: ModelSpec, place: Placement) -> Encoder:
    """The image encoder that `spec.encoder` names; two joined by ``+`` look at the same picture side by side."""
    first, *others = spec.encoder.split("+")
    trunk, normalization = _trunk(replace(spec, encoder=first), place)
    if others:
        found = [(trunk, normalization)]
        found += [_trunk(replace(spec, encoder=name, taps=spec.second_taps), place) for name in others]
        own = None if spec.per_image_normalization else [each for _, each in found]
        trunk = JointTrunk([each for each, _ in found], own).to(place.device)
    per_image, sizes = spec.per_image_normalization, spec.encoder_sizes
    return freeze(Encoder(trunk, normalization=normalization, per_image=per_image, sizes=sizes))


def _trunk(spec: ModelSpec, place: Placement) -> tuple[Any, Any]:
    """A frozen trunk and the normalization of its training."""
    name, _, variant = spec.encoder.partition(":")
    makers: dict[str, Callable[[ModelSpec, Placement], tuple[Any, Any]]] = {
        "vit-tiny": _vit_tiny,
        "vit-s14": _vit_s14,
        "efficientnet-lite0": _efficientnet,
        "imagebind-huge": _imagebind,
        "clip": lambda spec, place: _clip(spec, place, variant),
    }
    if name not in makers:
        raise ModelError(f"unknown encoder '{spec.encoder}': choose one of {', '.join(makers)}, or two joined by +")
    return makers[name](spec, place)


def _vit_tiny(spec: ModelSpec, place: Placement) -> tuple[nn.Module, Any]:
    return ViTTrunk(place.draw(lambda: VisionTransformer(TINY_VIT), FROZEN_SEED), spec.taps), IMAGENET


def _vit_s14(spec: ModelSpec, place: Placement) -> tuple[nn.Module, Any]:
    if place.random:
        return ViTTrunk(place.draw(lambda: VisionTransformer(wheels.VIT_S), FROZEN_SEED), spec.taps), IMAGENET
    return ViTTrunk(place.put(wheels.load_vit_s()), spec.taps), IMAGENET


def _efficientnet(spec: ModelSpec, place: Placement) -> tuple[nn.Module, Any]:
    from core_model.vision.efficientnet import NORMALIZATION, EfficientNetLite0

    if place.random:
        return place.draw(lambda: EfficientNetLite0(spec.taps), FROZEN_SEED), NORMALIZATION
    return place.put(wheels.load_efficientnet(spec.taps)), NORMALIZATION


def _imagebind(spec: ModelSpec, place: Placement) -> tuple[nn.Module, Any]:
    from core_model.vision.imagebind import HUGE, ImageBind

    if place.random:
        trunk = place.draw(lambda: ImageBind(HUGE, spec.taps), FROZEN_SEED)
        # begin and end are CLIP's two largest ids; the tower reads at the largest
        trunk.tokenizer = HashTokenizer(HUGE.vocab - 2, bos=HUGE.vocab - 2, eos=HUGE.vocab - 1)
        return trunk, CLIP
    from core_model.pretrained.published import load_imagebind

    return place.put(load_imagebind(_folder(spec), HUGE, spec.taps)), CLIP


def _clip(spec: ModelSpec, place: Placement, name: str) -> tuple[nn.Module, Any]:
    from core_model.language.huggingface import load_clip

    return load_clip(name, spec.taps, place), CLIP


def make_language(spec: ModelSpec, place: Placement) -> tuple[nn.Module, Tokenizer]:
    """The language model that `spec.language` names, frozen, and its tokenizer."""
    name, _, variant = spec.language.partition(":")
    if name == "llama-tiny":
        return place.draw(lambda: Llama(TINY_LLAMA), FROZEN_SEED + 1), ByteTokenizer()
    if name == "smollm2-135m":
        if place.random:
            return place.draw(lambda: Llama(wheels.SMOLLM2), FROZEN_SEED + 1), HashTokenizer(wheels.SMOLLM2.vocab)
        file = wheels.smollm2_tokenizer_file()
        return freeze(place.put(wheels.load_smollm2())), FileTokenizer(file, **wheels.SMOLLM2_TOKENS)
    if name == "vicuna-7b":
        if place.random:
            return place.draw(lambda: Llama(VICUNA_7B), FROZEN_SEED + 1), HashTokenizer(VICUNA_7B.vocab)
        from core_model.pretrained.published import load_vicuna

        vicuna, read_tokenizer = load_vicuna(_folder(spec), place.dtype)
        return freeze(vicuna.to(place.device)), HubTokenizer(read_tokenizer)
    if name == "hub" and variant:
        from core_model.language.huggingface import load_causal_lm

        model, tokenizer = load_causal_lm(variant, place)
        return freeze(model), tokenizer
    raise ModelError(f"unknown language model '{spec.language}': llama-tiny, smollm2-135m, vicuna-7b or hub:NAME")


def check_weights(spec: ModelSpec) -> None:
    """Raises ModelError where published checkpoints are wanted and their folder is not named or not there."""
    if spec.encoder == "imagebind-huge" or spec.language == "vicuna-7b":
        folder = _folder(spec)
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such folder of published checkpoints (model.weights)")


def _folder(spec: ModelSpec) -> Path:
    if not spec.weights:
        raise ModelError(
            f"preset {spec.preset} needs its published checkpoints: --set model.weights=FOLDER, or --random-weights"
        )
    return Path(spec.weights)
