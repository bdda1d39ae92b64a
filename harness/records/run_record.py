"""A run or a study as it lies in its folder, read once. Everything that compares or draws starts here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.records import comparability as contracts
from harness.records import locks, soundness, step_metrics
from harness.records.record_files import (
    ENVIRONMENT,
    EVALUATION,
    JOB,
    LOG,
    RESOURCES,
    RESULT,
    SPLIT,
    STEPS,
    RecordError,
    is_run,
    read_json,
    read_jsonl,
    runs_of,
    torn_end,
)

ENGINE_NAMES = {
    "single": "Single process",
    "ddp": "PyTorch DDP",
    "fsdp2": "PyTorch FSDP2",
    "deepspeed": "DeepSpeed",
    "horovod": "Horovod",
}
SHARED_LOG = "the processes' output is in "  # how the log of a run begins that used another run's processes
_SETTING_WORDS = {"zero_stage": "ZeRO-{}", "compression": "{} on the wire"}
_QUIET_SETTINGS = frozenset({"extra"})


@dataclass(frozen=True)
class RecordedRun:
    """One folder results/STUDY/RUN. Files are read when first asked for; a missing one reads as empty, because a failed
    run has no evaluation and a killed one no result. A damaged file raises `records.RecordError`."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def study(self) -> str:
        return self.folder.parent.name

    @cached_property
    def job(self) -> dict[str, Any]:
        return read_json(self.folder / JOB)

    @cached_property
    def environment(self) -> dict[str, Any]:
        return self._optional(ENVIRONMENT)

    @cached_property
    def result(self) -> dict[str, Any]:
        return self._optional(RESULT) or {"status": "failed", "reason": "no result was recorded (killed?)"}

    @cached_property
    def memory(self) -> dict[str, Any]:
        """The result's record of memory; {} where an earlier run of the same processes still held some of the GPU's.

        Since that is recorded (``held_before_mib``), more than 1 % of the peak; before, any DeepSpeed run that was not
        the first of its processes: its predecessor's engine outlived it.
        """
        memory = self.result.get("memory") or {}
        peaks = [value for value in memory.get("peak_device_mib") or () if value is not None]
        if not peaks:
            return memory
        if "held_before_mib" in memory:
            held = max(value or 0.0 for value in memory["held_before_mib"])
            return {} if held > 0.01 * max(peaks) else memory
        return {} if self.backend == "deepspeed" and self.came_later else memory

    @cached_property
    def came_later(self) -> bool:
        """Whether the run used the processes of an earlier one (`harness compare --take-turns`)."""
        try:
            with (self.folder / LOG).open(errors="replace") as log:
                return log.readline().startswith(SHARED_LOG)
        except FileNotFoundError:
            return False

    @cached_property
    def damage(self) -> str:
        """What is wrong in its files (`harness.records.soundness`), one line; "" where nothing is."""
        return soundness.damage(self.folder)

    @cached_property
    def torn(self) -> list[str]:
        """Its files whose last line was cut off, and is left out."""
        names = (STEPS, RESOURCES, SPLIT)
        return [name for name in names if torn_end(self.folder / name)]

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        return self._optional(EVALUATION)

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.folder / STEPS))

    @property
    def timed_steps(self) -> list[float]:
        """Seconds of each step after the warm-up."""
        return [row["step_s"] for row in step_metrics.timed_rows(self.steps, int(self.job.get("timing_warmup", 0)))]

    @cached_property
    def totals(self) -> step_metrics.Totals | None:
        """Samples and seconds of the timed steps by steps.jsonl, None where there is none: the run's throughput, also
        of records made before result.json held it."""
        return step_metrics.totals(self.steps, int(self.job.get("timing_warmup", 0)))

    @cached_property
    def resources(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.folder / RESOURCES))

    @cached_property
    def split(self) -> list[dict[str, Any]]:
        """Rows of split.jsonl, see `harness.instruments.step_timing`."""
        return list(read_jsonl(self.folder / SPLIT))

    @cached_property
    def profile(self) -> dict[str, Any]:
        """profile.json of a profiled run, see `harness.instruments.profiling`."""
        return self._optional("profile.json")

    @property
    def ok(self) -> bool:
        return self.result.get("status") == "ok"

    @property
    def reason(self) -> str:
        """Why it is not ok, one line."""
        if self.ok:
            return ""
        if self.result.get("status") == "running":
            lost = locks.has_lost_its_writer(self.folder, self.result)
            return locks.gone_text(self.result) if lost else "still running, or killed before it could say why"
        return self.result.get("reason") or "no reason recorded"

    @property
    def backend(self) -> str:
        return str(self.job.get("backend", "?"))

    @property
    def workers(self) -> int:
        return int(self.result.get("world_size") or self.job.get("nodes", 1) * self.job.get("slots", 1))

    @property
    def repeat(self) -> int:
        return int(self.job.get("repeat", 0))

    @property
    def seed(self) -> int:
        return int(self.job.get("seed", 0))

    @property
    def turn(self) -> tuple[str, int, int]:
        """(study, repeat, seed): runs of one turn ran right after one another, so their speeds may be paired."""
        return self.study, self.repeat, self.seed

    @property
    def label(self) -> str:
        """The engine with the settings that were asked for: ``DeepSpeed ZeRO-2``, ``Horovod fp16 on the wire``."""
        described = self.result.get("engine") or {}
        return label_of(self.job, zero_stage=described.get("zero_stage"))

    @cached_property
    def contract(self) -> dict[str, Any]:
        """The recorded contract, or one derived from the other files where the run never got to write it."""
        recorded = self.result.get("contract")
        if isinstance(recorded, Mapping) and recorded:
            return dict(recorded)
        return self.derived_contract()

    def derived_contract(self) -> dict[str, Any]:
        """The contract computed from job.json, environment.json and the result's hashes and engine."""
        hashes, engine = self.result.get("hashes") or {}, self.result.get("engine") or {}
        return contracts.contract(self.job, self.environment, hashes, engine)

    def _optional(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return read_json(path) if path.exists() else {}


def label_of(job: Mapping[str, Any], *, zero_stage: int | None = None) -> str:
    """Engine and asked-for settings of a job, as a person would say it. Two different settings never share a label.
    zero_stage: DeepSpeed's stage where the job leaves it to the engine's default."""
    name = ENGINE_NAMES.get(str(job.get("backend")), str(job.get("backend")))
    settings = dict(job.get("engine") or {})
    if job.get("backend") == "deepspeed" and zero_stage is not None:
        settings.setdefault("zero_stage", zero_stage)
    words = []
    for key, value in sorted(settings.items(), key=lambda item: item[0] not in _SETTING_WORDS):
        if key in _QUIET_SETTINGS and not value:
            continue
        if key in _SETTING_WORDS:
            if value not in (None, "", "none"):
                words.append(_SETTING_WORDS[key].format(value))
        else:
            words.append(f"{key.replace('_', ' ')} {value}")
    if job.get("precision", "fp32") != "fp32" and job.get("precision_mode") == "native":
        words.append("native precision")
    if job.get("profile"):
        words.append(f"profiled by {job['profile']}")
    return " ".join([name, *words[:1]]) + (f" ({', '.join(words[1:])})" if words[1:] else "")


def load_runs(paths: list[Path]) -> list[RecordedRun]:
    """The runs of `paths`, each a run folder or a study folder, in order and without repeats. Raises RecordError where
    a path is neither."""
    found: dict[Path, RecordedRun] = {}
    for path in paths:
        if is_run(path):
            folders = [path]
        elif path.is_dir() and (folders := runs_of(path)):
            pass
        else:
            raise RecordError(_no_runs(path))
        for folder in folders:
            found.setdefault(folder.resolve(), RecordedRun(folder.resolve()))
    return list(found.values())


def _no_runs(path: Path) -> str:
    """One line about a folder without runs: an experiment's has a page of its own."""
    pages = sorted(page for page in path.glob("*.md") if page.name not in ("notes.md", "README.md"))
    if pages:
        return f"{path}: holds an experiment's table, no runs: read {pages[0]}"
    return f"{path}: neither a run nor a study with runs: name a folder in results/"


def sound_runs(runs: Sequence[RecordedRun]) -> tuple[list[RecordedRun], list[str]]:
    """The runs whose files are whole, and one line for each other. Raises RecordError where none is whole."""
    bad = [f"{run.study}/{run.name} is left out: {run.damage}" for run in runs if run.damage]
    good = [run for run in runs if not run.damage]
    if bad and not good:
        raise RecordError(f"{runs[0].folder}: {runs[0].damage}: no run can be read")
    return good, bad


def whole_run(run: RecordedRun) -> RecordedRun:
    """`run`. Raises RecordError where its files are damaged."""
    if run.damage:
        raise RecordError(f"{run.folder}: {run.damage}")
    return run
