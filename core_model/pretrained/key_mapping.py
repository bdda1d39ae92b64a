"""Published checkpoints, by their key names: ImageBind's, a LLaMA-type folder's, PandaGPT's and AnomalyGPT's deltas.

Files are read with ``weights_only=True`` (no code in a checkpoint runs). Nothing is downloaded: give local files.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from core_model.errors import ModelError
from core_model.execution.frozen import build_empty
from core_model.language.llama import Llama, LlamaConfig
from core_model.pretrained.wheels import assign, read

if TYPE_CHECKING:
    from core_model.anomalygpt.model import AnomalyGPT

LORA_KEY = re.compile(r"layers\.(\d+)\.self_attn\.([qkvo]_proj)\.lora_([AB])(?:\.default)?\.weight$")
PROMPT_CONV_KEY = re.compile(r"prompt_learner\.meta_net\.(\d+)\.(weight|bias)$")
DECODER_KEY = re.compile(r"image_decoder\.fc\.(\d+)\.(weight|bias)$")


def read_torch(path: Path) -> dict[str, Tensor]:
    """A checkpoint written by ``torch.save`` or as safetensors. Raises ModelError where it is missing, damaged or holds
    more than tensors."""
    if not path.is_file():
        raise ModelError(f"no checkpoint {path}: give the path of the published file")
    if path.suffix == ".safetensors":
        return read(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ModelError(f"{path} is no checkpoint of plain tensors: {str(error).splitlines()[0]}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict", state.get("model")), Mapping):
        state = state.get("state_dict", state.get("model"))
    if not isinstance(state, Mapping):
        raise ModelError(f"{path} holds a {type(state).__name__} instead of named tensors: give a state dict")
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def imagebind_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of `core_model.vision.imagebind.ImageBind` from the published ones; towers of other senses are left out."""
    block_names = {
        "attn.in_proj_weight": "qkv.weight",
        "attn.in_proj_bias": "qkv.bias",
        "attn.out_proj.weight": "out.weight",
        "attn.out_proj.bias": "out.bias",
        "norm_1.weight": "norm1.weight",
        "norm_1.bias": "norm1.bias",
        "norm_2.weight": "norm2.weight",
        "norm_2.bias": "norm2.bias",
        "mlp.fc1.weight": "fc1.weight",
        "mlp.fc1.bias": "fc1.bias",
        "mlp.fc2.weight": "fc2.weight",
        "mlp.fc2.bias": "fc2.bias",
    }
    single = {
        "modality_preprocessors.vision.cls_token": "vision.class_token",
        "modality_preprocessors.vision.pos_embedding_helper.pos_embed": "vision.positions",
        "modality_trunks.vision.pre_transformer_layer.0.weight": "vision.pre_norm.weight",
        "modality_trunks.vision.pre_transformer_layer.0.bias": "vision.pre_norm.bias",
        "modality_heads.vision.0.weight": "vision.norm.weight",
        "modality_heads.vision.0.bias": "vision.norm.bias",
        "modality_heads.vision.2.weight": "project.weight",
        "modality_preprocessors.text.token_embedding.weight": "text.token_embedding.weight",
        "modality_preprocessors.text.pos_embed": "text.positions",
        "modality_heads.text.proj.0.weight": "text.norm.weight",
        "modality_heads.text.proj.0.bias": "text.norm.bias",
        "modality_heads.text.proj.1.weight": "text.project.weight",
    }
    result = {}
    for name, tensor in state.items():
        if name in single:
            result[single[name]] = tensor
        elif name == "modality_preprocessors.vision.rgbt_stem.proj.1.weight":
            result["vision.patch_embedding.weight"] = tensor.sum(
                dim=2
            )  # two equal frames: see core_model.vision.imagebind
        else:
            match = re.fullmatch(r"modality_trunks\.(vision|text)\.blocks\.(\d+)\.(.+)", name)
            if match and match[3] in block_names:
                result[f"{match[1]}.blocks.{match[2]}.{block_names[match[3]]}"] = tensor
    return result


