"""The report of a folder that holds duels and no trainings: report.html and the interval picture."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from harness.analysis.duels.page import page
from harness.analysis.duels.record import NAME
from harness.job.declaration import JobError
from harness.records.record_files import read_json, runs_of
from harness.report.charts.differences import forest, rows_of_duels, size
from harness.report.formats import write_page
from harness.report.plots import sheet_files

PICTURE = "differences"  # .svg


def holds_duels_alone(folder: Path) -> bool:
    """Whether `folder` is a study of duels without trainings."""
    return (folder / NAME).is_file() and not runs_of(folder)


def render_duels(folder: Path, format: str) -> str:
    """The report as text: html, md or json. Raises JobError for another format, RecordError for a damaged record."""
    if format == "html":
        from harness.report.page.duels import render

        return render(folder)
    record = read_json(folder / NAME)
    if format == "md":
        return page(record)
    if format == "json":
        return json.dumps(record["differences"], indent=1) + "\n"
    raise JobError(f"{folder}: duels alone are reported as html, md or json: use one of these as --format")


def write_duel_files(folder: Path) -> Path:
    """Writes report.html and the picture of the differences into `folder`; returns the page's path."""
    path = write_page(render_duels(folder, "html"), folder / "report.html")
    write_picture(folder)
    return path


def write_picture(folder: Path) -> list[Path]:
    """FOLDER/differences.svg, the interval picture of the folder's duels; returns its path, [] without any."""
    rows = rows_of_duels(read_json(folder / NAME))
    return sheet_files(folder, PICTURE, partial(forest, rows), size=size(rows), kinds=("svg",)) if rows else []
