"""The files of a run, and how they are written: whole or not at all.

``results/STUDY/RUN/`` holds

- ``job.json``: the resolved `harness.job.declaration.Job`;
- ``environment.json``: versions, hardware, topology, git commit, the launcher's variables;
- ``steps.jsonl``: one line a step: ``step, epoch, loss, losses{}, grad_norm, loss_scale, skipped, lr, step_s,
  data_s, t, samples, rank_step_s[]`` (seconds; `t` = since training began; rank_step_s may be missing);
- ``resources.jsonl``: one line a sample of the resource sampler: ``t, rank, host, cpu_percent, rss_mib, net_sent_bytes,
  net_recv_bytes, gpus[{index, uuid, util_percent, mem_mib, power_w, temperature_c, energy_j}]``, in some also
  ``cpu_energy_j, foreign_cores, steal_cores`` (see `harness.instruments.resource_sampler`). Only GPUs that the job uses
  are in it. Rank 0 writes while it runs; the rows of other machines follow at the end;
- ``split.jsonl``: one line a sampled step and rank: ``step, rank, data_s, forward_s, backward_s, exchange_s,
  optimizer_s, other_s, forward_cpu_s, backward_cpu_s`` (seconds; exchange_s = what the exchange was not hidden behind
  backward), see `harness.instruments.step_timing`;
- ``evaluation.json``: figures over the whole test set, per category and mean, and one entry a test sample;
- ``result.json``: ``status`` (ok | failed | running), ``reason`` and the summary figures; written last;
- ``autotune.json``, ``autotune.csv``: of a job with a tuning phase, what Horovod's tuner found, and its log;
- ``elastic.jsonl``: of an elastic job, one line a world: ``step, world_size, hosts[], t``;
- ``log.txt``: everything the engines and launchers printed;
- ``weights.safetensors``, ``checkpoints/``: never committed.

A JSON file is written to a temporary name in the same folder and renamed, a JSONL file is appended by whole lines, so
a killed run leaves valid files. A last line that was cut off all the same is left out and noted; any other damage is
a RecordError that names file and line.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.common.paths import PROJECT
from mpi.errors import UserError

SCHEMA_VERSION = 1
JOB, ENVIRONMENT, STEPS, RESOURCES = "job.json", "environment.json", "steps.jsonl", "resources.jsonl"
SPLIT = "split.jsonl"
EVALUATION, RESULT, LOG, WEIGHTS = "evaluation.json", "result.json", "log.txt", "weights.safetensors"


TORN = "its last line was cut off (the job was killed while it wrote, or the disk was full) and is left out"


class RecordError(UserError, RuntimeError):
    """A record that is missing, truncated or foreign. One line that names the file and the remedy."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `value` with the schema version to `path` atomically (temporary file, fsync, rename)."""
    write_text(path, json.dumps({"schema": SCHEMA_VERSION, **value}, indent=1, allow_nan=False, default=_plain) + "\n")


def write_text(path: Path, text: str, errors: str | None = None) -> None:
    """Writes `text` to `path` whole or not at all (temporary file, fsync, rename). errors: as those of `open`."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", errors=errors, newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a column for every name in `rows`, in the order in which they appear; lines end as the csv module ends
    them."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`. Raises RecordError where the file is missing, not JSON or of another schema version."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordError(f"{path}: no such record: is {path.parent} a run folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not valid JSON ({error}): the record is damaged, run the job again") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA_VERSION:
        found = value.get("schema") if isinstance(value, dict) else None
        raise RecordError(f"{path}: schema {found}, this program reads {SCHEMA_VERSION}: use the version that wrote it")
    return value


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends one line a row in a single write, so that a reader never sees half a line of a live run."""
    text = "".join(json.dumps(row, allow_nan=False, default=_plain) + "\n" for row in rows)
    if text:
        with path.open("a") as file:
            file.write(text)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of `path`; a last line that a kill cut off is left out (`torn_end` tells of it), a missing file has no
    rows. Raises RecordError with the number of any other line that is not a row."""
    for number, line, is_last in _lines_of(path):
        row = row_of(line)
        if row is not None:
            yield row
        elif not is_last:
            raise RecordError(f"{path}: line {number} is not valid JSON: the record is damaged, run the job again")


def torn_end(path: Path) -> int:
    """Bytes at the end of `path` that are no whole row: 0 for a whole file, or none."""
    last = b""
    for _, line, is_last in _lines_of(path):
        last = line if is_last else b""
    return 0 if row_of(last) is not None else len(last)


def row_of(line: bytes) -> dict[str, Any] | None:
    """None for what is no row: without its end, not JSON, not an object."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _lines_of(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """(number from 1, line with its end, whether it is the last)."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        before: bytes | None = None
        number = 0
        for line in file:
            if before is not None:
                yield number, before, False
            before, number = line, number + 1
        if before is not None:
            yield number, before, True


def hide_places(file: Path, places: Mapping[str, str]) -> None:
    """Replaces folders of this machine in a text file: a record is read, and published, elsewhere. places: path to what
    stands for it; longer paths first. Leaves the file alone where it has none of them, or cannot be read."""
    try:
        text = file.read_text(errors="surrogateescape")
    except OSError:
        return
    hidden = text
    for place in sorted(places, key=len, reverse=True):
        hidden = hidden.replace(place.rstrip("/") + "/", places[place])
    if hidden != text:
        write_text(file, hidden, errors="surrogateescape")


def hide_machine(file: Path, results: Path) -> None:
    """`hide_places` for a log written here: the results folder, the repository, Python's and the temporary folder."""
    root = PROJECT
    places = {str(results): "results/", str(root): "", sys.prefix: "PYTHON/", tempfile.gettempdir(): "TMP/"}
    hide_places(file, places)


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run's: it holds a job.json."""
    return (folder / JOB).is_file()


def runs_of(study: Path) -> list[Path]:
    """The run folders of a study, by name."""
    return sorted(path for path in study.iterdir() if path.is_dir() and is_run(path)) if study.is_dir() else []


def finite(value: Any) -> Any:
    """`value` with NaN and infinities as None, recursively: JSON has neither."""
    if isinstance(value, float):
        return value if value == value and value not in (float("inf"), float("-inf")) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    """numpy and torch scalars, paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot record a {type(value).__name__}")
