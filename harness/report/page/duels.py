"""The page of a folder that holds duels and no trainings (`harness experiment duel`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.analysis.duels import page as texts
from harness.analysis.duels import sentences
from harness.analysis.duels.record import NAME, label, remarks, told_by
from harness.common.text_table import without_empty_columns
from harness.records.record_files import read_json
from harness.report.charts.differences import efficiency_rows, rows_of_duels
from harness.report.notes import HEADING, notes_in
from harness.report.page import figures, layout, tables


def render(folder: Path) -> str:
    """The page of the duels in `folder` as text. Raises RecordError where the record cannot be read."""
    record = read_json(folder / NAME)
    told = told_by(record)
    engines = {side["name"]: told[side["name"]]["engine"] for side in record["contenders"] if side["name"] in told}
    context: dict[str, Any] = {
        "title": folder.resolve().name,
        "setting": texts.setting(record),
        "facts": f"Engines: {', '.join(dict.fromkeys(label(side) for side in record['contenders']))}.",
        "sentences": sentences.speed(record) or ["No duel was fought: there is nothing to compare."],
        "charts": figures.there(
            figures.forest("chart-differences", rows_of_duels(record)),
            figures.forest(
                "chart-efficiency",
                efficiency_rows(record),
                "Short of linear scaling from plain torch on one worker",
                "difference to N times one worker's samples/s",
            ),
        ),
        "notes_heading": HEADING,
        "notes": notes_in(folder),
        "totals": without_empty_columns(texts.totals_table(record)),
        "differences": without_empty_columns(texts.differences_table(record)),
        "remarks": remarks(record),
        "reproduce": _commands(folder),
        "environment": tables.environment_table([record.get("environment") or {}]),
        "job": tables.job_table(record["job"], "the first contender"),
        "engine": tables.engine_table(engines),
        "contents": [
            ("differences", "Differences"),
            ("throughput", "Throughput"),
            ("findings", "Warnings"),
            ("reproduce", "Environment and job"),
            ("glossary", "Glossary"),
        ],
    }
    return layout.fill("duels.html.j2", context, without=["auroc", "mfu"])


def _commands(folder: Path) -> str:
    name = folder.resolve().name
    return f"harness results check results/{name}\nharness experiment duel --study {name} --render"
