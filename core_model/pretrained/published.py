"""The folder of published checkpoints from which `anomalygpt-7b` is loaded.

::

    FOLDER/imagebind_huge.pth      ImageBind's checkpoint
    FOLDER/clip/                   CLIP's tokenizer (tokenizer.json or vocab.json and merges.txt), read by transformers
    FOLDER/vicuna/                 Vicuna-7B v0: config.json, weights, tokenizer
    FOLDER/pandagpt.pt             PandaGPT's pytorch_model.pt (7B, LoRA r = 32): projection and LoRA
    FOLDER/anomalygpt.pt           optional: AnomalyGPT's pytorch_model.pt, trained decoder and prompt learner
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from core_model.errors import ModelError
from core_model.execution.frozen import build_empty
from core_model.language.text_tokenizers import HubTokenizer
from core_model.pretrained.key_mapping import apply_deltas, imagebind_tensors, load_llama_folder, read_torch
from core_model.pretrained.wheels import assign
from core_model.vision.imagebind import ImageBind, ImageBindConfig

if TYPE_CHECKING:
    from core_model.anomalygpt.model import AnomalyGPT

DELTAS = ("pandagpt.pt", "anomalygpt.pt")


def load_imagebind(folder: Path, config: ImageBindConfig, taps: tuple[int, ...]) -> ImageBind:
    """ImageBind's vision and text towers with the published weights."""
    path = folder / "imagebind_huge.pth"
    trunk = build_empty(lambda: ImageBind(config, taps))
    assign(trunk, imagebind_tensors(read_torch(path)), str(path))
    trunk.tokenizer = HubTokenizer(_tokenizer(folder / "clip"))
    return trunk


def load_vicuna(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Vicuna's weights in `dtype`, on the CPU, and its tokenizer."""
    return load_llama_folder(folder / "vicuna", dtype), _tokenizer(folder / "vicuna")


def load_deltas(model: AnomalyGPT, folder: Path) -> list[str]:
    """Adds what PandaGPT and AnomalyGPT trained; returns the names of what was loaded."""
    paths = [folder / name for name in DELTAS if (folder / name).is_file()]
    if not paths:
        raise ModelError(f"neither {DELTAS[0]} nor {DELTAS[1]} in {folder}: the projection would be untrained")
    return apply_deltas(model, paths)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer in {folder}: copy the model's tokenizer files there") from error
