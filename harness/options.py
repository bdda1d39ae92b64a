"""The options that describe a job: the same for `harness run` and for the worker under any launcher."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import click

import backends
from harness.job import SCALINGS, Job, JobError

_F = Callable[..., Any]

# (flags, keyword arguments). Defaults are None: what the user did not say is Job's default.
_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--backend",), {"metavar": "NAME", "help": f"Engine: {', '.join(backends.names())}."}),
    (("--zero-stage",), {"type": int, "help": "DeepSpeed's ZeRO stage, 0-3."}),
    (
        ("--launcher",),
        {"help": "auto, local, deepspeed, horovodrun, mpirun, torchrun or srun (auto: the engine's own)."},
    ),
    (("--nodes",), {"type": int, "help": "Number of hosts, taken from the hostfile in its order."}),
    (("--slots",), {"type": int, "help": "Workers per host."}),
    (
        ("--hostfile",),
        {"type": click.Path(), "help": "Hosts as 'name slots=N' lines (default: ./hostfile for --nodes > 1)."},
    ),
    (("--min-np",), {"type": int, "help": "Elastic Horovod: go on with so few workers when hosts are lost."}),
    (
        ("--max-np",),
        {"type": int, "help": "Elastic Horovod: take in hosts that the hostfile gains, up to so many."},
    ),
    (
        ("--autotune", "tune_steps"),
        {"type": int, "metavar": "STEPS", "help": "Horovod: tune fusion and cycle in a phase before the run."},
    ),
    (("--device",), {"type": click.Choice(["auto", "cpu", "cuda"]), "help": "Where to compute."}),
    (("--threads",), {"type": int, "help": "CPU threads per worker."}),
    (("--oversubscribe",), {"is_flag": True, "default": None, "help": "Allow more workers than cores (recorded)."}),
    (("--timeout", "timeout_s"), {"type": float, "help": "Seconds that any single wait may last."}),
    (("--preset",), {"help": "Model: tiny, small, lite, clip[:NAME], anomalygpt-7b, llama-600m."}),
    (("--version", "version"), {"help": "Model version v1..v6 of the study: sets its whole column."}),
    (("--random-weights",), {"is_flag": True, "default": None, "help": "Build the preset without pretrained weights."}),
    (("--init-weights",), {"type": click.Path(), "help": "Trainable weights (safetensors or a run) to start from."}),
    (("--data",), {"help": "textures, mvtec:DIR, visa:DIR or aebad:DIR."}),
    (("--defects",), {"help": "Recipe of the simulated defects."}),
    (("--image-size",), {"type": int, "help": "Pixels a side (default: the preset's)."}),
    (("--loader-workers",), {"type": int, "help": "Data loading processes per worker (0: one background thread)."}),
    (("--steps",), {"type": int, "help": "Optimizer steps."}),
    (
        ("--global-batch",),
        {"type": int, "help": "Samples per optimizer step over all workers; of a weak `compare`, per worker."},
    ),
    (("--accumulation",), {"type": int, "help": "Micro-batches per optimizer step and worker."}),
    (("--scaling",), {"type": click.Choice(SCALINGS), "help": "What is held when workers are added."}),
    (("--optimizer",), {"help": "adamw, adam or sgd."}),
    (("--lr",), {"type": float, "help": "Peak learning rate; never scaled by the number of workers."}),
    (("--weight-decay",), {"type": float, "help": "Decoupled weight decay."}),
    (("--schedule",), {"help": "constant, warmup_linear or warmup_cosine."}),
    (("--warmup-steps",), {"type": int, "help": "Learning-rate warm-up, in optimizer steps."}),
    (("--clip-norm",), {"type": float, "help": "Global gradient norm limit; 0 = no clipping."}),
    (("--precision",), {"type": click.Choice(["fp32", "bf16", "fp16"]), "help": "Arithmetic type."}),
    (
        ("--precision-mode",),
        {"type": click.Choice(["matched", "native"]), "help": "Like-for-like autocast, or the engine's own way."},
    ),
    (("--activation-checkpointing",), {"is_flag": True, "default": None, "help": "Recompute activations in backward."}),
    (("--seed",), {"type": int, "help": "Decides weights, order of samples and simulated defects."}),
    (("--timing-warmup",), {"type": int, "help": "First optimizer steps left out of timing."}),
    (("--log-every",), {"type": int, "help": "Optimizer steps per flush of losses and times."}),
    (("--eval-samples",), {"type": int, "help": "Test samples to evaluate: 0 = all, -1 = none."}),
    (("--shots",), {"type": int, "help": "Normal pictures per category in the memory bank at evaluation."}),
    (("--checkpoint-every",), {"type": int, "help": "Optimizer steps between checkpoints; 0 = none."}),
    (("--resume",), {"is_flag": True, "default": None, "help": "Go on from the run's last good checkpoint."}),
    (
        ("--emulate-compute", "emulate_compute_ms"),
        {"type": float, "help": "Wait this many ms a step instead of computing."},
    ),
    (("--study",), {"help": "Folder in results/ that the run belongs to."}),
    (("--run-name", "run"), {"help": "Folder of the run (default: made from engine, workers, precision, seed)."}),
    (
        ("--set", "settings"),
        {"multiple": True, "metavar": "KEY=VALUE", "help": "Any job field; engine.KEY, model.KEY, data_options.KEY."},
    ),
)


def job_options(command: _F) -> _F:
    """Adds the options of a job to a click command, which gets them as keyword arguments."""
    for flags, settings in reversed(_OPTIONS):
        command = click.option(*flags, **settings)(command)
    return command


def parse_value(text: str) -> Any:
    """JSON where it is JSON (numbers, true, null, lists), text otherwise."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def apply_settings(values: dict[str, Any], settings: tuple[str, ...]) -> None:
    """Puts ``key=value`` and ``engine.key=value`` into `values`, in place."""
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise JobError(f"--set {setting}: write it as KEY=VALUE")
        head, dot, tail = key.partition(".")
        if dot:
            nested = dict(values.get(head) or {})
            nested[tail] = parse_value(text)
            values[head] = nested
        else:
            values[head] = parse_value(text)


