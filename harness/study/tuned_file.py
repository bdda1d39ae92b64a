"""tuned.toml: the settings that `harness tune` found for each engine, and for which job, machine and versions.

`harness compare --tuned FILE` gives every engine in it a second row (`harness.study.tuned_rows`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from backends.declared import declared
from harness.job.declaration import Job, JobError
from harness.job.engines import ZERO_STAGE
from harness.study.toml_file import read_toml

SCHEMA = 1
# What may differ between the job that was tuned and the one that is compared: it does not decide which setting is
# fastest. Engine and workers are named by each entry.
_FREE = frozenset(
    {
        "backend", "slots", "engine", "launcher", "hostfile", "oversubscribe", "concurrent", "timeout_s",
        "time_limit_s", "lr", "betas", "eps", "weight_decay", "schedule", "warmup_steps", "loss_scale", "seed", "steps",
        "timing_warmup", "log_every", "eval_samples", "shots", "keep_weights", "checkpoint_every", "resume", "study",
        "run", "repeat", "init_weights",
    }
)  # fmt: skip


@declared(JobError, "tuned file: ")
class TunedEngine:
    """What was found for one engine and number of workers.

    given: settings that were asked for and kept. settings: what was found on top of them; none where the engine as it
    comes was not beaten. value, low, high: how much faster (0.03 = 3 %) and its 95 % interval, by duels that the search
    did not see. tried: candidates in all. parity: largest relative difference of any weight from the single process.
    """

    backend: str
    workers: Annotated[int, Field(ge=1)]
    given: Mapping[str, Any]
    settings: Mapping[str, Any]
    verdict: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    tried: Annotated[int, Field(ge=0)] = 0
    duels: Annotated[int, Field(ge=0)] = 0
    parity: float | None = None
    lost: tuple[Mapping[str, Any], ...] = ()


@declared(JobError, "tuned file: ")
class TunedFile:
    """A whole file. job: fields of the job that was tuned, those that decide what is fastest. machine: hardware, cores,
    gpus. versions: of the engines and torch. global batch: per worker where the scaling is weak."""

    schema: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)]
    job: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    engine: tuple[TunedEngine, ...] = ()

    def found(self, backend: str, given: Mapping[str, Any], workers: int) -> TunedEngine | None:
        """The entry of an engine with the settings that the user asks for, None where there is none."""
        for entry in self.engine:
            if (entry.backend, entry.workers, _full(backend, entry.given)) == (backend, workers, _full(backend, given)):
                return entry
        return None

    def check_job(self, values: Mapping[str, Any]) -> None:
        """Raises JobError where `values` (fields of a job) describe another job than the one that was tuned."""
        asked = deciding(values)
        for name in sorted({*asked, *self.job}):
            if asked.get(name) != self.job.get(name):
                tuned, own = _said(self.job.get(name)), _said(asked.get(name))
                raise JobError(
                    f"the tuned settings are of another job: {name} was {tuned}, here it is {own}: run `harness tune` "
                    "for this job, or leave --tuned out"
                )

    def departures(self, machine: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
        """What here is not as it was where the settings were found, in words: the settings run, but may not be best."""
        found = []
        for name in sorted({*self.machine, *machine}):
            if self.machine.get(name) != machine.get(name):
                found.append(f"{name} was {_said(self.machine.get(name))}, here it is {_said(machine.get(name))}")
        for name in sorted(set(self.versions) & set(versions)):
            if self.versions[name] != versions[name]:
                found.append(f"{name} was {self.versions[name]}, here it is {versions[name]}")
        return found


def deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a job that decide which setting is fastest, as far as they are not a default; None is "none"."""
    job = Job.from_dict(dict(values)).to_dict()
    default = Job().to_dict()
    kept = {
        name: "none" if value is None else value  # TOML has no null
        for name, value in job.items()
        if name not in _FREE and value != default[name]
    }
    return kept | {name: job[name] for name in ("preset", "data", "global_batch", "scaling", "precision")}


def this_machine() -> tuple[dict[str, Any], dict[str, str]]:
    """(hardware, cores and GPUs, versions of torch and the engines) here."""
    from harness.records import environment

    cpu, gpus = environment.cpu(), environment.gpus()
    kinds = environment.hardware({"cpu": cpu, "gpus": gpus})
    machine = {"hardware": kinds, "cores": cpu["usable_cores"], "gpus": len((gpus or {}).get("devices") or [])}
    wanted = ("torch", "deepspeed", "horovod")
    return machine, {name: found for name, found in environment.versions().items() if name in wanted}


def read(path: Path) -> TunedFile:
    """The file at `path`. Raises JobError, one line, where it cannot be read or is none."""
    values = read_toml(path, missing="no such file: `harness tune` writes it")
    try:
        entries = values.pop("engine", [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise JobError("'engine' must be a list of [[engine]] tables")
        return TunedFile(**values, engine=tuple(TunedEngine(**entry) for entry in entries))
    except JobError as error:
        raise JobError(f"{path}: {error}") from None


def write(tuned: TunedFile, path: Path) -> None:
    """Writes `tuned` whole or not at all."""
    from harness.records.record_files import write_text

    write_text(path, text_of(tuned))


def text_of(tuned: TunedFile) -> str:
    """The file's text: plain values, inline tables, one ``[[engine]]`` an entry. Python's library only reads TOML."""
    lines = ["# Written by `harness tune`; `harness compare --tuned` reads it.", f"schema = {tuned.schema}"]
    for name in ("job", "machine", "versions"):
        lines += ["", f"[{name}]", *_pairs(getattr(tuned, name))]
    for entry in tuned.engine:
        values = {item.name: getattr(entry, item.name) for item in fields(entry)}
        lost = values.pop("lost")
        lines += ["", "[[engine]]", *_pairs(values)]
        if lost:
            lines += ["lost = [", *(f"  {_value(item)}," for item in lost), "]"]
    return "\n".join(lines) + "\n"


def as_plain(entry: TunedEngine) -> dict[str, Any]:
    """An entry as JSON holds it."""
    return json.loads(json.dumps(asdict(entry)))


def _full(backend: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the ZeRO stage that `deepspeed` alone means."""
    return {"zero_stage": ZERO_STAGE, **given} if backend == "deepspeed" else dict(given)


def _pairs(values: Mapping[str, Any]) -> list[str]:
    """``key = value`` lines; TOML has no null, so what is None is left out."""
    return [f"{_key(name)} = {_value(value)}" for name, value in values.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items() if item is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # as JSON writes text, TOML reads it


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _said(value: Any) -> str:
    return "not set" if value is None else str(value)
