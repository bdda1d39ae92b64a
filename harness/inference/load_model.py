"""From what a user names (a run, a weights file, a preset) to a model that can look at pictures.

Shared by `harness model eval`, `detect`, `chat` and `page`. torch is imported when a model is loaded, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.job.declaration import Job, JobError
from harness.job.options import apply_settings
from harness.records.record_files import JOB, RESULT, WEIGHTS, RecordError, is_run, read_json, runs_of

PARTS = ("decoder", "prompt_learner", "projection", "language")
BRANCHES = ("decoder", "memory", "both")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model ready to use, on `device`, in evaluation mode.

    name: what the user named. job: how it was trained, or is to be used. trained: weights were loaded (without, only
    the memory branch means anything, and no question can be answered). digests: sha256 of the trained weights, part by
    part and as ``all``; {} where untrained. initial: the digest ``all`` before training, "" where no record says it.
    categories: those of the training data, as far as the run's record says.
    """

    name: str
    job: Job
    model: Any
    device: Any
    trained: bool
    digests: Mapping[str, str] = field(default_factory=dict)
    initial: str = ""
    categories: tuple[str, ...] = ()


def load(
    source: str | None,
    *,
    preset: str = "",
    device: str = "auto",
    threads: int | None = None,
    settings: tuple[str, ...] = (),
    changes: Mapping[str, Any] | None = None,
) -> Trained:
    """The model of a run folder, of a safetensors file (with `preset`), or of a preset without training (no source).

    changes: job fields that replace the run's; `settings` are ``key=value`` texts, applied after them. Raises JobError,
    RecordError or ModelError, each one line.
    """
    job, weights, run = _resolve(source, preset)
    values = {**job.to_dict(), **(changes or {}), "init_weights": "", "resume": False}
    apply_settings(values, settings)
    job = Job.from_dict(values)

    import torch

    from backends.torch.rendezvous import choose_device
    from harness.worker.model_and_data import build_model, load_weights, trainable_weights, weights_digest

    if threads:
        torch.set_num_threads(threads)
    place = choose_device(device, 0)
    model = build_model(job)
    if not getattr(model, "supports_maps", False):
        raise JobError(f"preset '{job.preset}' is a plain language model: it looks at no pictures")
    digests: dict[str, str] = {}
    if weights is not None:
        load_weights(model, weights)
        state = trainable_weights(model)
        digests = {"all": weights_digest(state)}
        for part in PARTS:
            own = {name: tensor for name, tensor in state.items() if name.startswith(part + ".")}
            if own:
                digests[part] = weights_digest(own)
    result = _result(run)
    return Trained(
        name=_name(source, job),
        job=job,
        model=model.to(place).eval(),
        device=place,
        trained=weights is not None or bool(model.description.get("deltas")),
        digests=digests,
        initial=(result.get("hashes") or {}).get("init_weights", ""),
        categories=tuple(sorted((result.get("data") or {}).get("pictures") or ())),
    )


def branch_of(trained: Trained, wanted: str | None, shots: bool) -> str:
    """Which map is meant: ``memory`` where good pictures are given, else ``decoder``. Raises JobError where the wanted
    one cannot be had."""
    branch = wanted or ("memory" if shots else "decoder")
    if branch not in BRANCHES:
        raise JobError(f"unknown branch '{branch}': choose one of {', '.join(BRANCHES)}")
    if branch != "decoder" and not shots:
        raise JobError(f"branch '{branch}' compares with good pictures: give --shots K (or --normal to detect)")
    if branch != "memory" and not trained.trained:
        raise JobError(
            f"the decoder of '{trained.name}' is untrained: give a run or weights, or use the memory branch (--shots K)"
        )
    return branch


def _resolve(source: str | None, preset: str) -> tuple[Job, Path | None, Path | None]:
    """The job, the weights file and the run folder that are meant; the last two may be None."""
    if source is None:
        if not preset:
            raise JobError("nothing to load: give a run folder or a weights file, or --preset NAME for no training")
        return Job(preset=preset), None, None
    path = Path(source)
    if not path.exists():
        raise JobError(f"{source}: no such run folder or weights file")
    run = path if path.is_dir() else path.parent if path.name == WEIGHTS else None
    if run is not None and is_run(run):
        if preset:
            raise JobError(f"{source} belongs to a run, which knows its preset: leave --preset out")
        if not (run / WEIGHTS).is_file():
            raise JobError(f"{run}: this run has no {WEIGHTS} ({_why_none(run)}): name another run")
        return Job.from_dict(read_json(run / JOB)), run / WEIGHTS, run
    if path.is_dir():
        inside = [folder.name for folder in runs_of(path)]
        hint = f"a study; name one of its runs, such as {path / inside[0]}" if inside else f"no {JOB} in it"
        raise JobError(f"{source}: not a run folder: {hint}")
    if not preset:
        raise JobError(f"{source}: a weights file does not say how its model is built: add --preset{_hint(path)}")
    return Job(preset=preset), path, None


def _result(run: Path | None) -> dict[str, Any]:
    """The run's result.json; {} where there is none."""
    try:
        return read_json(run / RESULT) if run is not None else {}
    except RecordError:
        return {}


def _why_none(run: Path) -> str:
    """Why a run has no weights, in a few words."""
    result = _result(run)
    if result.get("status") == "ok":
        return "they were not kept"
    return " ".join(f"{result.get('status', 'no result yet')} {result.get('reason', '')}".split())


def _hint(path: Path) -> str:
    """`` tiny`` where the file's metadata names its preset."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            preset = (file.metadata() or {}).get("preset", "")
    except (SafetensorError, OSError):
        raise JobError(f"{path}: not a readable safetensors file: it is truncated or foreign") from None
    return f" {preset}" if preset else " NAME"


def _name(source: str | None, job: Job) -> str:
    return source.rstrip("/") if source is not None else f"{job.preset} (untrained)"
