"""What one setting changes inside an engine: the same engine with and without it, paired by repeat.

A study often varies something that must not stand on one curve (compiled blocks, fp16 for bf16, half the bytes on the
wire), or that no second engine has (a ZeRO stage, Horovod's fusion). Its question is then what that wins, engine by
engine. Each setting of an engine is compared with the earlier one that it differs least from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.analysis import intervals
from harness.common import formatting
from harness.common.formatting import is_number, joined, plural
from harness.records.run_record import RecordedRun, label_of

# Of the contract: what the machine or the seed decides, what follows from other settings, and what makes another job.
_MUST_AGREE = ("nodes", "scaling", "batch_per_worker", "global_batch", "cpu", "cores", "gpu", "driver", "device")
_NOT_SETTINGS = frozenset({*_MUST_AGREE, "seed", "workers", "wire_dtype", "worlds"})
_NOT_SETTINGS_BEGIN = ("hash.", "version.")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One setting of an engine beside another at `workers` workers on `nodes` nodes.

    engine: label of the engine's plainest setting, without what is compared. setting: what is set otherwise than there,
    as for --set; against: what it is compared with, "" for the defaults. speed: relative difference of samples/s.
    memory: share more of peak memory, loss: difference of the final loss; None where not recorded. group: of the
    comparison, across: that of what it is compared with is another, so the two must not share a curve. labels: of the
    two engines as reports call them, what it is compared with first.
    """

    engine: str
    workers: int
    nodes: int
    setting: str
    against: str
    speed: intervals.Difference
    memory: float | None
    loss: float | None
    group: int
    across: bool
    labels: tuple[str, str]

    @property
    def title(self) -> str:
        """``compile=true``, ``zero_stage=3 against zero_stage=1``."""
        return self.setting + (f" against {self.against}" if self.against else "")


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Runs of one engine with one setting at one number of workers by `RecordedRun.turn`, and their rows of the
    frame."""

    settings: Mapping[str, Any]
    runs: dict[tuple[str, int, int], RecordedRun]
    rows: dict[tuple[str, int, int], Any]
    group: int


def variants(runs: Sequence[RecordedRun], rows: Sequence[Any]) -> list[Variant]:
    """All of a study's. rows: of the comparison's frame, one a run (named tuples with group, samples_per_s,
    peak_memory_mib and final_loss); runs that failed are left out."""
    places: dict[tuple[Any, ...], dict[str, list[_Setting]]] = {}  # by number of workers and `_MUST_AGREE`, then engine
    for run, row in zip(runs, rows, strict=True):
        if row.group < 0:
            continue
        own = places.setdefault((run.workers, *map(run.contract.get, _MUST_AGREE)), {}).setdefault(run.backend, [])
        settings = _settings(run)
        cell = next((cell for cell in own if cell.settings == settings), None)
        if cell is None:
            cell = _Setting(settings=settings, runs={}, rows={}, group=int(row.group))
            own.append(cell)
        cell.runs[run.turn], cell.rows[run.turn] = run, row
    found: list[Variant] = []
    for (workers, nodes, *_), engines in sorted(places.items(), key=lambda place: place[0][0]):
        ordered = [_plainest_first(own) for own in engines.values()]
        cells = [cell for own in ordered for cell in own]
        names = {id(cell): str(position) for position, cell in enumerate(cells)}
        speeds = intervals.Speeds(
            {names[id(cell)]: _rates(cell) for cell in cells},
            len(cells) - len(ordered),
        )
        for own in ordered:
            for reference, cell in _references(own):
                speed = speeds.difference(names[id(reference)], names[id(cell)])
                if speed is not None:
                    found.append(_variant(own[0], reference, cell, (workers, int(nodes or 1)), speed))
    return found


def sentences(found: Sequence[Variant], most: int = 4) -> list[str]:
    """A sentence a setting (and number of nodes) at the most workers where it was measured, those that no curve
    compares first."""
    together: dict[tuple[str, int], list[Variant]] = {}
    for variant in sorted(found, key=lambda variant: not variant.across):
        together.setdefault((variant.title, variant.nodes), []).append(variant)
    several = len({nodes for _, nodes in together}) > 1
    return [
        _sentence(title + (f" on {plural(nodes, 'node')}" if several else ""), members)
        for (title, nodes), members in together.items()
    ][:most]


def _sentence(title: str, members: Sequence[Variant]) -> str:
    """``compile=true at 1 worker: Horovod +20.6 % samples/s (95 % CI 20.1 to 21.1 %, memory -8 %); 3 interleaved
    pairs.`` Engines of which it is undecided stand behind."""
    workers = max(variant.workers for variant in members)
    here = [variant for variant in members if variant.workers == workers]
    told, unsure = [], []
    for variant in here:
        change = f"{variant.engine} {formatting.change(variant.speed.value)}"
        if variant.speed.undecided:
            unsure.append(f"{change}, {variant.speed.interval()}")
            continue
        memory = "" if variant.memory is None else f", memory {formatting.change(variant.memory, 0)}"
        alike = ", alike" if variant.speed.alike else ""
        told.append(f"{change} samples/s ({variant.speed.interval()}{alike}{memory})")
    start = f"{title} at {plural(workers, 'worker')}"
    pairs = min(variant.speed.pairs for variant in here)
    fought = here[0].speed.duels
    basis = f"{pairs} interleaved repeats" if pairs > 1 and not fought else here[0].speed.basis()
    if not told:
        return f"{start}: undecided what it changes ({joined(unsure)}; {basis})."
    rest = f"; undecided: {joined(unsure)}" if unsure else ""
    return f"{start}: {joined(told)}{rest}; {basis}."


def _settings(run: RecordedRun) -> dict[str, Any]:
    """What a user set of the job and of the engine, flat."""
    contract = run.contract
    kept = {
        key: value
        for key, value in contract.items()
        if key not in _NOT_SETTINGS and not key.startswith(_NOT_SETTINGS_BEGIN)
    }
    return kept | {f"engine.{key}": str(value) for key, value in (run.job.get("engine") or {}).items()}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """The settings of `new` that are not those of `old`, as text."""
    names = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    return {key: _value(new.get(key), old.get(key)) for key in names}


def _plainest_first(cells: Sequence[_Setting]) -> list[_Setting]:
    """The cell that sets least (of several the one that ran first), then the others by how much they change of it."""

    def begun(cell: _Setting) -> str:
        return min(str(run.result.get("started") or "") for run in cell.runs.values())

    plainest = min(cells, key=lambda cell: (len(cell.settings), begun(cell)))
    return sorted(cells, key=lambda cell: (len(_changed(plainest.settings, cell.settings)), begun(cell)))


def _references(cells: Sequence[_Setting]) -> Iterator[tuple[_Setting, _Setting]]:
    """Every cell but the first beside the earlier one of which it changes least."""
    for position, cell in enumerate(cells[1:], start=1):
        yield min(cells[:position], key=lambda earlier: len(_changed(earlier.settings, cell.settings))), cell


def _rates(cell: _Setting) -> dict[tuple[str, int, int], float]:
    """Samples/s by turn."""
    return {key: row.samples_per_s for key, row in cell.rows.items() if is_number(row.samples_per_s)}


def _variant(
    first: _Setting, reference: _Setting, cell: _Setting, where: tuple[int, int], speed: intervals.Difference
) -> Variant:
    shared = sorted(reference.runs.keys() & cell.runs.keys())
    memory, more_memory = (_mean(side, shared, "peak_memory_mib") for side in (reference, cell))
    loss, other_loss = (_mean(side, shared, "final_loss") for side in (reference, cell))
    changed = _changed(first.settings, cell.settings)
    if reference is first:  # what it sets in the place of another choice, not of a default
        against = {name: str(first.settings[name]) for name in changed if first.settings.get(name) not in (None, False)}
    else:
        against = _changed(first.settings, reference.settings)
    return Variant(
        engine=_label_without(next(iter(first.runs.values())), changed),
        workers=where[0],
        nodes=where[1],
        setting=_text(changed),
        against=_text(against),
        speed=speed,
        memory=None if memory is None or more_memory is None else more_memory / memory - 1.0,
        loss=None if loss is None or other_loss is None else other_loss - loss,
        group=cell.group,
        across=reference.group != cell.group,
        labels=(next(iter(reference.runs.values())).label, next(iter(cell.runs.values())).label),
    )


def _label_without(run: RecordedRun, changed: Mapping[str, str]) -> str:
    """The engine with those of its settings that are not the ones compared: DeepSpeed, where ZeRO stages are."""
    if not any(f"engine.{name}" in changed for name in run.job.get("engine") or {}):
        return run.label
    kept = {name: value for name, value in run.job["engine"].items() if f"engine.{name}" not in changed}
    return label_of({**run.job, "engine": kept})


def _mean(cell: _Setting, keys: Sequence[tuple[str, int, int]], name: str) -> float | None:
    """Mean over those repeats that have the figure."""
    values = [getattr(cell.rows[key], name) for key in keys]
    values = [value for value in values if is_number(value)]
    return sum(values) / len(values) if values else None


def _text(changed: Mapping[str, str]) -> str:
    """``compile=true, precision=fp16``, as one would give it."""
    return ", ".join(f"{key.removeprefix('engine.')}={value}" for key, value in changed.items())


def _value(value: Any, before: Any) -> str:
    if value is None:  # the contract leaves out what is off, a job what is the engine's default
        return "false" if isinstance(before, bool) else "default"
    return str(value).lower() if isinstance(value, bool) else str(value)
