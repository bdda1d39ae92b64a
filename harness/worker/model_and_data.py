"""From a Job to its model, data and optimization: the one place where the three packages meet."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from backends.base import Backend, LossScale, Optimization
from backends.process.rank import ProcessFacts
from core_model.build import build
from core_model.data import open_dataset
from core_model.data.batches import BatchLoader, GlobalBatches
from core_model.user_job.source import label_of, source_of
from harness.job.declaration import Job, JobError
from harness.records.record_files import WEIGHTS

SAMPLES_AHEAD = 64  # samples whose texts show which lengths batches will have
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_model(job: Job, *, frozen: bool = True, device: torch.device | str = "cpu") -> Any:
    """The job's model on `device`, its frozen parts stored in the job's precision (unless `frozen` is False), with the
    start weights loaded. The same on every rank: the seed decides."""
    if source_of(job.preset) is not None:
        return _with_start_weights(_user_model(job, frozen=frozen, device=device), job)
    model = build(
        job.preset,
        image_size=job.image_size,
        random_weights=job.random_weights,
        overrides=dict(job.model),
        version=job.version,
        seed=job.seed,
        device=device,
        frozen_dtype=DTYPES[job.precision] if frozen else torch.float32,
    )
    return _with_start_weights(model, job)


def _user_model(job: Job, *, frozen: bool, device: torch.device | str) -> Any:
    from core_model.user_job.model import build_user_model

    return build_user_model(
        job.preset,
        dict(job.model),
        seed=job.seed,
        device=device,
        data=job.data,
        random_weights=job.random_weights,
        frozen_dtype=DTYPES[job.precision] if frozen else torch.float32,
    )


def _with_start_weights(model: Any, job: Job) -> Any:
    if job.init_weights:
        load_weights(model, Path(job.init_weights))
    return model


def build_dataset(job: Job, model: Any, split: str) -> Any:
    """The job's data set; `split` is train, val or test. Raises DataError for what is wrong with the folder. A job of
    the user's own brings its training set."""
    if hasattr(model, "own_dataset"):
        return model.own_dataset()
    return open_dataset(
        job.data,
        split=split,
        image_size=model.image_size,
        seed=job.seed,
        simulation=job.defects,
        options=dict(job.data_options),
    )


def build_optimization(job: Job) -> Optimization:
    """The part of the job that every engine shares."""
    return Optimization(
        optimizer=job.optimizer,
        lr=job.lr,
        betas=(job.betas[0], job.betas[1]),
        eps=job.eps,
        weight_decay=job.weight_decay,
        clip_norm=job.clip_norm,
        schedule=job.schedule,
        warmup_steps=job.warmup_steps,
        total_steps=job.steps,
        accumulation=job.accumulation,
        precision=job.precision,
        precision_mode=job.precision_mode,
        loss_scale=LossScale(**job.loss_scale),
    )


def arrange(model: Any, job: Job) -> None:
    """Lets `model` recompute its activations in the backward pass and torch.compile have its blocks, where the job says
    so. Before an engine takes the model: engines hang their hooks on what they find.

    Raises:
        JobError: where the model cannot.
    """
    name = label_of(job.preset)
    if job.activation_checkpointing:
        if not hasattr(model, "set_activation_checkpointing"):
            raise JobError(f"{name} cannot recompute activations: leave --activation-checkpointing out")
        model.set_activation_checkpointing(True)
    if job.compile and not (hasattr(model, "compile_blocks") and model.compile_blocks()):
        raise JobError(f"{name} has none of this project's transformer blocks, which --compile is for: leave it out")


def prepare(backend: Backend, model: Any, job: Job) -> None:
    """Hands the job's model to its engine, arranged as the job says: where every training begins."""
    arrange(model, job)
    backend.prepare(model, build_optimization(job))


def order_of(job: Job, dataset: Any) -> GlobalBatches:
    """The order of the job's samples, the same for every engine and number of workers."""
    return GlobalBatches(dataset.ids, global_batch=job.global_batch, seed=job.seed, groups=dataset.groups)


def capture_ahead(job: Job, model: Any, dataset: Any) -> None:
    """Lets a model that replays CUDA graphs capture them now, for batches like the job's first ones: within a step that
    is timed, a capture would be taken for training. Call it when the engine has prepared the model."""
    capture = getattr(model, "capture_ahead", None)
    if capture is None or not torch.cuda.is_available():
        return
    order, found = order_of(job, dataset), []
    for step in range(min(job.steps, SAMPLES_AHEAD)):
        found += order.ids_of(step)
        if len(found) >= SAMPLES_AHEAD:
            break
    capture([dataset.get(*ref) for ref in found[:SAMPLES_AHEAD]], job.micro_batch)


def build_loader(
    job: Job,
    facts: ProcessFacts,
    model: Any,
    dataset: Any,
    *,
    start_step: int = 0,
    steps: int = 0,
    pin_memory: bool = False,
    order: GlobalBatches | None = None,
) -> BatchLoader:
    """This rank's batches of `order` (default: `order_of`), from `start_step` to `steps` (0: the job's)."""
    return BatchLoader(
        dataset,
        order or order_of(job, dataset),
        rank=facts.rank,
        world=facts.world_size,
        accumulation=job.accumulation,
        start_step=start_step,
        steps=steps or job.steps,
        collate=model.collator,
        workers=job.loader_workers,
        pin_memory=pin_memory,
        timeout_s=job.timeout_s,
    )


def weights_file(path: Path) -> Path:
    """The safetensors file meant by `path`: itself, or the one of a run folder. Raises JobError."""
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise JobError(f"{path}: no weights there: give a .safetensors file or a run folder that holds {WEIGHTS}")
    return file


def load_weights(model: Any, path: Path) -> None:
    """Loads trainable weights into `model`. Raises JobError where the file is damaged or of another model."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = weights_file(path)
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise JobError(f"{file}: not a readable safetensors file ({error}): it is truncated or foreign") from None
    put_weights(model, state, str(file))


def put_weights(model: torch.nn.Module, state: Mapping[str, torch.Tensor], origin: str) -> None:
    """Copies `state` over exactly the trainable parameters (and buffers) of `model`, or raises JobError."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing, foreign = sorted(trainable - set(state)), sorted(set(state) - set(own))
    if missing or foreign:
        name, kind = (missing[0], "lacks") if missing else (foreign[0], "has the unknown")
        raise JobError(f"{origin}: it {kind} tensor '{name}': these weights are of another model, preset or version")
    with torch.no_grad():
        for name, tensor in state.items():
            if own[name].shape != tensor.shape:
                raise JobError(
                    f"{origin}: tensor '{name}' is {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}"
                )
            own[name].copy_(tensor)


def save_weights(state: Mapping[str, torch.Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Writes safetensors under a temporary name and renames it."""
    from safetensors.torch import save_file

    temporary = file.with_name(f".{file.name}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary, metadata=dict(metadata))
    temporary.replace(file)


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, shapes and the sha256 of each tensor's fp32 bytes, in name order: equal digests are equal
    weights. Tensors are hashed side by side (600 M of them: 3 s by one core, and a GPU would wait)."""

    def line(name: str) -> str:
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        return f"{name} {tuple(tensor.shape)} {hashlib.sha256(tensor.numpy().data).hexdigest()}\n"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return hashlib.sha256("".join(pool.map(line, sorted(state))).encode()).hexdigest()


def trainable_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trained parameters by name, detached, not copied."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
