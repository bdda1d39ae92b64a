"""``hf:NAME_OR_FOLDER``: a model of transformers as a training job.

Causal language models, text classifiers (BERT and its kin) and image classifiers (ViT and its kin). Nothing is
downloaded: pretrained weights come from a folder or transformers' own cache, random ones need a configuration alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from backends.declared import declared, unknown
from core_model.errors import ModelError
from core_model.spec import FROZEN_SEED
from core_model.user_job import hub_data
from core_model.user_job.contract import TrainingJob
from core_model.user_job.hub_shapes import SHAPES, shape_of

_IMAGES = {"vit", "deit", "beit", "swin", "convnext", "resnet", "dinov2"}
_TEXTS = {"bert", "roberta", "distilbert", "electra", "deberta-v2", "xlm-roberta", "albert", "modernbert"}
_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
}


@declared(ModelError, "model: ")
class HubSettings:
    """Settings of a model of transformers (``--set model.FIELD=VALUE``); further ones are fields of its configuration.

    Args:
        task: what it is trained for, "" = as its family is used.
        length: tokens a sample of text: and jsonl:.
        samples: of made-up data.
        lora: rank of low-rank adapters, 0 = all weights are trained.
        lora_alpha: 0 = twice the rank.
        lora_targets: layers that get adapters, "" = those that peft names for the family, else all linear ones of the
            blocks.
        dropout: -1 = the configuration's own; 0 for comparisons of weights.
        attention: "" = transformers' choice.
    """

    task: Literal["", "causal", "text", "image"] = ""
    length: Annotated[int, Field(ge=2)] = 128
    samples: Annotated[int, Field(ge=1)] = hub_data.SYNTHETIC
    lora: Annotated[int, Field(ge=0)] = 0
    lora_alpha: Annotated[int, Field(ge=0)] = 0
    lora_targets: str = ""
    dropout: Annotated[float, Field(ge=-1, lt=1)] = -1.0
    attention: Literal["", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] = ""


@dataclass(frozen=True, kw_only=True)
class HubRequest:
    """What is to be built.

    Args:
        name: a folder, a name on the hub or of a built-in shape.
        data: the job's.
        frozen_dtype: of the weights that are not trained (LoRA).
    """

    name: str
    settings: Mapping[str, Any]
    data: str
    random_weights: bool
    seed: int
    frozen_dtype: torch.dtype = torch.float32


class HubModule(nn.Module):
    """A model of transformers with a loss that is a mean over samples: of a language model, each sample's mean over its
    tokens first (transformers' own loss is one over all tokens of a batch)."""

    def __init__(self, model: Any, task: str) -> None:
        super().__init__()
        self.model: Any = model
        self.task = task

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss, 0-dim."""
        return self.losses(batch)[0].mean()

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """(B,) losses, and (B,) whether the class was right (None of a language model)."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        if self.task != "causal":
            logits = self.model(**inputs).logits.float()
            return F.cross_entropy(logits, batch["labels"], reduction="none"), logits.argmax(-1) == batch["labels"]
        logits = self.model(**inputs, use_cache=False).logits[:, :-1].float()
        labels = batch["input_ids"][:, 1:]
        each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        if "attention_mask" not in batch:
            return each.mean(1), None
        mask = batch["attention_mask"][:, 1:].to(each.dtype)
        return (each * mask).sum(1) / mask.sum(1), None

    def set_activation_checkpointing(self, on: bool) -> None:
        """By transformers' own switch, whose name changes with its version 6."""
        if on:
            enable = getattr(self.model, "activation_checkpointing_enable", None)
            (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
        elif self.model.is_gradient_checkpointing:
            self.model.gradient_checkpointing_disable()


@dataclass(frozen=True)
class HeldOut:
    """Loss (and of classifiers accuracy) on samples that are not trained on."""

    data: Any
    collate: Any

    def __call__(self, module: Any) -> dict[str, float]:
        """Figures by name, of a `HubModule`."""
        device = next(module.parameters()).device
        losses, right = [], []
        for first in range(0, len(self.data), 8):
            part = [self.data[index] for index in range(first, min(first + 8, len(self.data)))]
            batch = {key: value.to(device) for key, value in self.collate(part).items()}
            loss, correct = module.losses(batch)
            losses.append(loss)
            right += [] if correct is None else [correct.float()]
        figures = {"held_out_loss": float(torch.cat(losses).mean())}
        return figures | ({"held_out_accuracy": float(torch.cat(right).mean())} if right else {})


def make_hub_job(request: HubRequest, *, device: torch.device | str = "cpu") -> TrainingJob:
    """The job of a model of transformers, its module on `device` where that spares host memory (frozen weights), on
    the CPU otherwise; on torch's meta device nothing is read or drawn. Raises ModelError."""
    settings, overrides = _settings(request.settings)
    config = _config(request)
    task = settings.task or _task(config)
    _override(config, overrides, settings.dropout)
    words = _words(request, config)
    data, classes = _data(request, settings, config, task, words)
    if classes:
        config.num_labels = classes
    if task == "causal" and hasattr(config, "pad_token_id") and config.pad_token_id is not None:
        config.pad_token_id = min(config.pad_token_id, config.vocab_size - 1)
    model = _model(request, settings, config, task, device)
    collate = hub_data.Pad(words.pad)
    made_up = isinstance(data, hub_data.MadeUp)
    train, held_out = (data, None) if made_up else hub_data.split_off(data)
    return TrainingJob(
        module=HubModule(model, task),
        dataset=train,
        collate=collate,
        evaluate=None if held_out is None else HeldOut(held_out, collate),
        facts={
            "task": task,
            "family": config.model_type,
            "attention": getattr(model.config, "_attn_implementation", None),
            "tokenizer": None if made_up else words.name,
            "lora": settings.lora,
            "random_weights": request.random_weights,
            "draws_random_numbers": bool(_dropouts(config)),
        },
    )


def _settings(given: Mapping[str, Any]) -> tuple[HubSettings, dict[str, Any]]:
    """Our settings, and those that are fields of the model's configuration."""
    own = {field.name for field in fields(HubSettings)}
    return HubSettings(**{k: v for k, v in given.items() if k in own}), {k: v for k, v in given.items() if k not in own}


def _config(request: HubRequest) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    shape = shape_of(request.name)
    if request.random_weights and shape is not None and not Path(request.name).is_dir():
        return CONFIG_MAPPING[shape[0]](**shape[1])
    try:
        return AutoConfig.from_pretrained(request.name, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        known = f"shapes that need no files: {', '.join(SHAPES)}"
        raise ModelError(
            f"hf:{request.name}: no configuration in a folder or in transformers' cache ({reason}): give a folder, or "
            f"download it first; with --random-weights, {known}"
        ) from None


def _task(config: Any) -> str:
    return "image" if config.model_type in _IMAGES else "text" if config.model_type in _TEXTS else "causal"


def _override(config: Any, overrides: Mapping[str, Any], dropout: float) -> None:
    """Puts the further settings into the configuration. Raises ModelError for a field that it does not have."""
    known = [*config.to_dict(), "num_labels", *(field.name for field in fields(HubSettings))]
    for name, value in overrides.items():
        if name not in known:
            raise ModelError(unknown(f"setting of a {config.model_type} model", name, known))
        setattr(config, name, value)
    if dropout >= 0:
        for name in _dropout_fields(config):
            setattr(config, name, dropout)


def _dropout_fields(config: Any) -> list[str]:
    return [
        name
        for name, value in config.to_dict().items()
        if ("drop" in name) and isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def _dropouts(config: Any) -> list[str]:
    return [name for name in _dropout_fields(config) if getattr(config, name) > 0]


def _words(request: HubRequest, config: Any) -> hub_data.Words:
    """The model's tokenizer; one token a byte where there is none at hand. Not asked for made-up data."""
    kind = request.data.partition(":")[0]
    if kind not in ("text", "jsonl"):
        return hub_data.Words("", lambda text: [], 0)
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(request.name, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError):
        return hub_data.byte_words(config.vocab_size)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    return hub_data.Words(tokenizer.name_or_path.rsplit("/", 1)[-1], tokenizer.encode, pad)


def _data(request: HubRequest, settings: HubSettings, config: Any, task: str, words: hub_data.Words) -> tuple[Any, int]:
    """The data set, and the number of its classes (0 = the configuration's)."""
    kind, _, rest = request.data.partition(":")
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    length = hub_data.length_of(rest) if kind == "tokens" else settings.length
    if task != "image" and longest and length > longest:
        raise ModelError(f"{length} tokens a sample: the model takes {longest}: use a smaller length")
    made = {"count": settings.samples, "seed": request.seed, "classes": 0 if task == "causal" else config.num_labels}
    if task == "image":
        if kind not in ("synthetic", "pixels"):
            raise ModelError(f"--data {request.data}: an image classifier takes pixels (made-up pictures)")
        return hub_data.MadeUp(**made, side=config.image_size, channels=config.num_channels), 0
    if kind in ("synthetic", "tokens"):
        return hub_data.MadeUp(**made, vocab=config.vocab_size, length=length), 0
    if kind == "text" and task == "causal":
        return hub_data.packed(Path(rest), words, length), 0
    if kind == "jsonl":
        data, names = hub_data.lines(Path(rest), words, length, labelled=task == "text")
        return data, len(names)
    wanted = "tokens:LENGTH, text:FILE or jsonl:FILE" if task == "causal" else "tokens:LENGTH or jsonl:FILE"
    raise ModelError(f"--data {request.data}: a model of transformers for this task takes {wanted}")


def _model(request: HubRequest, settings: HubSettings, config: Any, task: str, device: torch.device | str) -> Any:
    import transformers

    maker = getattr(transformers, _CLASSES[task])
    options: dict[str, Any] = {"dtype": request.frozen_dtype if settings.lora else torch.float32}
    if settings.attention:
        options["attn_implementation"] = settings.attention
    meta = torch.device(device).type == "meta"
    try:
        if meta:
            with torch.device("meta"):
                model = maker.from_config(config, **options)
        elif request.random_weights:
            model = _drawn(maker, config, options, settings, device)
        else:
            model = maker.from_pretrained(request.name, config=config, local_files_only=True, **options)
    except (OSError, ValueError, ImportError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"hf:{request.name}: {reason}") from error
    return _with_lora(model, settings) if settings.lora else model


def _drawn(maker: Any, config: Any, options: Mapping[str, Any], settings: HubSettings, device: Any) -> Any:
    """Random weights. Trained ones are drawn on the CPU by the job's seed; frozen ones where they will be, by a seed of
    their own: they stand for pretrained weights, alike in all runs."""
    if not settings.lora:
        return maker.from_config(config, **options)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(FROZEN_SEED)
        return maker.from_config(config, **options)


def _with_lora(model: Any, settings: HubSettings) -> Any:
    """`model` with low-rank adapters in float32, everything else frozen but a classifier's last layer."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ModelError("LoRA needs peft: run `pip install peft`, or leave model.lora at 0") from None
    targets: Any = [part.strip() for part in settings.lora_targets.split(",") if part.strip()] or None
    if targets is None:
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

        targets = KNOWN.get(model.config.model_type) or _linear_layers(model)
    lora = LoraConfig(
        r=settings.lora,
        lora_alpha=settings.lora_alpha or 2 * settings.lora,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(targets),
    )
    try:
        with warnings.catch_warnings():  # peft says that it corrects fan_in_fan_out for GPT-2's layers
            warnings.simplefilter("ignore", UserWarning)
            model = inject_adapter_in_model(lora, model)
    except ValueError as error:
        raise ModelError(f"LoRA: {' '.join(str(error).split())[:200]}") from None
    for name, parameter in model.named_parameters():
        trained = "lora_" in name or name.split(".")[0] in ("classifier", "score")
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()
    return model


def _linear_layers(model: nn.Module) -> list[str]:
    """The names of the linear layers in the blocks of a model, for families that peft does not know."""
    blocks = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(name.startswith(f"{block}.") for block in blocks)
    ]
