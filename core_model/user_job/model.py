"""A user's job as a model of this project: what trainer, engines and records ask of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core_model.errors import ModelError
from core_model.execution.compile import compile_blocks
from core_model.user_job.batch import UserBatch
from core_model.user_job.contract import TrainingJob
from core_model.user_job.dataset import UserCollate, UserDataset
from core_model.user_job.load import make, seeded
from core_model.user_job.source import MADE_UP_DATA, Source, code_hash, file_hashes, source_of


class UserModel(nn.Module):
    """The user's module behind the contract of `backends.base.Backend`. It makes no maps and gives no answers."""

    supports_maps = False
    text = None
    image_size = 0
    draws_random_numbers = True  # dropout may be a function call, which no search of modules finds

    def __init__(self, job: TrainingJob, source: Source, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = job.module
        self.job, self.source, self.settings = job, source, dict(settings)
        self.code_hash = code_hash(source.file) if source.file is not None else ""
        self.code_files = file_hashes(source.file) if source.file is not None else {}
        self.collator = UserCollate(job.collate, source.file)

    def own_dataset(self) -> UserDataset:
        """The training set that the job brings."""
        return UserDataset(self.job.dataset, self.source.file)

    def collate(self, samples: Sequence[Any]) -> UserBatch:
        """A batch as the loader makes it."""
        return self.collator(samples)

    def forward(self, batch: UserBatch) -> dict[str, Tensor]:
        """``loss`` and the further parts that the module returns. Raises ModelError where there is no loss."""
        return loss_parts(self.module(batch.content), self.source.label)

    def evaluate(self) -> dict[str, float]:
        """The user's figures, without gradients and in evaluation mode; {} where the job has no evaluate. Raises
        ModelError for what is no number."""
        if self.job.evaluate is None:
            return {}
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                found = self.job.evaluate(self.module)
        finally:
            self.module.train(was_training)
        return figures_of(found, self.source.label)

    def prepare_text(self, categories: Iterable[str]) -> None:
        """Nothing to prepare."""

    def set_frozen_dtype(self, dtype: torch.dtype) -> None:
        """Frozen parameters stay as the user made them."""

    def set_activation_checkpointing(self, on: bool) -> None:
        """By the module's own method (transformers has one). Raises ModelError where there is none."""
        module: Any = self.module
        if on and hasattr(module, "gradient_checkpointing_enable"):
            module.gradient_checkpointing_enable({"use_reentrant": False})
        elif on and hasattr(module, "set_activation_checkpointing"):
            module.set_activation_checkpointing(True)
        elif on:
            raise ModelError(
                f"{self.source.label}: the module cannot recompute activations: give it a method "
                "set_activation_checkpointing(on), or leave --activation-checkpointing out"
            )

    def compile_blocks(self) -> int:
        """`core_model.execution.compile.compile_blocks`."""
        return compile_blocks(self)

    def trainable_state(self) -> dict[str, Tensor]:
        """The trained parameters by name, detached."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def frozen_parameters(self) -> dict[str, Tensor]:
        """The parameters that are not trained, by name."""
        return {name: p for name, p in self.named_parameters() if not p.requires_grad}

    def describe(self) -> dict[str, Any]:
        """What the record says about the model."""
        frozen = list(self.frozen_parameters().values())
        return {
            "spec": {"preset": self.source.label, **self.settings},
            "class": type(self.module).__name__,
            "code_sha256": self.code_hash,
            "trainable_parameters": sum(p.numel() for p in self.parameters() if p.requires_grad),
            "frozen_parameters": sum(p.numel() for p in frozen),
            "frozen_dtype": str(frozen[0].dtype).removeprefix("torch.") if frozen else "",
            "optimizer_hints": dict(self.job.optimizer),
            **self.job.facts,
        }


def build_user_model(
    preset: str,
    overrides: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device | str = "cpu",
    data: str = MADE_UP_DATA,
    random_weights: bool = False,
    frozen_dtype: torch.dtype = torch.float32,
) -> UserModel:
    """The model of a preset that names a user's job, on `device`.

    Args:
        data, random_weights, frozen_dtype: of a model of transformers (`core_model.user_job.hub`).

    Raises:
        ModelError: for a job that cannot work.
    """
    source = source_of(preset)
    if source is None:
        raise ModelError(f"'{preset}' names no job of yours: write FILE.py:FUNCTION or hf:NAME")
    if source.file is None:
        return _hub_model(source, overrides, data, random_weights, seed, device, frozen_dtype)
    model = UserModel(make(source, overrides, seed=seed), source, overrides)
    return model.to(device)


def _hub_model(
    source: Source,
    overrides: Mapping[str, Any],
    data: str,
    random_weights: bool,
    seed: int,
    device: torch.device | str,
    frozen_dtype: torch.dtype,
) -> UserModel:
    from core_model.user_job.hub import HubRequest, make_hub_job

    request = HubRequest(
        name=source.name,
        settings=overrides,
        data=data,
        random_weights=random_weights,
        seed=seed,
        frozen_dtype=frozen_dtype,
    )
    with seeded(seed):
        model = UserModel(make_hub_job(request, device=device), source, overrides)
    return model.to(device)


def loss_parts(made: Any, name: str) -> dict[str, Tensor]:
    """What a user's module returned as a dict of 0-dim tensors with the key ``loss``. Raises ModelError."""
    if isinstance(made, Tensor):
        parts: dict[str, Any] = {"loss": made}
    elif isinstance(made, Mapping) and "loss" in made:
        parts = {"loss": made["loss"]}
        scalars = {key: value for key, value in made.items() if isinstance(value, Tensor) and value.dim() == 0}
        parts = {key: value.detach() for key, value in scalars.items()} | parts
    elif hasattr(made, "loss"):
        parts = {"loss": made.loss}
    else:
        parts = {}
    loss = parts.get("loss")
    if not isinstance(loss, Tensor):
        raise ModelError(
            f"{name}: module(batch) returned a {type(made).__name__} without a loss: return the loss, or a dict with it"
        )
    if loss.numel() != 1:
        raise ModelError(
            f"{name}: the loss has the shape {tuple(loss.shape)}: reduce it to one number, the mean over the samples"
        )
    return parts if loss.dim() == 0 else parts | {"loss": loss.reshape(())}


def figures_of(found: Any, name: str) -> dict[str, float]:
    """What a user's evaluate returned as numbers by name. Raises ModelError."""
    if not isinstance(found, Mapping):
        raise ModelError(f"{name}: evaluate returned a {type(found).__name__}: return a dict of numbers")
    figures = {}
    for key, value in found.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool) or (not isinstance(value, (int, float)) and not hasattr(value, "__float__")):
            raise ModelError(f"{name}: evaluate returned {key}={value!r}: figures are numbers")
        try:
            figures[str(key)] = float(value)
        except (TypeError, ValueError):
            raise ModelError(
                f"{name}: evaluate returned {key}, a {type(value).__name__}: figures are numbers"
            ) from None
    return figures
