"""A study = engines x settings x workers x repeats: what `harness compare` runs (`harness.study.runner`), interleaved.

A study is asked for by options or by a TOML file::

    name = "my-study"               # folder in results/ (default: the file's name)
    title = "..."                   # optional, shown in the report
    backends = ["deepspeed:zero_stage=1", "horovod"]
    workers = [1, 2]                # world sizes; nodes is fixed, slots = workers / nodes
    repeats = 3
    seeds = [0, 1, 2]               # of repeat 0, 1, 2 (default: the job's seed + the repeat)
    until = "5%"                    # half of the interval of each difference in speed that duels go on for
    budget = "10m"                  # time of the duels, beside the runs; "0": no duels
    tuned = "tuned.toml"            # optional: each engine also with the settings that `harness tune` found
    [job]                           # any field of harness.job.declaration.Job
    preset = "small"
    steps = 60
    [matrix]                        # optional: every combination of these job fields
    precision = ["fp32", "bf16"]
    [estimate]                      # optional: what the plan goes by while no earlier run of this kind is recorded
    start_s = 20                    # seconds that a start of processes takes, and that a run takes besides
    run_s = 10

Within a repeat, engines run right after one another at each number of workers, and the order turns from repeat to
repeat (A B, B A, ...): a slow drift of the machine then hits all engines alike and cancels in the paired comparison.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from backends.declared import check_field, declared, nearest, unknown
from harness.common.formatting import is_number
from harness.job.declaration import Job, JobError
from harness.job.engines import parse_backend
from harness.job.measured_defaults import with_measured
from harness.job.options import with_version
from harness.job.quantities import seconds, share
from harness.records.record_files import read_json
from harness.records.run_folder import check_name
from harness.study.toml_file import read_toml

STUDY = "study.json"
UNTIL, BUDGET = "5%", "10m"  # of the duels, where nothing else is asked for
_INSTEAD = {
    "slots": "name world sizes by workers, out of [job], [matrix] and the options",
    "backend": "name engines by backends, out of [job], [matrix] and the options",
    "engine": 'write an engine\'s settings behind its name, backends = ["deepspeed:zero_stage=1"]',
    "seed": "name seeds by seeds = [0, 1, 2]",
}


@declared(JobError)
class StudyMatrix:
    """What a study file or the options of `harness compare` declare: the keys of the file, their types and ranges."""

    name: str
    title: str = ""
    backends: tuple[str, ...] = ()
    workers: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    repeats: Annotated[int, Field(ge=1)] = 3
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    until: str = UNTIL
    budget: str = BUDGET
    job: Mapping[str, Any] = field(default_factory=dict)
    matrix: Mapping[str, Any] = field(default_factory=dict)
    estimate: Mapping[str, Any] | None = None
    tuned: str = ""

    @property
    def estimate_seconds(self) -> tuple[float, float] | None:
        """[estimate]: seconds of a start of processes, and of a run. Raises JobError that names what is wrong in it."""
        if self.estimate is None:
            return None
        if set(self.estimate) != {"start_s", "run_s"} or not all(map(is_number, self.estimate.values())):
            raise JobError("[estimate] has start_s and run_s, seconds of a start of processes and of a run")
        start, run = float(self.estimate["start_s"]), float(self.estimate["run_s"])
        if start < 0 or run < 0:
            raise JobError(f"[estimate] seconds must be at least 0, got {min(start, run):g}")
        return start, run


@dataclass(frozen=True, kw_only=True)
class Study:
    """The jobs of a study in the order in which they are run. `title`: a sentence for the report, may be empty."""

    name: str
    jobs: tuple[Job, ...]
    title: str = ""
    declared: tuple[float, float] | None = None  # [estimate]: seconds of a start of processes, and of a run
    until: float = 0.05  # half of the interval that duels go on for, a share of the throughput
    budget_s: float = 0.0  # seconds of the duels; 0: none
    notes: tuple[str, ...] = ()  # said before the study is run

    @classmethod
    def from_matrix(cls, **declared: Any) -> Study:
        """Every combination of what is declared (fields of `StudyMatrix`), validated. Raises JobError for what cannot
        work."""
        asked = StudyMatrix(**declared)
        if not asked.backends or not asked.workers:
            raise JobError("a study needs at least one engine, one number of workers and one repeat")
        engines = [parse_backend(text) for text in asked.backends]
        if len({tuple(sorted(map(str, engine.items()))) for engine in engines}) < len(engines):
            raise JobError("the same engine with the same settings is listed twice: leave one out")
        for name in ("slots", "repeat", "run", "study", "backend", "engine", "seed"):
            if name in asked.matrix or (name in asked.job and name != "seed"):
                remedy = _INSTEAD.get(name, "leave it out of [job], [matrix] and the options")
                raise JobError(f"'{name}' is decided by the study: {remedy}")
        base = with_version(Job.checked(asked.job))
        rows, notes = _rows(engines, asked, base)
        jobs: list[Job] = []
        for repeat in range(asked.repeats):
            seed = asked.seeds[repeat % len(asked.seeds)] if asked.seeds else base.get("seed", Job.seed) + repeat
            for changes in _combinations(asked.matrix):
                for count in asked.workers:
                    # Each repeat begins with the next engine.
                    turn = repeat % len(rows[count])
                    for engine in rows[count][turn:] + rows[count][:turn]:
                        values = {**base, **changes, "seed": seed, "repeat": repeat}
                        made = _job(asked.name, engine, count, values, tuple(changes))
                        if made is not None:
                            jobs.append(made)
        if not jobs:
            raise JobError("no job is left: engine 'single' runs with one worker only, add 1 to --workers")
        return cls(
            name=check_name("study", asked.name),
            jobs=tuple(jobs),
            title=asked.title,
            declared=asked.estimate_seconds,
            until=share(asked.until),
            budget_s=seconds(asked.budget, zero=True),
            notes=tuple(notes),
        )

    @classmethod
    def from_toml(cls, path: Path, **overrides: Any) -> Study:
        """The study that `path` declares, with what was asked for on the command line in place of what it says.

        Args:
            path: the study's file.
            overrides: its top-level keys, None = not given. Those in ``job`` are merged into the file's job; a field
                that [matrix] varies then has that one value.

        Raises:
            JobError: the file cannot be read, or has an unknown key; it is named.
        """
        declared = read_toml(path, missing="no such study file")
        declared.setdefault("name", path.stem)
        given = {name: value for name, value in overrides.items() if value is not None}
        job = given.pop("job", {})
        try:
            _check_keys(declared)
            if job and isinstance(declared.get("job", {}), dict):
                declared["job"] = {**declared.get("job", {}), **job}
            if isinstance(declared.get("matrix"), dict):
                declared["matrix"] = {key: values for key, values in declared["matrix"].items() if key not in job}
            return cls.from_matrix(**{**declared, **given})
        except JobError as error:
            raise JobError(f"{path}: {error}") from None

    @classmethod
    def from_record(cls, path: Path) -> Study:
        """The study that a study.json records: the same jobs in the same order, for doing it again elsewhere."""
        value = read_json(path)
        try:
            jobs = tuple(Job.from_dict(job).validate() for job in value["jobs"])
            return cls(
                name=check_name("study", value["name"]),
                jobs=jobs,
                title=value.get("title", ""),
                until=float(value.get("until", 0.05)),
                budget_s=float(value.get("budget_s", 0.0)),
            )
        except (KeyError, TypeError) as error:
            raise JobError(
                f"{path}: not a study's record ({error}): name a study.json or a study's TOML file"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """For study.json: the resolved jobs in running order."""
        goal = {"until": self.until, "budget_s": self.budget_s}
        return {"name": self.name, "title": self.title, **goal, "jobs": [job.to_dict() for job in self.jobs]}


def _check_keys(declared: Mapping[str, Any]) -> None:
    """Raises JobError for the first key that a study file does not have, with where it may belong."""
    keys = {item.name for item in fields(StudyMatrix)}
    for key in declared:
        if key in keys:
            continue
        if near := nearest(key, keys):
            hint = f"did you mean '{near}'?"
        elif field_meant := nearest(key, Job.names()):
            hint = f"a field of the job stands under [job], as {field_meant}"
        else:
            hint = f"a study has {', '.join(sorted(keys))}"
        raise JobError(f"unknown key '{key}': {hint}")


_LONGEST_NAME = 120  # of a run's folder


def _rows(
    engines: list[dict[str, Any]], asked: StudyMatrix, base: Mapping[str, Any]
) -> tuple[dict[int, list[dict[str, Any]]], list[str]]:
    """(the engines at each number of workers, tuned ones among them, and what to say of those). Raises JobError where
    the tuned file is of another job."""
    if not asked.tuned:
        return dict.fromkeys(asked.workers, engines), []
    from harness.study import tuned_file, tuned_rows

    tuned = tuned_file.read(Path(asked.tuned))
    for changes in _combinations(asked.matrix):
        tuned.check_job(with_measured({**base, **changes}))
    machine, versions = tuned_file.this_machine()
    said = tuned_rows.notes(engines, asked.workers, tuned, machine=machine, versions=versions)
    return {count: tuned_rows.with_tuned(engines, count, tuned) for count in asked.workers}, said


def _combinations(matrix: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of a matrix of job fields; one empty one for an empty matrix."""
    checked: dict[str, list[Any]] = {}
    for key, values in matrix.items():
        if key not in Job.names():
            raise JobError(f"[matrix] '{key}' is no job field: {unknown('job field', key, Job.names())}")
        if not isinstance(values, list) or not values:
            raise JobError(f"[matrix] '{key}' must be a list of values")
        checked[key] = [check_field(Job, key, value, JobError, f"[matrix] {key}") for value in values]
    for values in itertools.product(*checked.values()):
        yield dict(zip(checked, values, strict=True))


