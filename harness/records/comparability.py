"""The equivalence contract: what two runs must share before their figures may stand beside each other.

A contract is a flat dict, written into result.json by the worker and derived again by `harness results check`. Two runs
on one curve share everything in it but the keys in `_PER_SEED` (alike only between runs of the same seed) and, between
different numbers of workers, `_PER_WORKERS`. What the engine itself decides (ZeRO stage, buckets, cycle time) is not in
the contract: that is what is compared. The wire dtype is: half the bytes is not the same exchange.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core_model.user_job.source import label_of
from harness.records.environment import gpu_kinds

_JOB_FIELDS = (
    "preset", "version", "random_weights", "image_size", "data", "defects", "loader_workers", "steps", "accumulation",
    "scaling", "optimizer", "lr", "betas", "eps", "weight_decay", "clip_norm", "schedule", "warmup_steps", "precision",
    "precision_mode", "activation_checkpointing", "seed", "timing_warmup", "eval_samples", "shots", "device", "threads",
    "emulate_compute_ms", "profile", "nodes",
)  # fmt: skip
_NESTED_FIELDS = ("model", "data_options", "loss_scale")
_VERSIONS = (
    "torch", "transformers", "peft", "numpy", "scikit-learn", "scikit-image", "opencv-python-headless", "pillow",
    "nvidia-nccl-cu12", "nvidia-nccl-cu13", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
)  # fmt: skip
# Fields of the job that are named by their effect on the figures, in the sentence that says what differs.
_NAMES = {
    "global_batch": "global batch", "batch_per_worker": "batch per worker", "lr": "learning rate",
    "clip_norm": "gradient clipping norm", "eval_samples": "number of test samples", "shots": "shots",
    "hash.init_weights": "initial weights", "hash.sample_order": "order of the samples", "hash.data": "data",
    "hash.job_code": "content of the job's file",
    "cpu": "processor", "gpu": "GPU", "wire_dtype": "type on the wire", "emulate_compute_ms": "emulated compute time",
    "workers": "number of workers", "profile": "profiler", "worlds": "change of workers in the run",
    "bind_cores": "cores bound to ranks", "compile": "compiled blocks",
}  # fmt: skip
# What a setting of the model was before its default changed: a record that does not hold it ran with this value.
_BEFORE = {
    "model.loss": "plain", "model.residual": "fp32", "model.pack_on_gpu": False, "model.prefix_on_gpu": False,
    "model.join_frozen": False,
}  # fmt: skip
_PER_SEED = frozenset({"seed", "hash.init_weights", "hash.sample_order", "hash.data"})
_PER_WORKERS = frozenset({"workers", "nodes", "accumulation"})
_PER_WORKERS_WEAK = frozenset({"hash.sample_order"})


def contract(
    job: Mapping[str, Any],
    environment: Mapping[str, Any],
    hashes: Mapping[str, Any],
    engine: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The flat contract of a run: values are text, numbers, booleans or None.

    job: ``Job.to_dict()``. environment: environment.json. hashes: ``init_weights, sample_order, data`` (a missing one
    is None and matches nothing but None). engine: ``Backend.describe()``, for the wire dtype.
    """
    workers = int(job.get("nodes", 1)) * int(job.get("slots", 1))
    flat: dict[str, Any] = {name: _scalar(job.get(name)) for name in _JOB_FIELDS}
    for name in _NESTED_FIELDS:
        flat |= {f"{name}.{key}": _scalar(value) for key, value in sorted((job.get(name) or {}).items())}
    flat["workers"] = workers
    if job.get("scaling") == "weak":
        flat["batch_per_worker"] = int(job.get("global_batch", 0)) // workers
    else:
        flat["global_batch"] = job.get("global_batch")
    flat |= {f"hash.{name}": hashes.get(name) for name in ("init_weights", "sample_order", "data")}
    flat["preset"] = label_of(str(job.get("preset", "")))  # without the folder that the user's own file lies in
    if hashes.get("job_code"):
        flat["hash.job_code"] = hashes["job_code"]
    versions = environment.get("versions") or {}
    flat |= {f"version.{name}": versions[name] for name in _VERSIONS if name in versions}
    flat["version.python"] = environment.get("python")
    flat["cpu"] = (environment.get("cpu") or {}).get("model")
    flat["cores"] = (environment.get("cpu") or {}).get("usable_cores")
    flat["gpu"] = gpu_kinds(environment) or None
    flat["driver"] = (environment.get("gpus") or {}).get("driver")
    flat["wire_dtype"] = _scalar((engine or {}).get("wire_dtype"))
    for name in ("bind_cores", "compile"):  # later than the first records, which ran without
        if job.get(name):
            flat[name] = True
    if (engine or {}).get("worlds"):  # an elastic job that lost or gained workers
        flat["worlds"] = (engine or {})["worlds"]
    return flat


