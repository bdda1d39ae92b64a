"""The choices that make a model, as data: no torch here, so that a job can be checked before any heavy import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Annotated, Any, Literal

from pydantic import Field

from backends.declared import declared
from core_model.errors import ModelError

FROZEN_SEED = 20_240_815  # random frozen weights are alike in all runs: they stand for pretrained ones


_Count = Annotated[int, Field(ge=1)]


@declared(ModelError, "model: ")
class ModelSpec:
    """Every choice of a model. The overrides of a job (``--set model.FIELD=VALUE``) replace single fields.

    Args:
        encoder, language: names of parts (`core_model.pretrained.registry`); ``vit-s14+efficientnet-lite0`` joins two
            encoders.
        taps: 0-based encoder blocks whose tokens the decoder reads.
        second_taps: those of the second encoder.
        encoder_sizes: sides to which the picture is resampled, a look by the encoder each
            (`core_model.vision.encoder`); () = the picture as it is.
        text: where the features of "normal" and "abnormal" come from: ``tower`` (the encoder's own text tower),
            ``language`` (the language model encodes the prompt ensembles), ``learned`` (parameters of the decoder).
        text_width: of the space they live in.
        decoder_layers, scale, learned_scale: see `core_model.anomalygpt.decoder`.
        prompt_channels: see `core_model.anomalygpt.prompt_learner`.
        projection: ``two_stage`` or ``mlp``.
        joint: width between its two stages.
        train_projection: off in the paper, which takes PandaGPT's.
        lora: rank of LoRA on q, k, v, o; 0 = none.
        pack_on_gpu: the language model computes no padding on GPUs either (`core_model.language.ragged`; on CPUs it
            never does).
        prefix_on_gpu: nor, in such rows, the constant text before the picture.
        join_frozen: on GPUs its frozen projections of one input are one product (`core_model.execution.joined`).
        losses: fields of `core_model.anomalygpt.losses.LossWeights`.
        weights: folder of published checkpoints (`core_model.pretrained.published`).
    """

    preset: str
    encoder: str
    language: str
    image_size: Annotated[int, Field(ge=8)]
    taps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    second_taps: tuple[Annotated[int, Field(ge=0)], ...] = (4, 10)
    encoder_sizes: tuple[Annotated[int, Field(ge=8)], ...] = ()
    text: Literal["learned", "language", "tower"] = "learned"
    text_width: _Count = 64
    decoder_layers: tuple[str, ...] = ("linear",)
    scale: Annotated[float, Field(gt=0)] = 100.0
    learned_scale: bool = False
    per_image_normalization: bool = False
    prompt_channels: Annotated[tuple[_Count, ...], Field(min_length=1)] = (4, 16, 64, 256, 1024)
    projection: Literal["two_stage", "mlp"] = "two_stage"
    joint: _Count = 512
    train_projection: bool = True
    lora: Annotated[int, Field(ge=0)] = 0
    lora_alpha: _Count = 32
    detach_map: bool = False
    cuda_graphs: bool = True
    pack_on_gpu: bool = False
    prefix_on_gpu: bool = False
    join_frozen: bool = False
    scoring: str = "top1"
    max_tokens: _Count = 512
    losses: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    version: str = ""


def to_dict(chosen: ModelSpec) -> dict[str, Any]:
    """JSON-serializable form, for the records."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(chosen).items()}
    defaults = {
        "pack_on_gpu": False,
        "prefix_on_gpu": False,
        "join_frozen": False,
        "second_taps": [4, 10],
        "encoder_sizes": [],
    }
    for name, default in defaults.items():
        if values[name] == default:  # as before there was one: records stay comparable
            del values[name]
    return values
