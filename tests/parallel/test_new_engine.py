"""Adding an engine takes one file and one line: the example in tests/backends/flat_engine.py, held to the same
parity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launch import HERE, ROOT, run

from backends.parity import Cell, compare, run_cells
from backends.process import ProcessFacts

EXAMPLE = ROOT / "tests" / "backends" / "flat_engine.py"


@pytest.mark.timeout(120)
def test_the_example_engine_trains_like_the_single_process(tmp_path: Path) -> None:
    from tiny import Tiny, batches

    cells = [
        {"label": "after", "engine": "flat", "settings": {"predivide": False}},
        {"label": "fp16", "engine": "flat", "optimization": {"precision": "fp16", "accumulation": 2}},
    ]
    spec = {
        "cells": cells,
        "output": str(tmp_path),
        "register": {"flat": ["flat_engine:FlatBackend", str(EXAMPLE.parent)]},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    ended = run("torchrun", 2, HERE / "cells.py", [str(tmp_path / "spec.json")], tmp_path / "log.txt", limit_s=90)
    assert ended.code == 0, ended.output[-3000:]
    rows = json.loads((tmp_path / "outcomes.json").read_text())
    assert [row["error"] for row in rows] == ["", ""]
    (single,) = run_cells([Cell(label="s", engine="single")], Tiny, batches, facts=ProcessFacts(), device="cpu")
    weights = torch.load(tmp_path / "0.pt")["weights"]
    assert compare(weights, single.weights, single.initial).relative <= 1e-5


def test_the_example_is_short() -> None:
    """It is shown in the README: two screens would not be an invitation."""
    code = [line for line in EXAMPLE.read_text().splitlines() if line.strip() and not line.strip().startswith('"""')]
    assert len(code) <= 45
