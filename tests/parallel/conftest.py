"""Shared by the parallel tests: one launch trains many cells, every test looks at one of them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts real workers."""
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(pytest.mark.parallel)


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skips, in words, where a launcher or an engine is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None and shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


class Cells:
    """Outcomes of one launch of cells.py, by label."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        rows = json.loads((folder / "outcomes.json").read_text())
        self.rows = {row["label"]: row | {"index": index} for index, row in enumerate(rows)}

    def outcome(self, label: str) -> dict[str, Any]:
        """What the cell ended with, without weights; the test fails where the engine refused it."""
        row = self.rows[label]
        assert not row["error"], row["error"]
        return row

    def tensors(self, label: str) -> dict[str, Any]:
        """weights and initial of the cell."""
        import torch

        return torch.load(self._folder / f"{self.outcome(label)['index']}.pt", weights_only=True)


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory):
    """train(launcher, world, cells, **spec) -> Cells; remembers launches by their arguments."""
    from launch import HERE as SCRIPTS
    from launch import run

    known: dict[str, Cells] = {}

    def start(launcher: str, world: int, cells: list[dict[str, Any]], **spec: Any) -> Cells:
        key = json.dumps([launcher, world, cells, spec], sort_keys=True)
        if key not in known:
            folder = tmp_path_factory.mktemp(f"{launcher}-{world}-")
            file = folder / "spec.json"
            file.write_text(json.dumps({"cells": cells, "output": str(folder), **spec}))
            ended = run(launcher, world, SCRIPTS / "cells.py", [str(file)], folder / "log.txt", limit_s=500)
            assert ended.code == 0, ended.output[-3000:]
            known[key] = Cells(folder)
        return known[key]

    return start
