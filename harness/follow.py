"""Reading a run's records while they grow: only whole new lines, each once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness import records


class Tail:
    """New rows of a JSONL file at each `read`; a missing file has none yet."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> list[dict[str, Any]]:
        """The rows appended since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Follower:
    """One run folder: `rows()` and `resources()` since the last call, and how it stands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = records.read_json(folder / records.JOB)
        self._steps = Tail(folder / records.STEPS)
        self._resources = Tail(folder / records.RESOURCES)

    def rows(self) -> list[dict[str, Any]]:
        """New rows of steps.jsonl."""
        return self._steps.read()

    def resources(self) -> list[dict[str, Any]]:
        """New rows of resources.jsonl."""
        return self._resources.read()

    def result(self) -> dict[str, Any]:
        """result.json as it is now; ``{"status": "running"}`` before there is one."""
        try:
            return records.read_json(self.folder / records.RESULT)
        except records.RecordError:
            return {"status": "running"}
