"""A user's DeepSpeed json: read, and every key of it held against what today's DeepSpeed reads.

DeepSpeed ignores a top-level key that it does not know (``gradient_cliping``, or ``offload_optimizer`` beside
``zero_optimization``) without a word. What it knows is asked of itself: its pydantic models for the blocks, and for the
rest a configuration that notes which keys were looked up. Importing this module imports no DeepSpeed.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from backends.base import BackendError
from backends.declared import explain, nearest
from backends.deepspeed.config import DeepSpeedSettings

# Keys of older DeepSpeed files (or of other tools' files) that would be ignored or refused today -> what to write.
DEAD_KEYS = {
    "opt_level": "it belonged to Apex amp, which DeepSpeed dropped; remove it, the job's --precision decides",
    "amp": "Apex amp was dropped from DeepSpeed; remove it, the job's --precision decides",
    "bf16.enable": "it is spelled bf16.enabled; as written DeepSpeed would refuse it or train in fp32",
    "bfloat16.enable": "it is spelled bf16.enabled",
    "fp16.enable": "it is spelled fp16.enabled",
    "fp16.opt_level": "it belonged to Apex amp, which DeepSpeed dropped; remove it",
    "bf16.opt_level": "it belonged to Apex amp, which DeepSpeed dropped; remove it",
    "zero_allow_comm_data_type": "never a DeepSpeed key; the wire type is communication_data_type",
    "fp32_allreduce": "replaced by communication_data_type: fp32",
    "disable_allgather": "use zero_optimization.allgather_partitions",
    "allgather_size": "use zero_optimization.allgather_bucket_size",
    "zero_optimization.cpu_offload": 'replaced by zero_optimization.offload_optimizer: {"device": "cpu"}',
    "zero_optimization.cpu_offload_params": 'replaced by zero_optimization.offload_param: {"device": "cpu"}',
    "zero_optimization.cpu_offload_param": 'replaced by zero_optimization.offload_param: {"device": "cpu"}',
    "zero_optimization.cpu_offload_use_pin_memory": "replaced by pin_memory inside offload_optimizer and offload_param",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "now stage3_gather_16bit_weights_on_model_save",
    "nebula": "removed from DeepSpeed (issue 8489); checkpoints would silently be written without it",
    "compression_training": "removed from DeepSpeed (issue 8489)",
    "quantize_training": "removed from DeepSpeed (issue 8489)",
    "sparse_gradients": "removed from DeepSpeed (issue 8489)",
    "eigenvalue": "removed from DeepSpeed (issue 8489)",
    "sparse_attention": "removed from DeepSpeed (issue 8489)",
    "elasticity": "removed from DeepSpeed (issue 8489)",
    "graph_harvesting": "removed from DeepSpeed (issue 8489)",
    "curriculum_learning": "moved to data_efficiency; this harness decides the data order",
    "progressive_layer_drop": "removed from DeepSpeed (issue 8489)",
    "zero_optimization.mics_shard_size": "MiCS was removed from DeepSpeed (issue 8489)",
    "zero_optimization.mics_hierarchical_params_gather": "MiCS was removed from DeepSpeed (issue 8489)",
    "zero_optimization.zeropp_loco_param": "LoCo-Zero++ was removed from DeepSpeed (issue 8489)",
}

# Blocks that DeepSpeed reads by a pydantic model, which refuses what it does not know.
_MODELS = {
    "zero_optimization": "deepspeed.runtime.zero.config:DeepSpeedZeroConfig",
    "fp16": "deepspeed.runtime.precision_config:DeepSpeedFP16Config",
    "bf16": "deepspeed.runtime.precision_config:DeepSpeedBF16Config",
    "bfloat16": "deepspeed.runtime.precision_config:DeepSpeedBF16Config",
    "comms_logger": "deepspeed.comm.config:CommsLoggerConfig",
    "tensorboard": "deepspeed.monitor.config:TensorBoardConfig",
    "wandb": "deepspeed.monitor.config:WandbConfig",
    "csv_monitor": "deepspeed.monitor.config:CSVConfig",
    "comet": "deepspeed.monitor.config:CometConfig",
    "compile": "deepspeed.compile.config:CompileConfig",
}
# Blocks that must be objects; DeepSpeed fails over anything else with a message about a mapping or an iterable.
_OBJECTS = (*_MODELS, "torch_autocast", "optimizer", "scheduler", "activation_checkpointing", "flops_profiler", "aio")


def user_config(settings: DeepSpeedSettings) -> dict[str, Any]:
    """The user's json with `extra` put in, block by block. Raises BackendError where it cannot be read, is no DeepSpeed
    configuration or was written for an older DeepSpeed."""
    config = read_user_config(settings.config) if settings.config else {}
    explain_dead_keys(settings.extra, "deepspeed extra")
    config = _merged(config, settings.extra)
    _check_objects(config, settings.config or "deepspeed extra")
    return config


def read_user_config(path: str) -> dict[str, Any]:
    """A user's DeepSpeed json. Raises BackendError where it is missing, no json, or written for an older DeepSpeed."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_no_key_twice)
    except FileNotFoundError:
        raise BackendError(f"{path}: no such DeepSpeed configuration file") from None
    except OSError as error:
        raise BackendError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise BackendError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise BackendError(f"{path}: a DeepSpeed configuration is a JSON object")
    explain_dead_keys(config, path)
    return _without_comments(config)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key '{key}' stands in it twice")
        found[key] = value
    return found


