"""Matrix FLOPs of training steps, from shapes (a multiply-add counts 2); elementwise work is left out.

Two counts, which are never mixed:

- *useful*: what the batch's real tokens need. No padding, the causal half of attention, nothing computed twice. Its
  share of the device's peak is the model FLOPs utilization (MFU; Chowdhery et al. 2022, "PaLM", appendix B).
- *done*: what is computed, as torch.utils.flop_counter counts it: padding, all of the score matrix, the constant text
  before the picture where it is not kept, and the forward pass again where activations are recomputed. Its share is the
  hardware utilization.

Frozen parts count forward only where no gradient passes through them (encoder); forward and the inputs' gradients where
one does (language model); trained parts forward, the weights' gradients and, unless their input is frozen, the inputs'.
Tests hold both counts to FlopCounterMode on real steps of several lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from core_model.anomalygpt.decoder import ImageDecoder
from core_model.language.llama import LlamaConfig
from core_model.vision.vit import ViTConfig

if TYPE_CHECKING:
    from core_model.anomalygpt.model import AnomalyGPT


@dataclass
class Shape:
    """Sizes that decide a batch's FLOPs; those of several batches add up.

    samples: pictures. rows: positions that pass through the language model. pairs: entries of its score matrix, a head
    and layer. logits: positions that pass through its output layer.
    """

    samples: int = 0
    rows: int = 0
    pairs: float = 0.0
    logits: int = 0

    def add(self, other: Shape) -> None:
        """Adds another batch's."""
        self.samples += other.samples
        self.rows += other.rows
        self.pairs += other.pairs
        self.logits += other.logits


@dataclass
class Work:
    """What a model has trained on since it was last taken: what was needed, and what was computed for it."""

    useful: Shape = field(default_factory=Shape)
    done: Shape = field(default_factory=Shape)

    def take(self) -> Work:
        """The counts so far; from now on they begin anew."""
        taken = Work(self.useful, self.done)
        self.useful, self.done = Shape(), Shape()
        return taken


def useful_shape(lengths: Sequence[int], logits: int, *, frame: int = 0, known: int = 0) -> Shape:
    """Of texts of these lengths. frame: positions before each text. known: positions before the frame whose keys and
    values are constant. Causal: a position sees itself and what is before it."""
    rows = [frame + length for length in lengths]
    pairs = sum(count * known + count * (count + 1) / 2 for count in rows)
    return Shape(samples=len(rows), rows=sum(rows), pairs=pairs, logits=logits)


