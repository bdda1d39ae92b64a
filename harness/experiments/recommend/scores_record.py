"""results/recommend/scores.json and the page docs/recommend.md: how far off recommendations are, study by study.

Written by ``harness recommend --score``. The record also keeps the sizes of every recorded job's model, so that they
are found once.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.common.formatting import DASH, change, percent
from harness.common.text_table import Table, markdown
from harness.experiments.recommend import scoring
from harness.experiments.recommend.evidence import Evidence, model_of, read_evidence
from harness.experiments.recommend.scoring import MEMORY, Error
from harness.experiments.recommend.sizing import Sized, sized
from harness.experiments.recommend.speed import WAYS
from harness.job.declaration import Job, JobError
from harness.records.record_files import read_json, write_json

FOLDER = "recommend"
NAME = "scores.json"
_FIELDS = ("way", "study", "job", "engine", "workers", "predicted", "measured")
_WORDS = {
    "measured": "samples/s, measured in another study",
    "predicted": "samples/s, predicted from one worker",
    "extrapolated": "samples/s, extrapolated from other jobs",
    MEMORY: "memory of a GPU, by the formula",
}


def read_scores(results: Path) -> dict[str, Any]:
    """The record, {} where there is none. Raises RecordError where it is damaged."""
    path = results / FOLDER / NAME
    return read_json(path) if path.exists() else {}


def sizes_in(scores: Mapping[str, Any]) -> dict[tuple[str, int], Sized]:
    """The sizes that the record keeps, by `key_of` the job and micro-batch."""
    return {(item["job"], item["micro"]): Sized(**item["sizes"]) for item in scores.get("sizes", ())}


def flops_in(scores: Mapping[str, Any]) -> dict[str, float]:
    """FLOPs of a sample by job."""
    return {key: one.flops_sample for (key, _), one in sizes_in(scores).items() if one.flops_sample}


def errors_in(scores: Mapping[str, Any]) -> list[Error]:
    """The errors that the record holds."""
    return [Error(**{name: row[name] for name in _FIELDS}) for row in scores.get("errors", ())]


def scores_of(evidence: Evidence, sizes: Mapping[tuple[str, int], Sized]) -> dict[str, Any]:
    """The record, from evidence and sizes alone."""
    flops = {key: one.flops_sample for (key, _), one in sizes.items() if one.flops_sample}
    errors = [*scoring.speed_errors(evidence, flops), *scoring.memory_errors(evidence, sizes)]
    record = {
        "schema": 1,
        "studies": sorted({point.study for point in evidence.points}),
        "spreads": scoring.spreads(errors),
        "errors": scoring.as_rows(errors),
        "sizes": [
            {"job": key, "micro": micro, "sizes": asdict(one)}
            for (key, micro), one in sorted(sizes.items(), key=lambda item: item[0])
        ],
    }
    return {**record, "headline": headline(record)}


def write_scores(results: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Scores every study of `results` and writes the record. Sizes that it holds already are kept."""
    evidence = read_evidence(results)
    sizes = sizes_in(read_scores(results))
    wanted: dict[tuple[str, int], Job] = {}
    for point in evidence.points:
        if (point.job, point.micro) not in sizes and point.device in evidence.memory:
            fields = {**point.fields, "global_batch": point.micro, "nodes": 1, "slots": 1, "engine": {}}
            wanted[(point.job, point.micro)] = Job.from_dict({**fields, "backend": "single", "launcher": "auto"})
    for (key, micro), job in wanted.items():
        try:
            sizes[(key, micro)] = sized(job)
            say(f"{model_of(key)}, {micro} samples: {sizes[(key, micro)].how}")
        except JobError as error:
            say(f"{model_of(key)}, {micro} samples: {error}")
    record = scores_of(evidence, sizes)
    (results / FOLDER).mkdir(parents=True, exist_ok=True)
    write_json(results / FOLDER / NAME, record)
    return record


def headline(record: Mapping[str, Any]) -> str:
    """The median errors in a sentence."""
    errors = errors_in(record)
    told = []
    for way, words in _WORDS.items():
        own = [abs(error.error) for error in errors if error.way == way]
        if own:
            told.append(f"{words}: median error {percent(statistics.median(own), 1)} of {len(own)}")
    return "; ".join(told) + "." if told else "No study to score."


def tables(record: Mapping[str, Any]) -> list[Table]:
    """The errors by way, and by study."""
    errors = errors_in(record)
    rows = []
    for way, words in _WORDS.items():
        own = [error for error in errors if error.way == way]
        if not own:
            continue
        held = scoring.inside(own)
        right, asked = scoring.fastest_right(own) if way in WAYS else (0, 0)
        width = record["spreads"].get(way)
        interval = DASH if width is None else f"{change(math.expm1(-width), 0)} to {change(math.expm1(width), 0)}"
        rows.append(
            [
                words,
                str(len(own)),
                percent(statistics.median(abs(error.error) for error in own), 1),
                change(max((error.error for error in own), key=abs)),
                interval,
                f"{sum(held)} of {len(held)}" if held else DASH,
                f"{right} of {asked}" if asked else DASH,
            ]
        )
    columns = ["figure", "scored", "median error", "worst", "interval", "inside", "fastest engine right"]
    return [
        Table(id="recommend-errors", title="", columns=columns, rows=rows),
        Table(
            id="recommend-studies",
            title="",
            columns=["study", "job", *_WORDS],
            rows=_study_rows(record["studies"], errors),
        ),
    ]


def block(record: Mapping[str, Any]) -> str:
    """The tables as Markdown, for docs/recommend.md."""
    first, second = (markdown(table).rstrip() for table in tables(record))
    return f"{first}\n\nBy study: median error, and the worst.\n\n{second}\n"


def _study_rows(studies: Sequence[str], errors: Sequence[Error]) -> list[list[str]]:
    rows = []
    for study in studies:
        own = [error for error in errors if error.study == study]
        jobs = sorted({model_of(error.job) for error in own})
        cells = []
        for way in _WORDS:
            values = [error.error for error in own if error.way == way]
            cells.append(
                f"{percent(statistics.median(map(abs, values)), 1)}, {change(max(values, key=abs))}" if values else DASH
            )
        rows.append([study, ", ".join(jobs) or DASH, *cells])
    return rows