def differences(a: Mapping[str, Any], b: Mapping[str, Any], *, same_curve: bool = False) -> list[str]:
    """What differs between two contracts, one sentence a key, the first run's value first; empty when comparable.

    same_curve: allow what may differ between two points of one curve: the number of workers, and the seed with what
    follows from it."""
    ignored: set[str] = set()
    if a.get("workers") != b.get("workers"):
        if same_curve:
            ignored |= _PER_WORKERS
        if "weak" in (a.get("scaling"), b.get("scaling")):
            ignored |= _PER_WORKERS_WEAK  # the global batch grows with the workers: the order cannot be the same
    if same_curve and a.get("seed") != b.get("seed"):
        ignored |= _PER_SEED
    if a.get("hash.data") and a.get("hash.data") == b.get("hash.data"):
        ignored.add("data")  # the same pictures, whatever their folder is called
    keys = [key for key in dict.fromkeys([*a, *b]) if key not in ignored]
    return [_sentence(key, a.get(key), b.get(key)) for key in keys if not _alike(key, a.get(key), b.get(key))]


@dataclass(frozen=True, kw_only=True)
class Comparability:
    """Runs sorted into groups that may share a curve. `groups`: positions of the runs, the largest group first (its
    first run is the reference). `reasons[i]`: what differs from the reference for group i ([] for the first)."""

    groups: tuple[tuple[int, ...], ...]
    reasons: tuple[tuple[str, ...], ...]

    @property
    def alike(self) -> bool:
        return len(self.groups) <= 1


def comparable(contracts: Sequence[Mapping[str, Any]]) -> Comparability:
    """Groups runs by their contracts: every run of a group is alike (as two points of one curve) with every other."""
    groups: list[list[int]] = []
    for position, candidate in enumerate(contracts):
        for group in groups:
            if all(not differences(contracts[member], candidate, same_curve=True) for member in group):
                group.append(position)
                break
        else:
            groups.append([position])
    groups.sort(key=lambda group: (-len(group), group[0]))
    reasons = [
        tuple(differences(contracts[groups[0][0]], contracts[group[0]], same_curve=True)) if index else ()
        for index, group in enumerate(groups)
    ]
    return Comparability(groups=tuple(tuple(group) for group in groups), reasons=tuple(reasons))


def _scalar(value: Any) -> Any:
    """Lists and dicts as text, so that the contract stays flat and compares by equality."""
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in sorted(value.items()))
    return value


def _alike(key: str, a: Any, b: Any) -> bool:
    if key == "wire_dtype" and None in (a, b):
        return True  # one worker has no wire, an older record does not say
    before = _BEFORE.get(key)
    return bool((before if a is None else a) == (before if b is None else b))


def _sentence(key: str, a: Any, b: Any) -> str:
    if key.startswith("hash."):
        name = _NAMES.get(key, key)
        return f"different {name}: {_short(a)} against {_short(b)}"
    if key.startswith("version."):
        return f"{key.removeprefix('version.')} is {_say(a)} in one and {_say(b)} in the other"
    a, b = (_BEFORE.get(key) if value is None else value for value in (a, b))
    return f"{_NAMES.get(key, key.replace('_', ' '))} is {_say(a)} in one and {_say(b)} in the other"


def _say(value: Any) -> str:
    return "not set" if value is None or value == "" else str(value)


def _short(value: Any) -> str:
    return "unknown" if value is None else str(value)[:12]
