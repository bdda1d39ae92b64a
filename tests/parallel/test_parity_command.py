"""`harness experiment parity` with real engines: cells equal the single process, and an overflow on one rank is skipped
by all."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from launch import BIN, run_command

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
HARNESS = str(BIN / "harness")


def test_cells_are_judged_and_filled(tmp_path: Path) -> None:
    engines = "horovod,deepspeed:3,deepspeed:3+memory_efficient_linear=false"
    argv = [
        HARNESS,
        "experiment",
        "parity",
        "--backends",
        engines,
        "--workers",
        "2",
        "--precision",
        "fp32,bf16",
        "--steps",
        "6",
    ]
    argv += ["--results", str(tmp_path), "--keep", str(tmp_path / "kept")]
    ended = run_command(argv, tmp_path / "log.txt", limit_s=240)
    assert ended.code == 0, ended.output[-3000:]
    cells = json.loads((tmp_path / "parity" / "parity.json").read_text())["cells"]
    assert len(cells) == 6
    assert all(cell["status"] == "equal" or cell["explained"] for cell in cells), cells
    fp32 = [cell for cell in cells if cell["precision"] == "fp32"]
    assert all(cell["same_split"] <= 1e-5 for cell in fp32), fp32
    plain = next(cell for cell in cells if cell["settings"] and cell["precision"] == "bf16")
    assert plain["same_split"] <= 1e-5, "without its own linear layer stage 3 rounds where all others do"
    again = run_command([*argv, "--resume"], tmp_path / "again.txt", limit_s=60)
    assert again.code == 0
    assert "training" not in again.output, "nothing is left to train"


def test_a_planted_overflow_is_skipped_by_both_engines_alike(tmp_path: Path) -> None:
    argv = [HARNESS, "experiment", "parity", "--loss-scale", "--workers", "2", "--results", str(tmp_path)]
    argv += ["--backends", "horovod,deepspeed:2"]  # results/parity holds all seven; a start of each takes its time
    ended = run_command(argv, tmp_path / "log.txt", limit_s=240)
    assert ended.code == 0, ended.output[-3000:]
    assert "engines skip step 8 and hold the same loss scale in every step" in ended.output
    rows = list(csv.DictReader((tmp_path / "parity" / "loss_scale.csv").open()))
    skipped = {row["engine"]: row["step"] for row in rows if row["skipped"] == "True"}
    assert set(skipped.values()) == {"8"}
    assert set(skipped) == {"horovod", "deepspeed ZeRO-2"}
    scales = [float(row["loss_scale"]) for row in rows if row["engine"] == "horovod"]
    assert scales[9] == scales[8] / 2
    assert max(scales) > scales[0]
    assert (tmp_path / "parity" / "loss_scale.png").stat().st_size > 10_000
