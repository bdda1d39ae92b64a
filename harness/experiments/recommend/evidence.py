"""What the records say that a recommendation can stand on: speeds and peaks of memory by job, device, engine, workers
and samples a worker, and the time of an all-reduce by device.

Studies whose speed is marked as not to be used (`harness.analysis.known_faults`) give no speed; their memory counts.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core_model.models import MODELS
from core_model.user_job.source import label_of, source_of
from harness.analysis.duels import record as duels
from harness.analysis.intervals import mean_ratio
from harness.analysis.known_faults.marks import is_superseded
from harness.analysis.run_figures import untimed
from harness.common.formatting import is_number
from harness.job.engines import ZERO_STAGE
from harness.records.record_files import RecordError, read_json, runs_of
from harness.records.run_record import RecordedRun

_OPTIMIZATION = ("precision", "precision_mode", "optimizer", "activation_checkpointing", "compile")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell of one study. job: `key_of` it. micro: samples a worker and pass; a step is one pass. rate: samples/s of
    all workers (geometric mean of the repeats), None where it cannot be used; low, high: its 95 % interval. peak_mib:
    of a worker's GPU. trained: parameters. fields: the job's fields, with which its sizes are found."""

    study: str
    job: str
    device: str
    engine: str
    workers: int
    micro: int
    rate: float | None
    low: float | None = None
    high: float | None = None
    peak_mib: float | None = None
    trained: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step_s(self) -> float:
        """Seconds of a step. Only where `rate` is known."""
        assert self.rate
        return self.micro * self.workers / self.rate


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """points: of all studies. collectives: device -> ranks -> (bytes, seconds) of an all-reduce by the fastest library.
    memory: device -> MiB of one. sources: the studies that all of it is from."""

    points: Sequence[Point]
    collectives: Mapping[str, Mapping[int, Sequence[tuple[float, float]]]] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    sources: Sequence[str] = ()

    def without(self, study: str) -> Evidence:
        """All but one study's points."""
        kept = [point for point in self.points if point.study != study]
        return Evidence(points=kept, collectives=self.collectives, memory=self.memory)


def read_evidence(results: Path, only: Sequence[str] | None = None) -> Evidence:
    """The evidence of a results folder. only: names of studies, None = all. Damaged records are left out: `harness
    results check` names them."""
    points: list[Point] = []
    sources: list[str] = []
    collectives: dict[str, dict[int, list[tuple[float, float]]]] = {}
    memory: dict[str, float] = {}
    for study in sorted(results.iterdir()) if results.is_dir() else []:
        if not study.is_dir() or (only is not None and study.name not in only):
            continue
        try:
            own = [*_of_runs(study, memory), *_of_duels(study, memory)]
            if _add_collectives(study, collectives) or own:
                sources.append(study.name)
            points += own
        except (RecordError, KeyError, TypeError, ValueError):
            continue
    points = _with_trained(points)
    fastest = {
        device: {ranks: _fastest(rows) for ranks, rows in by_ranks.items()} for device, by_ranks in collectives.items()
    }
    return Evidence(points=points, collectives=fastest, memory=memory, sources=sources)


def key_of(job: Mapping[str, Any]) -> str:
    """What makes two jobs the same training for speed and memory: model, its settings, data, precision, optimizer."""
    preset = str(job["preset"])
    source = source_of(preset)
    parts: dict[str, Any] = {name: job.get(name) for name in _OPTIMIZATION}
    parts["compile"] = bool(job.get("compile"))
    if job.get("precision") == "fp32":
        parts.pop("precision_mode")
    parts["model"] = dict(job.get("model") or {})
    if source is not None:
        parts["data"] = job.get("data")
    else:
        parts["version"] = job.get("version") or ""
        parts["data"] = str(job.get("data")).partition(":")[0]
        if preset.partition(":")[0] not in MODELS:
            parts["image_size"] = job.get("image_size") or _pixels(preset)
    return json.dumps({"preset": label_of(preset), **parts}, sort_keys=True)


def shape_of(key: str) -> str:
    """What of a job's key decides the sizes of its tensors: not its optimizer, not whether it is compiled, not which
    half-precision type it has, nor the pictures of this project's presets."""
    parts = json.loads(key)
    parts["precision"] = "fp32" if parts["precision"] == "fp32" else "half"
    for name in ("compile", "optimizer", "precision_mode", *(() if source_of(parts["preset"]) else ("data",))):
        parts.pop(name, None)
    return json.dumps(parts, sort_keys=True)


def model_of(key: str) -> str:
    """The preset, or the user's model, of a job's key."""
    return str(json.loads(key)["preset"])


def engine_text(backend: str, settings: Mapping[str, Any]) -> str:
    """An engine as the command line takes it, in one form: ``deepspeed:2+overlap_comm=true``."""
    given = {key: value for key, value in settings.items() if value not in (None, "", {})}
    stage = given.pop("zero_stage", ZERO_STAGE) if backend == "deepspeed" else None
    words = [] if stage is None else [str(stage)]
    words += [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in sorted(given.items())]
    return backend + (":" + "+".join(words) if words else "")


def device_of(environment: Mapping[str, Any], *, on_gpu: bool) -> str:
    """The kind of device of a record: a GPU's name, or the processor with its cores."""
    devices = (environment.get("gpus") or {}).get("devices") or []
    if on_gpu and devices:
        return str(devices[0].get("name"))
    cpu = environment.get("cpu") or {}
    return f"{cpu.get('model')}, {cpu.get('usable_cores')} cores"