def vit_flops(config: ViTConfig, side: int) -> float:
    """One picture of `side` pixels through a vision transformer."""
    patches = (side // config.patch) ** 2
    tokens = patches + 1
    block = 2.0 * tokens * config.width**2 * (4 + 2 * config.mlp_ratio) + 4.0 * tokens**2 * config.width
    return config.layers * block + 2.0 * patches * config.width * 3 * config.patch**2


def llama_flops(config: LlamaConfig, shape: Shape, *, trained: bool, recompute: bool = False) -> tuple[float, float]:
    """(forward, backward) of a LLaMA whose input needs a gradient. trained: its weights do too. recompute: its layers
    run forward a second time in the backward pass, which is counted there."""
    kv_width = config.kv_heads * config.head_width
    weights = 2 * config.width**2 + 2 * config.width * kv_width + 3 * config.width * config.mlp
    products = config.layers * 2.0 * shape.rows * weights
    attention = config.layers * 4.0 * shape.pairs * config.width
    output = 2.0 * shape.logits * config.width * config.vocab
    passes = 2 if trained else 1  # of the weights' products: the inputs' gradients, and the weights'
    backward = passes * (products + output) + 2 * attention  # scores and values: gradients of both factors
    if recompute:  # torch stops at the last activation that is kept: a layer's last product is not among them
        backward += products + attention - config.layers * 2.0 * shape.rows * config.mlp * config.width
    return products + attention + output, backward


def anomalygpt_flops(model: AnomalyGPT, shape: Shape, *, recompute: bool = False) -> dict[str, float] | None:
    """FLOPs of batches of these sizes by part, and ``forward``, ``backward`` and ``total``. None for a model with parts
    that are not counted here: encoders other than the two vision transformers, the decoder ``context``, language models
    of transformers, LoRA.
    """
    encoder, config = _encoder_forward(model), getattr(model.language.transformer, "config", None)
    if encoder is None or not isinstance(config, LlamaConfig) or not isinstance(model.decoder, ImageDecoder):
        return None
    if any(parameter.requires_grad for parameter in model.language.transformer.parameters()):
        return None
    parts = {
        "encoder": (encoder, 0.0),
        "decoder": _decoder(model),
        "prompt_learner": _prompt_learner(model),
        "projection": _layers(model.projection, [1, 1], input_gradient=False),
    }
    parts = {name: (shape.samples * forward, shape.samples * backward) for name, (forward, backward) in parts.items()}
    parts["language"] = llama_flops(config, shape, trained=False, recompute=recompute)
    forward, backward = (sum(part[index] for part in parts.values()) for index in (0, 1))
    return {name: sum(part) for name, part in parts.items()} | {
        "forward": forward,
        "backward": backward,
        "total": forward + backward,
    }


def _encoder_forward(model: AnomalyGPT) -> float | None:
    trunk = model.encoder.trunk
    vit = getattr(trunk, "vit", getattr(trunk, "vision", None))
    if not isinstance(getattr(vit, "config", None), ViTConfig):
        return None
    assert vit is not None
    project = getattr(trunk, "project", None)
    sides = model.encoder.sides(model.image_size)
    projected = 2.0 * project.weight.numel() if project is not None else 0.0
    return sum(vit_flops(vit.config, side) + projected for side in sides)


def _decoder(model: AnomalyGPT) -> tuple[float, float]:
    """(forward, backward) of the heads, the cosines and the resampling to the picture's side, one sample."""
    side, forward, backward = model.image_size, 0.0, 0.0
    trunk = model.encoder.trunk
    strides = getattr(trunk, "strides", None) or (trunk.multiple,) * len(trunk.channels)
    grids = [look // stride for look in model.encoder.sides(side) for stride in strides]
    for adapter, grid in zip(model.decoder.adapters, grids, strict=True):
        own = _layers(adapter, [grid**2] * 9, input_gradient=False)
        width = next(parameter.shape[0] for parameter in adapter.parameters() if parameter.dim() > 1)
        cosine = 2.0 * grid**2 * width
        grown = 2.0 * (side * grid * grid + side * grid * side)  # (S, g) @ (g, g) @ (g, S)
        forward += own[0] + cosine + grown
        # the resampling's weights are constant, the text's vectors may be learned
        backward += own[1] + cosine * (2 if model.decoder.text is not None else 1) + grown
    return forward, backward


def _prompt_learner(model: AnomalyGPT) -> tuple[float, float]:
    learner = model.prompt_learner
    sides = [learner.input_side // 2**stage for stage in range(len(learner.stages))]
    places = [side**2 for side in sides] + [9]  # a 5x5 convolution without padding on the 7x7 bottom
    return _layers(learner, places, input_gradient=not model.detach_map)


def _layers(module: nn.Module, places: Sequence[int], *, input_gradient: bool) -> tuple[float, float]:
    """(forward, backward) of the trained linear and convolutional layers of `module`, one after another. places: at how
    many each is computed. input_gradient: the first one's input needs a gradient too."""
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    products = [2.0 * count * layer.weight.numel() for layer, count in zip(layers, places, strict=False)]
    trained = [layer.weight.requires_grad for layer in layers]
    first = next((index for index, is_trained in enumerate(trained) if is_trained), len(layers))
    inputs = sum(products if input_gradient else products[first + 1 :])
    return sum(products), inputs + sum(product for product, yes in zip(products, trained, strict=True) if yes)
