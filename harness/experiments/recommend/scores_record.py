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

from core_model.user_job.source import source_of
from harness.common.formatting import DASH, change, percent
from harness.common.text_table import Table, markdown
from harness.experiments.recommend import scoring
from harness.experiments.recommend.evidence import Evidence, Point, model_of, read_evidence, shape_of
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
    """The sizes that the record keeps, by `shape_of` the job and micro-batch."""
    return {(item["shape"], item["micro"]): Sized(**item["sizes"]) for item in scores.get("sizes", ())}


def flops_in(scores: Mapping[str, Any], evidence: Evidence) -> dict[str, float]:
    """FLOPs of a sample by job, of those jobs whose sizes are known."""
    return flops_by_job(sizes_in(scores), evidence)


def flops_by_job(sizes: Mapping[tuple[str, int], Sized], evidence: Evidence) -> dict[str, float]:
    """FLOPs of a sample by job. sizes: by `shape_of` the job and micro-batch."""
    by_shape = {shape: one.flops_sample for (shape, _), one in sizes.items() if one.flops_sample}
    return {point.job: by_shape[shape_of(point.job)] for point in evidence.points if shape_of(point.job) in by_shape}


def errors_in(scores: Mapping[str, Any]) -> list[Error]:
    """The errors that the record holds."""
    return [Error(**{name: row[name] for name in _FIELDS}) for row in scores.get("errors", ())]


def scores_of(evidence: Evidence, sizes: Mapping[tuple[str, int], Sized]) -> dict[str, Any]:
    """The record, from evidence and sizes alone."""
    flops = flops_by_job(sizes, evidence)
    errors = [*scoring.speed_errors(evidence, flops), *scoring.memory_errors(evidence, sizes)]
    record = {
        "schema": 1,
        "studies": sorted({point.study for point in evidence.points}),
        "sources": list(evidence.sources),
        "spreads": scoring.spreads(errors),
        "errors": scoring.as_rows(errors),
        "sizes": [
            {"shape": key, "micro": micro, "sizes": asdict(one)}
            for (key, micro), one in sorted(sizes.items(), key=lambda item: item[0])
        ],
    }
    return {**record, "headline": headline(record)}


def write_scores(results: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Scores every study of `results` and writes the record. Sizes that it holds already are kept, and new ones are
    written as they are found: finding them takes a minute each."""
    evidence = read_evidence(results)
    sizes = sizes_in(read_scores(results))
    (results / FOLDER).mkdir(parents=True, exist_ok=True)
    refused: set[tuple[str, int]] = set()
    for point in evidence.points:
        wanted = (shape_of(point.job), point.micro)
        if wanted in sizes or wanted in refused or point.device not in evidence.memory:
            continue
        say(f"sizes of {model_of(point.job)} with {point.micro} samples")
        try:
            sizes[wanted] = sized(_job_of(point))
        except JobError as error:
            refused.add(wanted)
            say(str(error))
        write_json(results / FOLDER / NAME, scores_of(evidence, sizes))
    record = scores_of(evidence, sizes)
    write_json(results / FOLDER / NAME, record)
    return record


def _job_of(point: Point) -> Job:
    """The job whose sizes are a recorded point's: on one worker, without what changes no size."""
    fields = {**point.fields, "global_batch": point.micro, "nodes": 1, "slots": 1, "engine": {}, "backend": "single"}
    fields |= {"launcher": "auto", "compile": False, "precision_mode": "matched", "hostfile": ""}
    if source_of(str(fields["preset"])) is None:
        fields |= {"data": "textures", "data_options": {}, "init_weights": "", "defects": ""}
    return Job.from_dict(fields)


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
