"""Writes the key ``headline`` anew into the records of experiments: what each says in a sentence.

Every experiment writes it with its record. ``python -m harness.experiments.headlines results`` is for after a change of
the sentences, and for records that are older than the key.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.common.formatting import plural
from harness.records.record_files import read_json, write_json

# file -> (module of the experiment that writes it, the part of the record that its `headline` takes, "" = all of it)
_SENTENCES = {
    "comm.json": ("harness.experiments.collectives.record", ""),
    "data.json": ("harness.experiments.benchmarks.data", ""),
    "duel.json": ("harness.analysis.duels.page", ""),
    "faults.json": (__name__, "rows"),
    "fit.json": ("harness.experiments.max_model.report", ""),
    "overhead.json": ("harness.experiments.overhead.record", "rows"),
    "parity.json": ("harness.experiments.parity.report", "cells"),
    "prediction.json": ("harness.experiments.prediction.run", ""),
    "scores.json": ("harness.experiments.recommend.scores_record", ""),
    "scaling.json": ("harness.experiments.virtual_scaling.report", ""),
    "step_vs_direct.json": ("harness.experiments.benchmarks.step_vs_direct", ""),
    "tuning.json": ("harness.experiments.tuning.record", ""),
    "wire.json": ("harness.experiments.wire.run", "rows"),
}


def render(results: Path) -> list[Path]:
    """Writes the headline into every record of an experiment below `results`; returns those that changed."""
    changed = []
    for path in sorted(results.glob("*/*.json")):
        if path.name not in _SENTENCES:
            continue
        module, part = _SENTENCES[path.name]
        record = read_json(path)
        sentence = importlib.import_module(module).headline(record[part] if part else record)
        if record.get("headline") != sentence:
            write_json(path, {**record, "headline": sentence})
            changed.append(path)
    return changed


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of faults.json (tests/nodes/fault_table.py): how many faults were planted, and how the jobs ended."""
    ended = [row["seconds"] for row in rows if row["seconds"] is not None]
    went_on = len(rows) - len(ended)
    return (
        f"{plural(len(rows), 'fault')} planted: {len(ended)} jobs ended with the right reason within "
        f"{max(ended, default=0):.0f} s, {went_on} rightly went on."
    )


if __name__ == "__main__":
    for written in render(Path(sys.argv[1])):
        print(written)
