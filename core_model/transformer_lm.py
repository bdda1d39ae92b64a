"""A LLaMA-type transformer, all of it trained: the exchange-heavy companion of the AnomalyGPT presets.

AnomalyGPT exchanges few gradients for much frozen computing. Here every weight is trained (608 M by default, on 256
tokens a sample), so the exchange is as large as the model: what ZeRO stages, fusion and compression are about. It obeys
the same contract (``forward(batch)`` -> mean over samples of a per-sample loss) and reads the same batches' texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from backends.declared import declared, unknown
from core_model.batch import Batch, Sample
from core_model.errors import ModelError
from core_model.execution.compile import compile_blocks
from core_model.execution.flops import Shape, Work, llama_flops, useful_shape
from core_model.execution.frozen import materialize
from core_model.language.llama import Llama, LlamaConfig
from core_model.language.text_tokenizers import HashTokenizer
from core_model.language.token_loss import TokenLoss

_Count = Annotated[int, Field(ge=1)]


@declared(ModelError, "model: ")
class TransformerSpec:
    """Shape of the trained transformer; the default has 607,968,768 parameters.

    loss: ``plain``, or ``fused``: no copy of the logits in fp32 (`core_model.language.token_loss`). residual: type of
    the stream that the layers add to: ``fp32``, or ``autocast``: that of their products.
    """

    width: _Count = 1536
    layers: _Count = 18
    heads: _Count = 12
    kv_heads: _Count = 12
    mlp: _Count = 4096
    vocab: _Count = 32_000
    length: _Count = 256  # tokens a sample
    image_size: Annotated[int, Field(ge=8)] = 56  # pictures are not looked at; small ones are quickly made
    loss: Literal["plain", "fused"] = "plain"
    residual: Literal["fp32", "autocast"] = "fp32"

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab=self.vocab,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            mlp=self.mlp,
        )


@dataclass(kw_only=True)
class TextCollator:
    """Each sample's conversation, repeated to exactly length + 1 tokens (the last only as a label)."""

    length: int
    tokenizer: HashTokenizer

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        rows = []
        for sample in samples:
            text = " ".join(part for turn in sample.turns for part in turn) + f" {sample.id} "
            words = self.tokenizer.encode(text)
            rows.append((words * (self.length // len(words) + 2))[: self.length + 1])
        ids = torch.tensor(rows)
        return Batch(
            ids=tuple(sample.id for sample in samples),
            categories=tuple(sample.category for sample in samples),
            images=torch.zeros(len(samples), 3, 1, 1),
            masks=torch.zeros(len(samples), 1, 1, 1),
            is_defective=torch.tensor([sample.is_defective for sample in samples]),
            token_ids=ids[:, :-1].contiguous(),
            labels=ids[:, 1:].contiguous(),
            lengths=torch.full((len(samples),), self.length),
        )


class TrainedTransformer(nn.Module):
    """`Llama` with a next-token loss. It makes no maps and gives no answers (`supports_maps` is False)."""

    supports_maps = False
    text = None

    def __init__(self, spec: TransformerSpec, llama: Llama) -> None:
        super().__init__()
        self.spec = spec
        self.llama = llama
        self.image_size = spec.image_size
        self.tokenizer = HashTokenizer(spec.vocab)
        self.work = Work()
        self.collator = TextCollator(length=spec.length, tokenizer=self.tokenizer)
        self.token_loss = TokenLoss() if spec.loss == "fused" else None

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return self.collator(samples)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """loss and ce: mean over samples of the mean over tokens (all samples are of one length)."""
        count, length = batch.token_ids.shape
        self.work.useful.add(useful_shape([length] * count, count * length))
        self.work.done.add(Shape(samples=count, rows=count * length, pairs=count * length**2, logits=count * length))
        embeddings = self.llama.embed(batch.token_ids)
        kind = embeddings.device.type
        if self.spec.residual == "autocast" and torch.is_autocast_enabled(kind):
            embeddings = embeddings.to(torch.get_autocast_dtype(kind))
        logits = self.llama.logits(self.llama(embeddings))
        if self.token_loss is not None:
            ce = self.token_loss(logits, batch.labels)
        else:
            ce = F.cross_entropy(logits.float().flatten(0, 1), batch.labels.flatten())
        return {"loss": ce, "ce": ce.detach()}

    def prepare_text(self, categories: Iterable[str]) -> None:
        """Nothing to prepare."""

    def set_frozen_dtype(self, dtype: torch.dtype) -> None:
        """Nothing is frozen."""

    def set_activation_checkpointing(self, on: bool) -> None:
        self.llama.set_activation_checkpointing(on)

    def compile_blocks(self) -> int:
        """`core_model.execution.compile.compile_blocks`."""
        return compile_blocks(self)

    def trainable_state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def frozen_parameters(self) -> dict[str, Tensor]:
        return {}

    def flops(self, shape: Shape, *, recompute: bool = False) -> dict[str, float]:
        """Matrix FLOPs of batches of these sizes (`core_model.execution.flops`)."""
        forward, backward = llama_flops(self.spec.config(), shape, trained=True, recompute=recompute)
        return {"forward": forward, "backward": backward, "total": forward + backward}

    def describe(self) -> dict[str, Any]:
        count = sum(parameter.numel() for parameter in self.parameters())
        return {
            "spec": {"preset": "llama-600m", **_recorded(self.spec)},
            "random_weights": True,
            "image_size": self.image_size,
            "trainable_parameters": count,
            "frozen_parameters": 0,
            "frozen_dtype": "",
        }


def _recorded(spec: TransformerSpec) -> dict[str, Any]:
    """The spec for the records: what did not always exist is left out where it is as it was, so that they stay
    comparable."""
    values = asdict(spec)
    for name, was in (("loss", "plain"), ("residual", "fp32")):
        if values[name] == was:
            del values[name]
    return values


def build_transformer(overrides: Mapping[str, Any], *, seed: int, device: torch.device | str) -> TrainedTransformer:
    """The transformer, its weights drawn on the CPU from `seed`, then moved to `device`.

    For a GPU the drawn weights are kept: runs that share a process (a study's) draw the same ones again and again,
    seven seconds each for 600 M."""
    spec = _spec(overrides)
    if torch.device(device).type == "meta":
        return TrainedTransformer(spec, _empty(spec).requires_grad_(True).train())
    drawn = _draw(spec, seed) if torch.device(device).type == "cpu" else _copy(_kept(spec, seed), device)
    return TrainedTransformer(spec, drawn.requires_grad_(True).train())


def draw_ahead(overrides: Mapping[str, Any], *, seed: int) -> None:
    """Draws and keeps the weights that `build_transformer` will want for a GPU. Raises ModelError."""
    _kept(_spec(overrides), seed)


def _spec(overrides: Mapping[str, Any]) -> TransformerSpec:
    known = asdict(TransformerSpec())
    for name in overrides:
        if name not in known:
            raise ModelError(unknown("model field", name, known))
    spec = TransformerSpec(**overrides)
    if spec.width % spec.heads or spec.heads % spec.kv_heads:
        raise ModelError(
            f"model: width {spec.width}, heads {spec.heads}, kv_heads {spec.kv_heads}: width must be a multiple of "
            "heads, heads of kv_heads"
        )
    return spec


def _draw(spec: TransformerSpec, seed: int) -> Llama:
    return materialize(_empty(spec), device="cpu", dtype=torch.float32, seed=seed)


def _empty(spec: TransformerSpec) -> Llama:
    with torch.device("meta"):
        return Llama(spec.config())


_kept = lru_cache(maxsize=1)(_draw)


def _copy(drawn: Llama, device: torch.device | str) -> Llama:
    """The same weights in tensors of its own on `device`."""
    with torch.device("meta"):
        llama = Llama(drawn.config)
    llama.to_empty(device=device)
    llama.tie()
    llama.load_state_dict(drawn.state_dict())
    return llama
