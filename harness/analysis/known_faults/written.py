"""Faults that lie in what was written of a study: comparison.csv, tables and reports. Each is mended by writing the
file again with this version, or, where a statement stands on nothing, by taking it out."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.analysis.intervals import ALIKE
from harness.analysis.known_faults.fault import Fault
from harness.analysis.known_faults.measured import starts_with
from harness.analysis.mfu import withdrawn
from harness.common.formatting import joined
from harness.records import step_metrics
from harness.records.method import method_of
from harness.records.record_files import read_json
from harness.records.run_record import RecordedRun

CSV = "comparison.csv"
TUNING = ("tuned.toml", "tuning.json")  # records of `harness tune`
_SAME = 1e-6  # relative

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_EQUAL = re.compile(
    rf"\b(?:No difference in speed|Alike in speed)\b[^()]*\((?:[^()]*, )?95 % CI {_NUMBER} to {_NUMBER} %"
)
_EQUAL_DUEL = re.compile(rf"\(95 % CI {_NUMBER} to {_NUMBER} %, \d+ duels?\): alike\b")
_ONE_PAIR = re.compile(
    r"\b(?:faster|slower|times as many)\b[^.()]*\([^()]*(?:steps of one run each|\b1 interleaved pair)"
    r"|one duel(?:, 1 duel)?\): (?:faster|slower)\b"
)
_BEST = re.compile(r"\b(?:best|optimal|tuned) settings?\b|\bat (?:its|their) best\b", re.IGNORECASE)


def written_faults(study: Path, runs: Sequence[RecordedRun]) -> list[Fault]:
    """The faults of the files in `study` that were made of its `runs`."""
    found: list[Fault] = []
    if (study / CSV).is_file():
        with (study / CSV).open(newline="") as file:
            rows = list(csv.DictReader(file))
        for rule in _CSV_RULES:
            found += [
                Fault(rule=name, where=f"{study.name}/{CSV}", text=text)
                for name, text in rule(rows, [run for run in runs if run.ok])
            ]
    for path in sorted([*study.glob("*.md"), *study.glob("*.html")]):
        found += [Fault(rule=name, where=f"{study.name}/{path.name}", text=text) for name, text in _statements(path)]
    return found + _duel_faults(study) + _parity_faults(study)


_Found = Iterator[tuple[str, str]]


def _medians_of_rates(rows: Sequence[Mapping[str, str]], runs: Sequence[RecordedRun]) -> _Found:
    """samples_per_s must be total samples over total seconds, not the median of the steps' own rates."""
    odd = []
    for row in rows:
        own = _runs_of(row, runs)
        written = _value(row, "samples_per_s")
        if written is None or not own:
            continue
        warmup = int(own[0].job.get("timing_warmup", 0))
        timed = [step_metrics.timed_rows(run.steps, warmup) for run in own]
        medians = [np.median([step["samples"] / step["step_s"] for step in steps]) for steps in timed]
        wholes = [step_metrics.totals(run.steps, warmup) for run in own]
        rate = float(np.exp(np.mean([np.log(whole.samples_per_s) for whole in wholes if whole is not None])))
        if _near(written, float(np.median(medians))) and not _near(written, rate):
            odd.append(f"{_name(row)}: {written:.1f} where all samples over all seconds give {rate:.1f}")
    if odd:
        yield "median-of-rates", f"samples_per_s is the median of the steps' rates ({'; '.join(odd[:2])})"


def _tails(rows: Sequence[Mapping[str, str]], runs: Sequence[RecordedRun]) -> _Found:
    """No tail of a few steps."""
    for column in rows[0] if rows else ():
        if (tail := re.search(r"_p(9\d)$", column)) is None:
            continue
        enough = step_metrics.steps_for_percentile(float(tail[1]))
        few = [row for row in rows if _value(row, column) is not None and _fewest(row, runs) < enough]
        if few:
            text = f"{column} of {_name(few[0])} stands on {_fewest(few[0], runs)} timed steps, it needs {enough}"
            yield "tail-of-few-steps", text


def _baselines(rows: Sequence[Mapping[str, str]], runs: Sequence[RecordedRun]) -> _Found:
    """An efficiency has an interval, and a baseline in each repeat that it stands on; a common one is plain torch."""
    bounds = re.compile(r"_(?:low|high|half|half_width|baseline|repeats|pairs)$")
    columns = [name for name in (rows[0] if rows else {}) if "efficiency" in name and not bounds.search(name)]
    for column in columns:
        for row in rows:
            value = _value(row, column)
            if value is None or int(row["workers"]) < 2:
                continue
            why = _baseline_fault(row, column, runs)
            if why:
                yield "unlike-baseline", f"{column} of {_name(row)} {why}"
                break


