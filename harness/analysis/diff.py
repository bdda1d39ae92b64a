"""In words, what differs between two runs: what was asked, the place, the figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.analysis import intervals
from harness.analysis.run_figures import QUALITY_NAMES, final_loss
from harness.common import formatting
from harness.common.formatting import fixed, is_number, milliseconds, number
from harness.records import comparability
from harness.records.run_record import RecordedRun

_QUIET = ("run", "study", "schema", "repeat")


def describe_difference(a: RecordedRun, b: RecordedRun) -> list[tuple[str, list[str]]]:
    """(heading, sentences) of each part in which two runs differ; a heading with no sentence is left out."""
    parts = [
        ("Asked", _job(a, b)),
        ("Comparable?", _comparable(a, b)),
        ("Environment", _environment(a, b)),
        ("Engine as it was really used", _engine(a, b)),
        ("Outcome", _outcome(a, b)),
        ("Speed", _speed(a, b)),
        ("Losses", _losses(a, b)),
        ("Quality", _quality(a, b)),
    ]
    return [(heading, sentences) for heading, sentences in parts if sentences]


def _job(a: RecordedRun, b: RecordedRun) -> list[str]:
    keys = [key for key in dict.fromkeys([*a.job, *b.job]) if key not in _QUIET]
    return [f"{key}: {a.job.get(key)} -> {b.job.get(key)}" for key in keys if a.job.get(key) != b.job.get(key)]


def _comparable(a: RecordedRun, b: RecordedRun) -> list[str]:
    reasons = comparability.differences(a.contract, b.contract)
    if not reasons:
        return ["yes: they share everything that must be alike"]
    return [f"no: {reason}" for reason in reasons]


def _environment(a: RecordedRun, b: RecordedRun) -> list[str]:
    first, second = _flat(a.environment), _flat(b.environment)
    keys = sorted(first.keys() | second.keys())
    return [
        f"{key}: {first.get(key)} -> {second.get(key)}"
        for key in keys
        if first.get(key) != second.get(key) and not key.startswith(("ranks", "gpus.topology"))
    ]


def _engine(a: RecordedRun, b: RecordedRun) -> list[str]:
    first, second = _flat(a.result.get("engine") or {}), _flat(b.result.get("engine") or {})
    if a.backend != b.backend:
        return []  # two engines describe themselves in different words: the report shows both
    return [f"{key}: {first.get(key)} -> {second.get(key)}" for key in sorted(first.keys() | second.keys())
            if first.get(key) != second.get(key)]  # fmt: skip


def _outcome(a: RecordedRun, b: RecordedRun) -> list[str]:
    return [f"{run.name} failed: {run.reason}" for run in (a, b) if not run.ok]


def _speed(a: RecordedRun, b: RecordedRun) -> list[str]:
    times = [run.timed_steps for run in (a, b)]
    whole = [run.totals for run in (a, b)]
    if whole[0] is None or whole[1] is None:
        return []
    batches = [int(run.job.get("global_batch", 1)) for run in (a, b)]
    # Samples, not steps, are compared: the batches may differ.
    per_sample = [[time / batch for time in own] for own, batch in zip(times, batches, strict=True)]
    difference = intervals.step_difference(a.name, b.name, *per_sample)
    rates = [whole[0].samples_per_s, whole[1].samples_per_s]
    change = f"{number(rates[0])} -> {number(rates[1])} ({formatting.change(rates[1] / rates[0] - 1)})"
    steps = (
        f"steps alone {formatting.change(difference.value)}, {difference.interval()} over the steps of these two runs"
    )
    typical = [f"{milliseconds(float(np.median(own)))} ms" for own in times]
    return [
        f"samples/s: {change}; {steps}",
        f"typical step: {' -> '.join(typical)}",
        "what differs from run to run is in no figure here: repeats tell (harness compare --repeats 3)",
    ]


def _losses(a: RecordedRun, b: RecordedRun) -> list[str]:
    sentences = []
    ends = [final_loss(run) for run in (a, b)]
    if all(is_number(end) for end in ends):
        sentences.append(f"final loss (mean of 10 steps): {number(ends[0], 5)} -> {number(ends[1], 5)}")
    pairs = [
        (row["step"], row["loss"], other["loss"])
        for row, other in zip(a.steps, b.steps, strict=False)
        if row["step"] == other["step"] and is_number(row.get("loss")) and is_number(other.get("loss"))
    ]
    if pairs:
        step, largest = max(((step, abs(x - y) / max(abs(x), 1e-12)) for step, x, y in pairs), key=lambda item: item[1])
        sentences.append(
            f"largest relative difference of the loss over {len(pairs)} steps: {largest:.2e} at step {step}"
        )
    return sentences


def _quality(a: RecordedRun, b: RecordedRun) -> list[str]:
    first, second = a.result.get("evaluation") or {}, b.result.get("evaluation") or {}
    sentences = [
        f"{name}: {fixed(first.get(key), 4)} -> {fixed(second.get(key), 4)}"
        for key, name in QUALITY_NAMES.items()
        if first.get(key) != second.get(key)
    ]
    scores = [{item["id"]: item["score"] for item in run.evaluation.get("samples") or ()} for run in (a, b)]
    if scores[0] and scores[0] == scores[1]:
        sentences.append("every test sample has the same score in both")
    return sentences


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    if isinstance(value, dict):
        return {
            k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value} if prefix != "schema" else {}
