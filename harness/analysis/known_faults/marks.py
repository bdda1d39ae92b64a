"""superseded.json: the program's own mark in a study's folder that its figures, or some of them, cannot be used.

It is written by ``harness results check --mark`` from the rules of `known_faults.measured`, never by hand: `check`
refuses a mark that says other than the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.analysis.known_faults.fault import RULES, SPEED, Fault
from harness.analysis.known_faults.measured import measured_faults
from harness.analysis.known_faults.written import written_faults
from harness.common.formatting import joined
from harness.records.record_files import read_json, runs_of, write_json
from harness.records.run_record import RecordedRun

NAME = "superseded.json"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """rules: those that the study breaks. reasons: a sentence each, without a full stop. figures: which cannot be used.
    by: the studies that measured the same again."""

    rules: tuple[str, ...]
    reasons: tuple[str, ...]
    figures: tuple[str, ...]
    by: tuple[str, ...] = ()

    @property
    def superseded(self) -> bool:
        """Whether the speed is among the figures that cannot be used: then the study leaves the README."""
        return SPEED in self.figures

    @property
    def sentence(self) -> str:
        """``Superseded: its speed cannot be used (why). Measured again in NAME.``"""
        head = "Superseded" if self.superseded else "Withdrawn in part"
        again = f" Measured again in {joined(self.by)}." if self.by else ""
        return f"{head}: its {joined(self.figures)} cannot be used ({'; '.join(self.reasons)}).{again}"


def mark_of(study: Path) -> Mark | None:
    """The mark that lies in a study's folder; None where there is none. Raises RecordError where it is damaged."""
    if not (study / NAME).is_file():
        return None
    value = read_json(study / NAME)
    faults = value["faults"]
    return Mark(
        rules=tuple(item["rule"] for item in faults),
        reasons=tuple(item["reason"] for item in faults),
        figures=tuple(value["figures"]),
        by=tuple(value["by"]),
    )


def is_superseded(study: Path) -> bool:
    """Whether a study's figures of speed are marked as not to be used."""
    mark = mark_of(study)
    return mark is not None and mark.superseded


def wanted_mark(study: Path, others: Iterable[Path] = ()) -> Mark | None:
    """The mark that the records of `study` ask for; None where no rule asks for another measurement.

    others: studies that may have measured the same again.
    """
    runs = [RecordedRun(folder) for folder in runs_of(study)]
    faults = again_faults(study, runs)
    if not faults:
        return None
    figures = dict.fromkeys(figure for fault in faults for figure in fault.figures)
    by = [other.name for other in others if other != study and _answers(other, runs)] if SPEED in figures else []
    return Mark(
        rules=tuple(fault.rule for fault in faults),
        reasons=tuple(fault.text for fault in faults),
        figures=tuple(figures),
        by=tuple(sorted(by)),
    )


def again_faults(study: Path, runs: Sequence[RecordedRun]) -> list[Fault]:
    """The faults that only another measurement mends."""
    return measured_faults(runs) + [fault for fault in written_faults(study, runs) if fault.again]


def write_mark(study: Path, others: Iterable[Path] = ()) -> Mark | None:
    """Writes the mark of `study`, or takes it away where none is needed; returns it."""
    mark = wanted_mark(study, others)
    if mark is None:
        (study / NAME).unlink(missing_ok=True)
        return None
    faults = [
        {"rule": rule, "reason": reason, "figures": list(RULES[rule].figures)}
        for rule, reason in zip(mark.rules, mark.reasons, strict=True)
    ]
    write_json(study / NAME, {"figures": list(mark.figures), "faults": faults, "by": list(mark.by)})
    return mark


def _answers(other: Path, runs: Sequence[RecordedRun]) -> bool:
    """Whether another study holds what these runs measured, free of faults of speed."""
    asked = {_cell(run.job, run.workers) for run in runs if run.ok}
    if (other / "duel.json").is_file():
        record = read_json(other / "duel.json")
        jobs = [{**record["job"], **_engine(item)} for item in record["contenders"]]
        there = {_cell(job, int(job["workers"])) for job in jobs}
        return asked <= there
    theirs = [RecordedRun(folder) for folder in runs_of(other)]
    if not asked <= {_cell(run.job, run.workers) for run in theirs if run.ok}:
        return False
    return not any(SPEED in fault.figures for fault in measured_faults(theirs))


def _engine(contender: Mapping[str, Any]) -> dict[str, Any]:
    stage = {} if contender["zero_stage"] is None else {"zero_stage": contender["zero_stage"]}
    engine = {**stage, **dict(contender["settings"])}
    return {"backend": contender["backend"], "engine": engine, "workers": contender["workers"]}


def _cell(job: Mapping[str, Any], workers: int) -> tuple[Any, ...]:
    """What makes two measurements the same question."""
    names = ("preset", "version", "scaling", "precision", "precision_mode", "backend")
    engine = tuple(sorted((name, str(value)) for name, value in (job.get("engine") or {}).items()))
    weak = job.get("scaling") == "weak"
    batch = "per worker" if weak else job.get("global_batch")
    return (*(job.get(name) for name in names), engine, bool(job.get("compile")), batch, workers)