def _baseline_fault(row: Mapping[str, str], column: str, runs: Sequence[RecordedRun]) -> str:
    """Why the efficiency of a row cannot be told, "" where it can."""
    own = _runs_of(row, runs)
    low, high, pairs = (_value(row, f"{column}_{end}") for end in ("low", "high", "pairs"))
    if low is None or high is None:
        return "has no interval"
    ones = [run for run in runs if run.workers == 1 and run.ok]
    common = column == "efficiency" and pairs is not None  # older files hold no common baseline
    turns = {run.turn for run in ones if (run.backend == "single" if common else run.label == row["label"])}
    if not turns:
        return f"has no one-worker run of {'plain torch' if common else 'the engine'} behind it"
    alone = [run.name for run in own if run.turn not in turns]
    if len(own) - len(alone) < (pairs or len(own)):
        return f"takes the one-worker run of another repeat for {joined(alone[:2])}"
    return "stands on one repeat" if len(own) - len(alone) < 2 else ""


def _longest_sample(rows: Sequence[Mapping[str, str]], runs: Sequence[RecordedRun]) -> _Found:
    """MFU by FLOPs that were counted for the longest sample: of records that hold no other count."""
    for column in [name for name in (rows[0] if rows else {}) if name == "mfu" or name.endswith("_mfu")]:
        printed = [row for row in rows if _value(row, column) is not None]
        odd = [row for row in printed if any(withdrawn(run.result) for run in _runs_of(row, runs))]
        if odd:
            yield "mfu-of-longest-sample", f"{column} of {_name(odd[0])} charges every sample the longest one's FLOPs"


_CSV_RULES: tuple[Callable[[Sequence[Mapping[str, str]], Sequence[RecordedRun]], _Found], ...] = (
    _medians_of_rates,
    _tails,
    _baselines,
    _longest_sample,
)


def _statements(path: Path) -> _Found:
    """What the text of a report or table claims."""
    text = path.read_text(errors="replace")
    if path.suffix == ".html":
        text = html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(script|style|svg)\b.*?</\1>", " ", text)))
    for pattern in (_EQUAL, _EQUAL_DUEL):
        for match in pattern.finditer(text):
            if not within_margin(float(match[1]) / 100, float(match[2]) / 100):
                yield (
                    "equal-without-margin",
                    f"'{_short(match[0])}' reads as equality, its interval leaves +-{ALIKE:.0%}",
                )
                break
    if alone := _ONE_PAIR.search(text):
        yield "one-pair-verdict", f"'{_short(alone[0])}' is decided by one pair"
    if (best := _BEST.search(text)) and not any((path.parent / name).exists() for name in TUNING):
        around = text[max(0, best.start() - 40) : best.end() + 20]
        yield "best-without-tuning", f"'{_short(around)}' has no tuning record behind it"


def _duel_faults(study: Path) -> list[Fault]:
    """The verdicts of duel.json against its own intervals."""
    path = study / "duel.json"
    if not path.is_file():
        return []
    found = []
    for item in read_json(path)["differences"]:
        pair, where = f"{item['b']} against {item['a']}", f"{study.name}/duel.json"
        word, low, high = str(item["verdict"]).split(",")[0], item["low"], item["high"]
        if word in ("faster", "slower") and (item["duels"] < 2 or low is None or high is None):
            found.append(Fault(rule="one-pair-verdict", where=where, text=f"{pair} is called {word} by one duel"))
        elif word == "alike" and (low is None or high is None or not within_margin(low, high)):
            text = f"{pair} is called alike, its interval leaves +-{ALIKE:.0%}"
            found.append(Fault(rule="equal-without-margin", where=where, text=text))
    return found


def _parity_faults(study: Path) -> list[Fault]:
    """Before method 2, parity trained all cells of Horovod with as many workers in the same processes."""
    path = study / "parity.json"
    if not path.is_file():
        return []
    record = read_json(path)
    if method_of(record.get("environment") or {}) >= 2:
        return []
    by_workers: dict[int, list[Any]] = {}
    for cell in record["cells"]:
        if cell["backend"] == "horovod":
            by_workers.setdefault(cell["workers"], []).append(starts_with(cell.get("settings")))
    if any(setting != settings[0] for settings in by_workers.values() for setting in settings):
        text = "cells of Horovod with other start-time settings were trained in the processes of the first one"
        return [Fault(rule="settings-of-first-horovod", where=f"{study.name}/parity.json", text=text)]
    return []


def within_margin(low: float, high: float) -> bool:
    """Whether a relative interval lies within a factor of 1 + ALIKE, from whichever side it is told (to a printed
    digit)."""
    return (1 + ALIKE) * (1 + low) > 1 - 5e-4 and high < ALIKE + 5e-4


def _runs_of(row: Mapping[str, str], runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """The runs that a row of comparison.csv stands for."""
    same = [run for run in runs if run.label == row["label"] and run.workers == int(row["workers"])]
    for name in ("scaling", "precision"):
        same = [run for run in same if not row.get(name) or run.job.get(name) == row[name]]
    return same if row.get("group") in ("0", None) else []


def _fewest(row: Mapping[str, str], runs: Sequence[RecordedRun]) -> int:
    return min((len(run.timed_steps) for run in _runs_of(row, runs)), default=10**6)


def _value(row: Mapping[str, str], name: str) -> float | None:
    text = row.get(name) or ""
    return float(text) if text else None


def _name(row: Mapping[str, str]) -> str:
    return f"{row['label']} at {row['workers']}"


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= _SAME * max(abs(a), abs(b))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 90 else f"{text[:60]} ... {text[-26:]}"
