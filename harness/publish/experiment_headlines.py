"""Folders of results/ that hold one measured table instead of runs: what each says, in a sentence, for the index.

The sentence is the record's own key ``headline``, which the experiment wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.analysis.verdict import LIBRARIES, machine
from harness.records.record_files import RecordError, read_json


@dataclass(frozen=True, kw_only=True)
class Headline:
    """what: what was measured. sentence: what came out. files: names in the folder, the most readable first."""

    what: str
    sentence: str
    files: tuple[str, ...]


def headline_of(folder: Path) -> Headline | None:
    """The headline of `folder` by the record that lies in it; None where there is none. Raises RecordError."""
    for name, (what, more, files) in _KINDS.items():
        if (folder / name).exists():
            record = read_json(folder / name)
            sentences = [_sentence(folder / each) for each in (name, *more) if (folder / each).exists()]
            sentence = " ".join(sentences) + _place(record.get("environment") or {})
            return Headline(what=what, sentence=sentence, files=files)
    return None


def _sentence(path: Path) -> str:
    sentence = read_json(path).get("headline")
    if not isinstance(sentence, str):
        raise RecordError(f"{path}: has no headline: python -m harness.experiments.headlines {path.parent.parent}")
    return sentence


def _place(environment: Mapping[str, Any]) -> str:
    """Where and with what it was measured, where the record says so."""
    if not environment:
        return ""
    versions = environment.get("versions") or {}
    told = [f"{name} {versions[package]}" for package, name in LIBRARIES.items() if package in versions]
    return f" ({'; '.join(part for part in (machine(dict(environment)), ', '.join(told)) if part)})"


# record -> (what was measured, records beside it that have their own headline, files for the reader)
_KINDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "parity.json": (
        "Every engine's weights after a few steps against a single process's (`harness experiment parity`)",
        (),
        ("parity.md", "parity.csv", "parity.json", "loss_scale.png", "loss_scale.svg", "loss_scale.csv"),
    ),
    "tuning.json": (
        "Each engine's settings searched for the fastest ones (`harness tune`)",
        (),
        ("tuning.md", "tuned.toml", "tuning.json"),
    ),
    "wire.json": (
        "Bytes on the wire in a step, by engine and ZeRO stage, against ring theory (`harness experiment wire`)",
        (),
        ("wire.md", "wire.csv", "wire.json"),
    ),
    "comm.json": (
        "Collectives through each library, apart from any training (`harness experiment collectives`)",
        (),
        ("comm.md", "comm.png", "comm.json"),
    ),
    "fit.json": (
        "The largest model that each engine setting trains, against the memory model (`harness experiment max-model`)",
        (),
        ("fit.md", "fit.csv", "fit.json", "fit.png", "fit.svg"),
    ),
    "faults.json": (
        "Faults planted in running jobs on virtual nodes, both engines (tests/nodes/test_faults.py)",
        (),
        ("faults.md", "faults.json"),
    ),
    "step_vs_direct.json": (
        (
            "A training step against a direct transcription of the study's way, and how fast samples are made "
            "(`python -m harness.experiments.benchmarks.step_vs_direct`, `... .data`)"
        ),
        ("data.json",),
        ("step_vs_direct.json", "data.json"),
    ),
    "scaling.json": (
        "Both engines on virtual nodes with limited links (`harness experiment scaling`, `harness experiment predict`)",
        ("prediction.json",),
        ("scaling.md", "scaling.png", "prediction.md", "prediction.png", "scaling.json", "prediction.json"),
    ),
    "duel.json": (
        "Engines side by side on the same devices, block by block (`harness experiment duel`)",
        (),
        ("report.html", "duel.md", "differences.svg", "duel.json"),
    ),
    "scores.json": (
        "How far off `harness recommend` is, for every study in this folder (`harness recommend --score`)",
        (),
        ("scores.json",),
    ),
    "overhead.json": (
        "The harness's step against a hand-written loop on the same engine (`harness experiment overhead`)",
        (),
        ("overhead.md", "overhead.json"),
    ),
}
