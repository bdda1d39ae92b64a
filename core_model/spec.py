"""The choices that make a model, as data: no torch here, so that a job can be checked before any heavy import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FROZEN_SEED = 20_240_815  # random frozen weights are alike in all runs: they stand for pretrained ones


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Every choice of a model. The overrides of a job (``--set model.FIELD=VALUE``) replace single fields.

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


def to_dict(chosen: ModelSpec) -> dict[str, Any]:
    """JSON-serializable form, for the records."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(chosen).items()}