def job_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The job fields that were given (not None), with --zero-stage, --clip-norm 0 and --set folded in."""
    given = {name: value for name, value in options.items() if value is not None}
    settings = given.pop("settings", ())
    zero_stage = given.pop("zero_stage", None)
    if zero_stage is not None:
        if given.get("backend") not in (None, "deepspeed"):
            raise JobError(f"--zero-stage belongs to deepspeed, not to {given['backend']}: leave it out")
        given["engine"] = {"zero_stage": zero_stage}
    for name in ("min_np", "max_np", "tune_steps"):
        value = given.pop(name, None)
        if value is not None:
            flag = "--autotune" if name == "tune_steps" else f"--{name.replace('_', '-')}"
            if given.get("backend") != "horovod":
                raise JobError(f"{flag} belongs to horovod, not to {given.get('backend', 'single')}: leave it out")
            if value < 1:
                raise JobError(f"{flag} {value}: it must be at least 1")
            given["engine"] = {**given.get("engine", {}), name: value}
    if given.get("clip_norm") == 0:
        given["clip_norm"] = None
    if given.get("version"):
        from core_model.versions import version

        given = {**version(given["version"]).optimization, **given}
    apply_settings(given, settings)
    return given


def names_in(text: str, known: Collection[str], what: str) -> list[str]:
    """``a,b`` as names, each one of `known`. Raises JobError that calls them `what`."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise JobError(f"unknown {what} '{name}': choose of {', '.join(known)}")
    return names


def results_root(folder: str | None) -> Path:
    """The results folder: the option, $HARNESS_RESULTS, or results/ beside the packages, or in the current folder."""
    if folder or os.environ.get("HARNESS_RESULTS"):
        return Path(folder or os.environ["HARNESS_RESULTS"]).absolute()
    beside = Path(__file__).resolve().parent.parent / "results"
    return beside if beside.is_dir() else Path.cwd() / "results"


def share_evenly(values: dict[str, Any], workers: int) -> None:
    """Where no global batch was given: Job's default, rounded up to what `workers` can share evenly. In place."""
    shares = workers * int(values.get("accumulation", 1))
    if "global_batch" not in values and shares > 0:
        values["global_batch"] = -(-Job.global_batch // shares) * shares


def make_job(options: Mapping[str, Any]) -> Job:
    """The validated job of these options; slots that were not given come from the hostfile of a several-node job, and
    the global batch is made to fit all workers."""
    values = job_values(options)
    if values.get("nodes", 1) > 1 and "slots" not in values:
        from harness.launch import slots_from_hostfile

        values["slots"] = slots_from_hostfile(values["nodes"], values.get("hostfile", ""))
    share_evenly(values, int(values.get("nodes", Job.nodes)) * int(values.get("slots", Job.slots)))
    return Job.from_dict(values).validate()