def load_llama_folder(folder: Path, dtype: torch.dtype = torch.float32) -> Llama:
    """A LLaMA-type model from a folder with ``config.json`` and ``*.safetensors`` or ``pytorch_model*.bin``."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ModelError(f"no language model in {folder}: it needs config.json and the weights beside it")
    values = json.loads(config_file.read_text())
    if values.get("model_type") != "llama":
        raise ModelError(f"{folder} holds a model of type '{values.get('model_type')}': use a LLaMA-type one (Vicuna)")
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ModelError(f"no weights in {folder}: it needs *.safetensors or pytorch_model*.bin")
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read_torch(file).items():
            if not name.endswith("rotary_emb.inv_freq"):
                tensors[name] = tensor.to(dtype)
    config = LlamaConfig.from_transformers(values)
    if config.tied:
        tensors.pop("lm_head.weight", None)
    model = build_empty(lambda: Llama(config))
    return assign(model, tensors, str(folder))


def apply_deltas(model: AnomalyGPT, paths: Iterable[Path], *, alpha: float = 32.0) -> list[str]:
    """Loads PandaGPT's and AnomalyGPT's ``pytorch_model.pt`` into an `AnomalyGPT`, later files over earlier ones.

    ``llama_proj.*`` becomes the projection, ``image_decoder.fc.K.*`` the decoder, ``prompt_learner.*`` the prompt
    learner. LoRA pairs are added into the frozen weights (W + alpha / r * B A), which costs nothing afterwards.
    Returns the names of what was loaded; raises ModelError where nothing fits, a shape differs or half of a pair is
    missing.
    """
    merged: dict[str, Tensor] = {}
    for path in paths:
        merged.update(read_torch(path))
    targets, pairs = delta_targets(model, merged)
    if not targets and not pairs:
        raise ModelError("no tensor of the delta weights fits: give PandaGPT's or AnomalyGPT's pytorch_model.pt")
    for (layer, name), pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise ModelError(
                f"delta weights: layer {layer} {name} has LoRA {' '.join(pair)} alone; the file is cut off"
            )
    with torch.no_grad():
        for target, (parameter, tensor) in targets.items():
            if parameter.shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)} in the file, {tuple(parameter.shape)} in the model"
                raise ModelError(f"delta weights: {target} is {shapes}; use the preset that they were made with")
            parameter.copy_(tensor)
        layers = model.language.transformer.model.layers
        for (layer, name), pair in pairs.items():
            if layer >= len(layers):
                raise ModelError(f"delta weights name layer {layer}: the language model has {len(layers)} layers")
            weight = getattr(layers[layer].self_attn, name).weight
            change = (pair["B"].float() @ pair["A"].float()) * (alpha / pair["A"].shape[0])
            if change.shape != weight.shape:
                shapes = f"{tuple(change.shape)}, the model's weight is {tuple(weight.shape)}"
                raise ModelError(f"delta weights: LoRA of layer {layer} {name} is for {shapes}")
            weight.add_(change.to(weight.device, weight.dtype))
    return sorted([*targets, *(f"lora.{layer}.{name}" for layer, name in pairs)])


def delta_targets(
    model: AnomalyGPT, state: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[nn.Parameter, Tensor]], dict[tuple[int, str], dict[str, Tensor]]]:
    """Which parameter each tensor of delta weights is meant for, and the LoRA pairs by (layer, projection)."""
    own = dict(model.named_parameters())
    convolutions = sorted({int(m[1]) for name in state if (m := PROMPT_CONV_KEY.search(name))})
    stages = len(model.prompt_learner.stages)
    names: dict[str, Tensor] = {}
    pairs: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if match := LORA_KEY.search(name):
            pairs.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
        elif match := DECODER_KEY.search(name):
            names[f"decoder.adapters.{match[1]}.head.{match[2]}"] = tensor
        elif match := PROMPT_CONV_KEY.search(name):
            place = convolutions.index(int(match[1]))  # the sequence also numbers its ReLUs and poolings
            target = "to_prompts" if place == stages else f"stages.{place}"
            names[f"prompt_learner.{target}.{match[2]}"] = tensor
        elif name.endswith("prompt_learner.base_prompts"):
            names["prompt_learner.base_prompts"] = tensor
        elif match := re.search(r"llama_proj\.(weight|bias)$", name):
            names[f"projection.to_language.{match[1]}"] = tensor
    for name in names:
        if name not in own:
            remedy = "use the paper's decoder and projection"
            raise ModelError(f"delta weights have {name}, which this model lacks: {remedy}")
    return {name: (own[name], tensor) for name, tensor in names.items()}, pairs
