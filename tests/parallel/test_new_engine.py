"""Adding an engine takes one file and one line: the example in tests/backends/flat_engine.py, held to the same
parity."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from launch import HERE, ROOT, run, started_command

from backends.checks.parity import TrainingSpec, compare, run_cells
from backends.process.rank import ProcessFacts
from harness.records.record_files import RESULT, read_json, runs_of

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
    (single,) = run_cells([TrainingSpec(label="s", engine="single")], Tiny, batches, facts=ProcessFacts(), device="cpu")
    weights = torch.load(tmp_path / "0.pt")["weights"]
    assert compare(weights, single.weights, single.initial).relative <= 1e-5


@pytest.mark.timeout(180)
def test_a_file_and_a_line_are_all_that_harness_run_needs(tmp_path: Path) -> None:
    for package in ("backends", "core_model", "harness", "mpi"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(EXAMPLE, tmp_path / "backends" / "flat.py")
    registry = tmp_path / "backends" / "__init__.py"
    text = registry.read_text()
    opening = text[text.index("REGISTRY") : text.index("{", text.index("REGISTRY")) + 1]
    registry.write_text(text.replace(opening, f'{opening}\n    "flat": "backends.flat:FlatBackend",'))
    assert registry.read_text() != text
    argv = ["env", "-C", str(tmp_path), f"PYTHONPATH={tmp_path}", sys.executable, "-m", "harness", "run"]
    argv += ["--backend", "flat", "--slots", "2", "--preset", "tiny", "--steps", "4", "--eval-samples", "-1"]
    with started_command([*argv, "--results", str(tmp_path / "results")], tmp_path / "log.txt") as process:
        assert process.wait(150) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    (folder,) = runs_of(tmp_path / "results" / "scratch")
    result = read_json(folder / RESULT)
    assert (result["engine"]["engine"], result["world_size"]) == ("flat", 2)


def test_the_example_is_short() -> None:
    """It is shown in the README: two screens would not be an invitation."""
    code = [line for line in EXAMPLE.read_text().splitlines() if line.strip() and not line.strip().startswith('"""')]
    assert len(code) <= 45
