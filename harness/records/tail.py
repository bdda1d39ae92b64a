"""Reading a run's records while they grow: only whole new lines, each once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.records.locks import gone_text, has_lost_its_writer
from harness.records.record_files import JOB, RESOURCES, RESULT, STEPS, RecordError, read_json, row_of


class Tail:
    """New rows of a JSONL file at each `read`; a missing file has none yet.

    A resumed job, and an elastic one that lost a worker, puts a shorter file in place of steps.jsonl and trains its
    last steps again (`checkpoints.cut_steps`): then the file is read from its start, and of rows with a ``step`` only
    those are given whose step was not given before.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._line = b""  # the last one given: it stands before the offset as long as the file is the same
        self._step = -1  # the furthest given

    def read(self) -> list[dict[str, Any]]:
        """The rows appended since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset - len(self._line))
                if file.read(len(self._line)) != self._line:
                    self._offset, self._line = file.seek(0), b""
                text = file.read()
        except FileNotFoundError:
            return []
        lines = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
        found = [row_of(line) for line in lines]
        if found and found[-1] is None:  # on a network file system it may be there in part only
            del lines[-1], found[-1]
        if not lines:
            return []
        if None in found:
            line = lines[found.index(None)][:40]
            raise RecordError(f"{self._path}: the line {line!r} is not valid JSON: the record is damaged")
        self._offset, self._line = self._offset + sum(map(len, lines)), lines[-1]
        rows = [row for row in found if row is not None and row.get("step", self._step + 1) > self._step]
        self._step = max([self._step, *(row["step"] for row in rows if "step" in row)])
        return rows


class Follower:
    """One run folder: `rows()` and `resources()` since the last call, and how it stands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = read_json(folder / JOB)
        self._steps = Tail(folder / STEPS)
        self._resources = Tail(folder / RESOURCES)

    def rows(self) -> list[dict[str, Any]]:
        """New rows of steps.jsonl."""
        return self._steps.read()

    def resources(self) -> list[dict[str, Any]]:
        """New rows of resources.jsonl."""
        return self._resources.read()

    def result(self) -> dict[str, Any]:
        """result.json as it is now; ``{"status": "running"}`` before there is one. Where it says running, but the
        process that was to end the record is gone: failed, with that as its reason (the file stays as it is)."""
        found = self._recorded()
        if not has_lost_its_writer(self.folder, found):
            return found
        found = self._recorded()  # it may have ended well between the two looks
        if found["status"] != "running":
            return found
        return {**found, "status": "failed", "reason": gone_text(found)}

    def _recorded(self) -> dict[str, Any]:
        try:
            return {"status": "running", **read_json(self.folder / RESULT)}
        except RecordError:
            return {"status": "running"}
