"""`harness experiment max-model`: its shapes, its limits, and what it makes of recorded tries, without starting any
worker."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from core_model.build import build
from harness.commands.experiment.max_model import max_model
from harness.experiments.max_model.attempt import HOST_IS_FULL, judge
from harness.experiments.max_model.memory_formula import Training
from harness.experiments.max_model.report import headline as sentence
from harness.experiments.max_model.report import plot, ran_out, write_tables
from harness.experiments.max_model.run import FILE, Search, conclude, new_cell, resumed, stand
from harness.experiments.max_model.shapes import Grid
from harness.job.declaration import JobError
from harness.publish import experiment_headlines
from harness.records.record_files import read_json, write_json
from harness.records.soundness import schema_errors

ARGS = ["--device", "cpu", "--memory-gib", "0.25", "--precision", "fp32", "--vocab", "512", "--length", "32"]


def search() -> Search:
    return Search(
        grid=Grid(ratio=1.25, vocab=512, length=32),
        training=Training(precision="fp32", on_gpu=False),
        device_mib=256.0,
        host_mib=1e6,
        memory_gib=0.25,
    )


def tried(cell: dict[str, Any], point: int, status: str, reason: str = "") -> dict[str, Any]:
    """A recorded try of `point` that used what was predicted for it."""
    shape = search().grid.shape(point)
    return {
        "point": point,
        "parameters": shape.parameters,
        "shape": shape.name,
        "predicted_mib": 200.0,
        "status": status,
        "reason": reason,
        "phase": "train",
        "peak_mib": 200.0,
        "host_mib": 0.0,
        "outside_mib": None,
        "limit_mib": 256.0,
        "seconds": 1.0,
        "phases": {},
    }


@pytest.mark.parametrize("vocab", [512, 32_000])
def test_neighbouring_shapes_are_the_resolution_apart(vocab: int) -> None:
    grid = Grid(ratio=1.05, vocab=vocab)
    counts = [grid.shape(grid.point(3e8) + step).parameters for step in range(40)]
    assert all(1.02 < after / before < 1.08 for before, after in pairwise(counts))


def test_a_shape_says_how_many_parameters_its_model_has() -> None:
    shape = Grid(vocab=512, length=32).shape(20)
    model = build("llama-600m", overrides=shape.overrides())
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters


def test_a_cell_is_found_by_its_tries_and_failed_by_another_failure() -> None:
    cell = new_cell("ddp", 1, search())
    point = cell["predicted"]["point"]
    assert stand(cell, search()).next == point
    cell["tries"] = [tried(cell, point - 1, "ok"), tried(cell, point, "oom")]
    conclude(cell, search())
    assert (cell["status"], cell["largest"]["point"]) == ("found", point - 1)
    assert cell["error"] == pytest.approx(cell["predicted"]["parameters"] / cell["largest"]["parameters"] - 1)
    cell["tries"].append(tried(cell, point + 3, "failed", "ValueError: no"))
    conclude(cell, search())
    assert cell["status"] == "failed"
    assert "ValueError: no" in cell["reason"]
    assert cell["error"] is None


def test_only_a_lack_of_memory_counts_as_one() -> None:
    rank = {"status": "failed", "phase": "train", "reason": "ValueError: odd", "seconds": {}, "peak_mib": 1.0}
    assert judge([rank], 1, "ended with 1", "", False)["status"] == "failed"
    assert judge([{**rank, "status": "oom"}], 3, "ended with 3", "", False)["status"] == "oom"
    assert (
        judge([None], 1, "", "terminate called after throwing an instance of 'std::bad_alloc'", False)["status"]
        == "oom"
    )
    assert judge([None], 137, "killed", "", True)["status"] == "oom"
    assert judge([None], 137, "killed", "", False)["status"] == "failed"
    assert judge([None], 124, "took too long", "", False)["status"] == "timeout"


def test_tables_plot_and_index_from_a_record(tmp_path: Path) -> None:
    cells = []
    for workers in (1, 2):
        cell = new_cell("deepspeed:zero_stage=2+reduce_bucket_size=1000000", workers, search())
        point = cell["predicted"]["point"]
        cell["tries"] = [tried(cell, point, "ok"), tried(cell, point + 1, "oom")] if workers == 1 else []
        cells.append(conclude(cell, search()))
    record = {"setup": search().setup(), "device_mib": 256.0, "host_mib": 1e6, "environment": {}, "finished": False}
    write_json(tmp_path / FILE, record | {"cells": cells})
    assert schema_errors("fit", read_json(tmp_path / FILE)) == []
    write_tables(record | {"cells": cells}, tmp_path)
    plot(record | {"cells": cells}, tmp_path / "fit")
    text = (tmp_path / "fit.md").read_text()
    assert "| +0.0% |" in text
    assert "| not tried to the end |" in text
    assert "| memory |" in text  # on a CPU there is one
    assert len((tmp_path / "fit.csv").read_text().splitlines()) == 3
    assert (tmp_path / "fit.png").stat().st_size > 5000
    write_json(tmp_path / FILE, record | {"cells": cells, "headline": sentence(record | {"cells": cells})})
    assert schema_errors("fit", read_json(tmp_path / FILE)) == []
    headline = experiment_headlines.headline_of(tmp_path)
    assert headline is not None
    assert "1 of 1 predictions within 10 %" in headline.sentence


def test_record_says_which_memory_ran_out() -> None:
    cell = new_cell("ddp", 1, search())
    point = cell["predicted"]["point"]
    full = tried(cell, point + 1, "oom") | {"reason": f"the kernel ended a worker: {HOST_IS_FULL}"}
    device = tried(cell, point + 2, "oom") | {"reason": "OutOfMemoryError: CUDA out of memory."}
    assert ran_out({"tries": [tried(cell, point, "ok")]}, {"on_gpu": True}) == "–"  # noqa: RUF001
    assert ran_out({"tries": [device, full]}, {"on_gpu": True}) == "host memory"
    assert ran_out({"tries": [device]}, {"on_gpu": True}) == "GPU memory"


def test_dry_run_starts_nothing_and_writes_nothing(tmp_path: Path) -> None:
    told = CliRunner().invoke(
        max_model, [*ARGS, "--backends", "ddp", "--workers", "1", "--dry-run", "--results", str(tmp_path)]
    )
    assert told.exit_code == 0, told.output
    assert "DDP" in told.output
    assert list(tmp_path.iterdir()) == []


def test_a_search_does_not_go_on_on_another_machine(tmp_path: Path) -> None:
    (tmp_path / "fit").mkdir()
    place = {"gpus": {"devices": [{"name": "NVIDIA H100"}]}}
    record = {"setup": search().setup(), "device_mib": 256.0, "host_mib": 1e6, "environment": place}
    write_json(tmp_path / "fit" / FILE, record | {"finished": True, "cells": []})
    with pytest.raises(JobError, match="was searched on NVIDIA H100, this is "):
        resumed([], search(), tmp_path / "fit", retry=False)


def test_tries_of_another_search_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "fit").mkdir()
    record = {"setup": search().setup() | {"precision": "bf16"}, "device_mib": 256.0, "host_mib": 1e6}
    write_json(tmp_path / "fit" / FILE, record | {"environment": {}, "finished": True, "cells": []})
    before = json.loads((tmp_path / "fit" / FILE).read_text())
    arguments = [*ARGS, "--backends", "ddp", "--workers", "1", "--resolution", "0.25", "--results", str(tmp_path)]
    told = CliRunner().invoke(max_model, arguments)
    assert "--fresh" in str(told.exception)
    assert json.loads((tmp_path / "fit" / FILE).read_text()) == before
