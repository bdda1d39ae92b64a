"""The rows of a study with tuned settings: each engine as it comes, and beside it with what `harness tune` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backends.tuning import spelled
from harness.study.tuned_file import TunedFile

Engine = dict[str, Any]  # {"backend": name, "engine": settings}


def with_tuned(engines: Sequence[Engine], workers: int, tuned: TunedFile) -> list[Engine]:
    """`engines` of a study at `workers`, each followed by its tuned row where there is one."""
    rows: list[Engine] = []
    for engine in engines:
        if engine not in rows:
            rows.append(engine)
        entry = tuned.found(engine["backend"], engine["engine"], workers)
        if entry is not None and entry.settings:
            row = {"backend": engine["backend"], "engine": {**engine["engine"], **entry.settings}}
            if row not in [*rows, *engines]:
                rows.append(row)
    return rows


def notes(
    engines: Sequence[Engine],
    workers: Sequence[int],
    tuned: TunedFile,
    *,
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
) -> list[str]:
    """What a reader must know of the tuned rows: engines without one and why, and a machine that is not the one on
    which the settings were found."""
    found = []
    for engine in engines:
        name = ":".join(filter(None, (engine["backend"], spelled(engine["engine"]))))
        for count in workers:
            if engine["backend"] == "single":
                continue
            entry = tuned.found(engine["backend"], engine["engine"], count)
            if entry is None:
                found.append(f"{name} was not tuned for {count} workers: it has one row there, as it comes")
            elif not entry.settings:
                found.append(f"{name} at {count} workers: nothing was shown to be faster than the engine as it comes")
    parted = tuned.departures(machine, versions)
    if parted:
        found.append(f"the tuned settings were found elsewhere and may not be the best here: {'; '.join(parted)}")
    return found
