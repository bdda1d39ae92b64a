"""Whether the files of a run are what their schemas say, so that one damaged run is named and left out of a report
instead of ending it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from harness.common.paths import SCHEMAS
from harness.job.declaration import json_schema
from harness.records.record_files import (
    ENVIRONMENT,
    EVALUATION,
    JOB,
    RESOURCES,
    RESULT,
    SPLIT,
    STEPS,
    RecordError,
    read_json,
    read_jsonl,
)

_FILES: dict[str, str | None] = {  # None: any JSON object
    JOB: "job",
    ENVIRONMENT: "environment",
    RESULT: "result",
    EVALUATION: "evaluation",
    STEPS: "steps",
    RESOURCES: "resources",
    SPLIT: "split",
    "profile.json": None,
}


@cache
def validator(name: str) -> Any:
    """The validator of schema `name`: the job's is made from its declaration, the others are harness/schemas/."""
    from jsonschema import Draft202012Validator

    schema = json_schema() if name == "job" else json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def schema_errors(name: str, value: Any) -> list[str]:
    """What in `value` breaks schema `name`, at most three sentences."""
    errors = sorted(validator(name).iter_errors(value), key=lambda error: list(map(str, error.absolute_path)))
    return [f"{'/'.join(map(str, error.absolute_path)) or 'the record'}: {error.message[:200]}" for error in errors[:3]]


def file_errors(
    folder: Path, *, names: Collection[str] = tuple(_FILES), quick: bool = False
) -> Iterator[tuple[str, str]]:
    """(file, what is wrong in it) for the files that a run has. quick: of rows whose fields have the same types, one is
    looked at."""
    for name, schema in _FILES.items():
        path = folder / name
        if name not in names or not path.exists():
            continue
        try:
            if schema is None:
                read_json(path)
            elif name.endswith(".jsonl"):
                yield from ((name, text) for text in _row_errors(path, schema, quick))
            else:
                value = read_json(path)
                if quick and name == EVALUATION:
                    value = {**value, "samples": _one_of_each(value.get("samples"))}
                for text in schema_errors(schema, value):
                    yield name, text
        except (RecordError, OSError) as error:
            yield name, f"cannot be read: {str(error).removeprefix(f'{path}: ')}"


def damage(folder: Path, names: Collection[str] = tuple(_FILES)) -> str:
    """The first thing that is wrong in a run's files, one line; "" where nothing is."""
    return next((f"{name}: {text}" for name, text in file_errors(folder, names=names, quick=True)), "")


def _row_errors(path: Path, schema: str, quick: bool) -> Iterator[str]:
    """What is wrong in the first row that breaks the schema."""
    known: set[Any] = set()
    for number, row in enumerate(read_jsonl(path), 1):
        if quick:
            if (shape := _shape(row)) in known:
                continue
            known.add(shape)
        if errors := schema_errors(schema, row):
            yield f"line {number}: {errors[0]}"
            return


def _one_of_each(rows: Any) -> Any:
    return list({_shape(row): row for row in rows}.values()) if isinstance(rows, list) else rows


def _shape(value: Any) -> Any:
    """Equal for values whose fields have the same types all the way down."""
    if isinstance(value, dict):
        return tuple((key, _shape(item)) for key, item in value.items())
    if isinstance(value, list):
        return (list, *sorted({_shape(item) for item in value}, key=str))
    return type(value)
