"""Folders of results/ that hold one measured table instead of runs: what each says, in a sentence, for the index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.analysis.verdict import LIBRARIES, machine
from harness.common.formatting import plural
from harness.records.record_files import read_json


@dataclass(frozen=True, kw_only=True)
class Headline:
    """what: what was measured. sentence: what came out. files: names in the folder, the most readable first."""

    what: str
    sentence: str
    files: tuple[str, ...]


def headline_of(folder: Path) -> Headline | None:
    """The headline of `folder` by the record that lies in it; None where there is none. Raises RecordError."""
    for name, (make, what, files) in _KINDS.items():
        if (folder / name).exists():
            record = read_json(folder / name)
            sentence = make(record, folder) + _place(record.get("environment") or {})
            return Headline(what=what, sentence=sentence, files=files)
    return None


def _place(environment: Mapping[str, Any]) -> str:
    """Where and with what it was measured, where the record says so."""
    if not environment:
        return ""
    versions = environment.get("versions") or {}
    told = [f"{name} {versions[package]}" for package, name in LIBRARIES.items() if package in versions]
    return f" ({'; '.join(part for part in (machine(dict(environment)), ', '.join(told)) if part)})"


def _parity(record: Mapping[str, Any], folder: Path) -> str:
    cells = record["cells"]
    judged = [cell for cell in cells if cell["precision_mode"] == "matched" and cell["status"] in ("equal", "differs")]
    equal = sum(cell["status"] == "equal" for cell in judged)
    odd = [cell for cell in judged if cell["status"] == "differs"]
    known = sum(bool(cell.get("explained")) for cell in odd)
    text = f"{equal} of {len(judged)} judged cells equal the single process"
    text += f"; of the other {len(odd)}, {known} have their cause shown" if odd else ""
    others = len(cells) - len(judged)
    return text + (f"; {plural(others, 'cell')} of native precision or refused" if others else "") + "."


def _wire(record: Mapping[str, Any], folder: Path) -> str:
    from harness.experiments.wire.run import headline

    return headline(record["rows"])


def _fit(record: Mapping[str, Any], folder: Path) -> str:
    from harness.experiments.max_model.report import headline

    return headline(record)


def _comm(record: Mapping[str, Any], folder: Path) -> str:
    from harness.experiments.collectives.record import headline

    return headline(record)


def _overhead(record: Mapping[str, Any], folder: Path) -> str:
    from harness.experiments.overhead.record import headline

    return headline(record["rows"])


def _duel(record: Mapping[str, Any], folder: Path) -> str:
    from harness.analysis.duels.page import headline

    return headline(record)


def _tuning(record: Mapping[str, Any], folder: Path) -> str:
    from harness.experiments.tuning.record import headline

    return headline(record)


def _faults(record: Mapping[str, Any], folder: Path) -> str:
    rows = record["rows"]
    ended = [row["seconds"] for row in rows if row["seconds"] is not None]
    went_on = len(rows) - len(ended)
    return (
        f"{plural(len(rows), 'fault')} planted: {len(ended)} jobs ended with the right reason within "
        f"{max(ended):.0f} s, {went_on} rightly went on."
    )


def _benchmarks(record: Mapping[str, Any], folder: Path) -> str:
    faster = record["speedup"]
    text = (
        f"A step of `{record['preset']}` is {faster['median']:.2f} times as fast as the direct transcription "
        f"({faster['low']:.2f} to {faster['high']:.2f} over {record['repeats']} rounds, interleaved)"
    )
    if (folder / "data.json").exists():
        rates = read_json(folder / "data.json")["samples_per_s"]
        text += f"; training samples a second and core: {', '.join(f'{name} {rates[name]:.0f}' for name in rates)}"
    return f"{text}."


def _scaling(record: Mapping[str, Any], folder: Path) -> str:
    from harness.experiments.virtual_scaling.report import caption, headline

    text = headline(record)
    if (folder / "prediction.json").exists():
        error = read_json(folder / "prediction.json")["median_error"]
        text += f" `harness experiment predict` is {error:.1%} off in the median on cells held back."
    return f"{text} {caption(record)}"


_Kind = tuple[Callable[[Mapping[str, Any], Path], str], str, tuple[str, ...]]
_KINDS: dict[str, _Kind] = {
    "parity.json": (
        _parity,
        "Every engine's weights after a few steps against a single process's (`harness experiment parity`)",
        ("parity.md", "parity.csv", "parity.json", "loss_scale.png", "loss_scale.svg", "loss_scale.csv"),
    ),
    "tuning.json": (
        _tuning,
        "Each engine's settings searched for the fastest ones (`harness tune`)",
        ("tuning.md", "tuned.toml", "tuning.json"),
    ),
    "wire.json": (
        _wire,
        "Bytes on the wire in a step, by engine and ZeRO stage, against ring theory (`harness experiment wire`)",
        ("wire.md", "wire.csv", "wire.json"),
    ),
    "comm.json": (
        _comm,
        "Collectives through each library, apart from any training (`harness experiment collectives`)",
        ("comm.md", "comm.png", "comm.json"),
    ),
    "fit.json": (
        _fit,
        "The largest model that each engine setting trains, against the memory model (`harness experiment max-model`)",
        ("fit.md", "fit.csv", "fit.json", "fit.png", "fit.svg"),
    ),
    "faults.json": (
        _faults,
        "Faults planted in running jobs on virtual nodes, both engines (tests/nodes/test_faults.py)",
        ("faults.md", "faults.json"),
    ),
    "step_vs_direct.json": (
        _benchmarks,
        (
            "A training step against a direct transcription of the study's way, and how fast samples are made "
            "(`python -m harness.experiments.benchmarks.step_vs_direct`, `... .data`)"
        ),
        ("step_vs_direct.json", "data.json"),
    ),
    "scaling.json": (
        _scaling,
        "Both engines on virtual nodes with limited links (`harness experiment scaling`, `harness experiment predict`)",
        ("scaling.md", "scaling.png", "prediction.md", "prediction.png", "scaling.json", "prediction.json"),
    ),
    "duel.json": (
        _duel,
        "Engines side by side on the same devices, block by block (`harness experiment duel`)",
        ("duel.md", "duel.json"),
    ),
    "overhead.json": (
        _overhead,
        "The harness's step against a hand-written loop on the same engine (`harness experiment overhead`)",
        ("overhead.md", "overhead.json"),
    ),
}