def _job(
    study: str, engine: Mapping[str, Any], workers: int, values: dict[str, Any], varied: Sequence[str]
) -> Job | None:
    """The validated job of one cell and repeat, None where the engine cannot have that many workers."""
    if engine["backend"] == "single" and workers > 1:
        return None
    nodes = values.get("nodes", Job.nodes)
    if workers % nodes:
        raise JobError(f"{workers} workers cannot be spread evenly over {nodes} nodes: use a multiple of {nodes}")
    values = {**values, **engine, "slots": workers // nodes, "study": study}
    if values.get("scaling") == "weak":  # the batch that was asked for is one worker's
        values["global_batch"] = values.get("global_batch", Job.global_batch) * workers
    job = Job.from_dict(with_measured(values)).validate()
    return job.with_(run=run_name(job, varied))


def run_name(job: Job, varied: Sequence[str] = ()) -> str:
    """Folder of a study's run: engine, settings, what the matrix varies, workers, precision, seed and repeat."""
    settings = [f"{key}-{value}" for key, value in sorted(job.engine.items()) if key != "zero_stage"]
    others = [f"{key}-{getattr(job, key)}" for key in varied if key not in ("precision", "seed")]
    engine, rest = job.default_run_name().split(f"-w{job.world_size}-", 1)
    text = "-".join([engine, *settings, *others, f"w{job.world_size}", rest])
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    if len(text) <= _LONGEST_NAME:
        return text
    # Workers, seed and repeat stand at its end; a digest stands for what is left out in the middle.
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{text[: _LONGEST_NAME - 49]}-{digest}-{text[-39:].lstrip('-')}"