def precision_of(key: str) -> str:
    """Of a job's key: fp32, bf16 or fp16."""
    return str(json.loads(key)["precision"])


def _pixels(preset: str) -> int:
    from core_model.presets import PRESETS

    return PRESETS[preset].image_size if preset in PRESETS else 0


def _of_runs(study: Path, memory: dict[str, float]) -> Iterator[Point]:
    superseded = is_superseded(study)
    cells: dict[tuple[Any, ...], list[RecordedRun]] = {}
    for run in map(RecordedRun, runs_of(study)):
        job = run.job
        if not run.ok or int(job.get("nodes") or 1) > 1 or job.get("emulate_compute_ms") or _of_another_program(run):
            continue
        peaks = [value for value in (run.result.get("memory") or {}).get("peak_device_mib") or () if value]
        device = device_of(run.environment, on_gpu=bool(peaks))
        if peaks:
            memory[device] = float(run.environment["gpus"]["devices"][0]["memory_mib"])
        micro = int(job["global_batch"]) // (run.workers * int(job.get("accumulation") or 1))
        stage = (run.result.get("engine") or {}).get("zero_stage")
        settings = {**({} if stage is None else {"zero_stage": stage}), **(job.get("engine") or {})}
        cell = (key_of(job), device, engine_text(run.backend, settings), run.workers, micro)
        if int(job.get("accumulation") or 1) == 1 and micro:
            cells.setdefault(cell, []).append(run)
    for (key, device, engine, workers, micro), runs in cells.items():
        timed = [run.totals.samples_per_s for run in runs if not superseded and not untimed(run) and run.totals]
        rate, low, high = mean_ratio(timed)
        peaks = [max(run.memory["peak_device_mib"]) for run in runs if any(run.memory.get("peak_device_mib") or ())]
        yield Point(
            study=study.name, job=key, device=device, engine=engine, workers=workers, micro=micro,
            rate=rate, low=low, high=high, peak_mib=statistics.median(peaks) if peaks else None,
            trained=max(int((run.result.get("model") or {}).get("trainable_parameters") or 0) for run in runs),
            fields=runs[0].job,
        )  # fmt: skip


def _of_another_program(run: RecordedRun) -> bool:
    """Whether FSDP2 gathered the layers inside a block one by one, as this program no longer does (five times the step
    on two H100): the record says nothing of an engine as it is now."""
    groups = (run.result.get("engine") or {}).get("sharded_groups") or ()
    return any(re.search(r"\.\d+\.", str(name)) for name in groups)


def _of_duels(study: Path, memory: dict[str, float]) -> Iterator[Point]:
    if not (study / duels.NAME).exists():
        return
    record = read_json(study / duels.NAME)
    told = duels.told_by(record)
    for side in record["contenders"]:
        if duels.same_as(side["name"]) is not None or side["accumulation"] != 1 or side["name"] not in told:
            continue
        own = told[side["name"]]
        peaks = [value for value in own.get("device_mib") or () if is_number(value)]
        device = device_of(record["environment"], on_gpu=bool(peaks))
        if peaks:
            memory[device] = float(record["environment"]["gpus"]["devices"][0]["memory_mib"])
        stage = {} if side["zero_stage"] is None else {"zero_stage": side["zero_stage"]}
        fields = {**record["job"], "precision": side["precision"], "precision_mode": side["precision_mode"]}
        rate, low, high = mean_ratio(_rates(record, side["name"]))
        yield Point(
            study=study.name, job=key_of(fields), device=device,
            engine=engine_text(side["backend"], {**stage, **dict(side["settings"])}),
            workers=side["workers"], micro=side["global_batch"] // side["workers"],
            rate=None if is_superseded(study) else rate, low=low, high=high,
            peak_mib=max(peaks, default=None),
            trained=int((own.get("engine") or {}).get("trainable_parameters") or 0), fields=fields,
        )  # fmt: skip


def _rates(record: Mapping[str, Any], name: str) -> list[float]:
    """Samples/s of a contender in each duel: total samples over total seconds."""
    totals: dict[int, tuple[float, float]] = {}
    for block in record["blocks"]:
        if block["engine"] == name:
            samples, seconds = totals.get(block["duel"], (0.0, 0.0))
            totals[block["duel"]] = (samples + block["samples"], seconds + block["seconds"])
    return [samples / seconds for samples, seconds in totals.values()]


def _with_trained(points: Sequence[Point]) -> list[Point]:
    """ZeRO-3's record counts no parameter on a rank: each job has as many as its other records say."""
    from dataclasses import replace

    most: dict[str, int] = {}
    for point in points:
        most[point.job] = max(most.get(point.job, 0), point.trained)
    return [replace(point, trained=most[point.job]) for point in points]


def _add_collectives(study: Path, found: dict[str, dict[int, list[tuple[float, float]]]]) -> bool:
    """Adds a study's times of all-reduces; True where it has any."""
    if not (study / "comm.json").exists():
        return False
    record = read_json(study / "comm.json")
    if not record.get("environment") or len(record["hosts"]) > 1:  # an old record does not say where it was made
        return False
    device = device_of(record["environment"], on_gpu=True)
    for library in record["libraries"]:
        for row in library["rows"]:
            if row["operation"] == "all_reduce" and is_number(row.get("seconds_median")):
                rows = found.setdefault(device, {}).setdefault(int(row["ranks"]), [])
                rows.append((float(row["bytes"]), float(row["seconds_median"])))
    return True


def _fastest(rows: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    best: dict[float, float] = {}
    for size, seconds in rows:
        best[size] = min(seconds, best.get(size, seconds))
    return sorted(best.items())
