"""A study, summarized: one row a run, one row a cell (engine and setting x workers), and which differences are real."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis import intervals
from harness.analysis.cells import cells_of, rates_of
from harness.analysis.duels.record import NAME as DUELS
from harness.analysis.run_figures import HEADLINE, QUALITY, run_row
from harness.analysis.setting_effects import Variant, variants
from harness.common.formatting import is_number
from harness.records import comparability as contract
from harness.records.record_files import read_json
from harness.records.run_record import RecordedRun, load_runs, sound_runs


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs side by side.

    frame: one row a run, failed ones too (`run_row`). cells: one row per group, label and number of workers (`cells`).
    comparability: which rows of the ok runs may share a curve; group 0 is the main one, failed runs have group -1.
    speed, quality: paired differences inside a group at equal numbers of workers. variants: what a setting changes
    inside an engine. left_out: runs that cannot be read, one line each.
    """

    title: str
    runs: Sequence[RecordedRun]
    frame: pd.DataFrame
    cells: pd.DataFrame
    comparability: contract.Comparability
    speed: Sequence[PairedFigure] = field(default_factory=tuple)
    quality: Sequence[PairedFigure] = field(default_factory=tuple)
    variants: Sequence[Variant] = field(default_factory=tuple)
    left_out: Sequence[str] = field(default_factory=tuple)

    @cached_property
    def main(self) -> pd.DataFrame:
        """The cells of the main group."""
        return self.cells[self.cells["group"] == 0] if len(self.cells) else self.cells

    @cached_property
    def duels(self) -> dict[str, Any] | None:
        """The record of the study's duels (`harness.analysis.duels.record`); None for runs of several studies, for a
        single run, and where none were fought."""
        folders = {run.folder.parent for run in self.runs}
        file = folders.pop() / DUELS if len(folders) == 1 and len(self.runs) > 1 else None
        record = read_json(file) if file is not None and file.exists() else None
        return record if record and record["differences"] else None

    @property
    def labels(self) -> list[str]:
        """Engines with their settings, those of the main group first, in the order of their first run."""
        main = self.frame[self.frame["group"] == 0]["label"]
        return list(dict.fromkeys([*main, *self.frame["label"]]))

    def run(self, name: str) -> RecordedRun:
        return next(run for run in self.runs if run.name == name)

    def members(self, group: int) -> list[RecordedRun]:
        """The ok runs of a group."""
        return [run for run, number in zip(self.runs, self.frame["group"], strict=True) if number == group]

    def csv(self) -> str:
        """comparison.csv: the cells, full precision, one line each."""
        return str(self.cells.to_csv(index=False, lineterminator="\n", float_format="%.10g"))


@dataclass(frozen=True, kw_only=True)
class PairedFigure:
    """A paired difference of one figure between two labels of a group at `workers` workers."""

    group: int
    workers: int
    figure: str
    difference: intervals.Difference


def summarize_study(study: Path) -> Comparison:
    """The comparison of all runs of a study folder. Raises `records.RecordError` where there is none."""
    return summarize_runs(load_runs([study]), title=study.resolve().name)


def summarize_runs(runs: Sequence[RecordedRun], *, title: str) -> Comparison:
    """The comparison of any runs, of one study or of several. A run whose files are damaged is left out and named;
    raises `records.RecordError` where no other is there."""
    runs, left_out = sound_runs(runs)
    rows = [run_row(run) for run in runs]
    good = [position for position, run in enumerate(runs) if run.ok]
    comparability = contract.comparable([runs[position].contract for position in good])
    for row in rows:
        row["group"] = -1
    for number, members in enumerate(comparability.groups):
        for member in members:
            rows[good[member]]["group"] = number
    frame = pd.DataFrame(rows)
    cells = pd.DataFrame(cells_of(frame))
    speed, quality = _pairs(runs, frame)
    return Comparison(
        title=title,
        runs=tuple(runs),
        frame=frame,
        cells=cells,
        comparability=comparability,
        speed=tuple(speed),
        quality=tuple(quality),
        variants=tuple(variants(runs, list(frame.itertuples()))),
        left_out=tuple(left_out),
    )


def _pairs(runs: Sequence[RecordedRun], frame: pd.DataFrame) -> tuple[list[PairedFigure], list[PairedFigure]]:
    """Differences of speed (inside a study: runs of two studies did not take turns) and of quality between every two
    labels at equal workers, inside each group."""
    speed: list[PairedFigure] = []
    quality: list[PairedFigure] = []
    good = frame[frame["group"] >= 0]
    for (group, workers), cell in good.groupby(["group", "workers"], sort=True):
        where = {"group": int(group), "workers": int(workers)}
        own = {label: cell[cell["label"] == label] for label in dict.fromkeys(cell["label"])}
        many = len(own) * (len(own) - 1) // 2
        speeds = intervals.Speeds({label: rates_of(rows) for label, rows in own.items()}, many)
        for a, b in itertools.combinations(own, 2):
            if (difference := speeds.difference(a, b)) is not None:
                speed.append(PairedFigure(figure="samples_per_s", difference=difference, **where))
            quality += [
                PairedFigure(figure=name, difference=difference, **where)
                for name, difference in _quality(a, b, own, many)
            ]
    return speed, quality


def _quality(a: str, b: str, rows: dict[str, pd.DataFrame], many: int) -> Iterator[tuple[str, intervals.Difference]]:
    """(figure, `b` minus `a`) of the final loss and each quality figure that both have, paired by repeat and seed."""
    first, second = ({(row.repeat, row.seed): row for row in rows[label].itertuples()} for label in (a, b))
    shared = sorted(first.keys() & second.keys())
    for name in ("final_loss", *QUALITY):
        both = [(getattr(first[key], name), getattr(second[key], name)) for key in shared]
        figures = [(x, y) for x, y in both if is_number(x) and is_number(y)]
        if figures:
            yield name, intervals.plain_difference(a, b, figures, comparisons=many * len(HEADLINE))