def _without_comments(config: dict[str, Any]) -> dict[str, Any]:
    """Without keys that begin with "_" or "//": JSON has no other way to write a comment."""
    return {key: value for key, value in config.items() if not key.startswith(("_", "//"))}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def explain_dead_keys(config: Mapping[str, Any], origin: str) -> None:
    """Raises BackendError for all keys of `config` that are in DEAD_KEYS, with what to write instead."""
    found = []
    for key, advice in DEAD_KEYS.items():
        node: Any = config
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                break
            node = node[part]
        else:
            found.append(f"key '{key}' is not one of today's DeepSpeed: {advice}")
    if found:
        raise BackendError(f"{origin}: {'; '.join(found)}")


def _check_objects(config: Mapping[str, Any], origin: str) -> None:
    for block in _OBJECTS:
        given = config.get(block)
        if block in config and given is not None and given != "auto" and not isinstance(given, Mapping):
            hint = f': write {{"{block}": {{"enabled": {json.dumps(given)}}}}}' if isinstance(given, bool) else ""
            raise BackendError(f"{origin}: '{block}' is {json.dumps(given)}, DeepSpeed takes an object there{hint}")


def check_keys(config: Mapping[str, Any], origin: str) -> None:
    """Raises BackendError for all keys that DeepSpeed does not know, each with the nearest name or its right place, and
    for values of the wrong type in the blocks. Imports DeepSpeed."""
    known = _looked_up()
    models = {block: _model(path) for block, path in _MODELS.items()}
    known |= {block: _names_at(model, []) for block, model in models.items()}
    wrong = [_unknown(key, "", known[""], known) for key in config if key not in known[""]]
    for block, given in config.items():
        if not isinstance(given, Mapping):
            continue
        if block in models:
            wrong += _wrong_in(block, given, models[block], known)
        elif block in known:
            wrong += [_unknown(key, block, known[block], known) for key in given if key not in known[block]]
    if wrong:
        raise BackendError(f"{origin}: {'; '.join(wrong)}")


def _wrong_in(
    block: str, given: Mapping[str, Any], model: type[BaseModel], known: Mapping[str, set[str]]
) -> Iterator[str]:
    """What is wrong in a block, one sentence each."""
    try:
        model(**_without_auto(given))
    except ValidationError as error:
        for detail in error.errors():
            *parents, key = map(str, detail["loc"]) if detail["loc"] else ("",)
            place = ".".join([block, *parents])
            if detail["type"] == "extra_forbidden":
                yield _unknown(key, place, _names_at(model, parents), known)
            else:
                yield f"{place}.{_explain_one(error, detail)}"
    except (AssertionError, ValueError, TypeError) as error:
        yield f"'{block}': {' '.join(str(error).split())[:200]}"


def _explain_one(error: ValidationError, detail: Any) -> str:
    """One detail of `error` in plain words, called by the last part of its place."""
    single = ValidationError.from_exception_data(
        error.title,
        [{"type": detail["type"], "loc": detail["loc"][-1:], "input": detail["input"], "ctx": detail.get("ctx", {})}],
    )
    return explain(single, ())


def _unknown(key: str, place: str, names: set[str], known: Mapping[str, set[str]]) -> str:
    """The sentence about one unknown key: its right place, or the nearest of the `names` that its own place has."""
    shown = f"{place}.{key}" if place else key
    right = [path for path, there in known.items() if key in there and path != place]
    if len(right) == 1:
        where = f"under '{right[0]}'" if right[0] else "at the top level"
        return f"key '{shown}' is ignored there: it belongs {where}"
    near = nearest(key, names)
    return f"unknown key '{shown}'" + (f": did you mean '{near}'?" if near else ": DeepSpeed has none of that name")


def _names_at(model: type[BaseModel], parents: list[str]) -> set[str]:
    """The names that `model` knows, or the model within it that `parents` lead to; empty where none does."""
    for parent in parents:
        inner = next((info for name, info in model.model_fields.items() if parent in (name, info.alias)), None)
        found = _models_in(inner.annotation) if inner is not None else []
        if not found:
            return set()
        model = found[0]
    return {info.alias or name for name, info in model.model_fields.items()}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _without_auto(node: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in node.items()
        if value != "auto"
    }


def _model(path: str) -> type[BaseModel]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class _Watched(dict[str, Any]):
    """A configuration that notes which of its keys are looked up."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.seen: set[str] = set(values)

    def __contains__(self, key: object) -> bool:
        self.seen.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self  # `key in config.keys()` is a look-up too

    def __copy__(self) -> _Watched:
        return self


# Blocks that DeepSpeed reads key by key.
_READ_BY_KEY = ("activation_checkpointing", "flops_profiler", "aio", "torch_autocast", "checkpoint", "data_types")


def _looked_up() -> dict[str, set[str]]:
    """The keys that DeepSpeed looks for, at the top level ("") and in the blocks that it reads key by key."""
    from deepspeed.runtime.config import DeepSpeedConfig

    blocks = {block: _Watched({}) for block in _READ_BY_KEY}
    watched = _Watched({"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, **blocks})
    DeepSpeedConfig(watched)
    removed = {key for key in DEAD_KEYS if "." not in key}
    return {"": watched.seen - removed, **{block: found.seen for block, found in blocks.items() if found.seen}}
