"""`harness run --resume`: a run that lost a worker goes on in new processes and ends like an unbroken one, and its
record, which was cut back to the checkpoint, is one run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import BIN, run_command
from safetensors.torch import load_file

from harness.analysis.check import check_runs
from harness.records import record_files
from harness.records.record_files import RESULT, WEIGHTS, read_json, read_jsonl

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
STEPS = 14
TINY = ("--backend", "horovod", "--slots", "2", "--preset", "tiny", "--steps", str(STEPS), "--eval-samples", "6",
        "--set", "model.decoder_layers=linear,dropout", "--checkpoint-every", "4", "--log-every", "1",
        "--timing-warmup", "2", "--run-name", "run")  # fmt: skip


def ran(results: Path, *arguments: str, code: int = 0, **variables: str) -> tuple[Path, str]:
    """The run's folder and what the command printed."""
    argv = [str(BIN / "harness"), "run", *TINY, *arguments, "--results", str(results)]
    ended = run_command(argv, results.with_suffix(".log"), limit_s=150, **variables)
    assert ended.code == code, ended.output[-3000:]
    return results / "scratch" / "run", ended.output


def test_a_run_with_dropout_that_was_cut_and_resumed_is_the_unbroken_one(tmp_path: Path) -> None:
    whole, _ = ran(tmp_path / "whole")
    folder, _ = ran(tmp_path / "cut", code=1, HARNESS_FAULT="raise:rank=1,step=11")
    assert read_json(folder / RESULT)["reason"] == "rank 1: PlantedFaultError: planted at step 11"
    assert len(list(read_jsonl(folder / record_files.STEPS))) > 8, "more was recorded than the checkpoint holds"
    ran(tmp_path / "cut", "--resume", code=1, HARNESS_FAULT="raise:rank=0,step=13")
    reason = read_json(folder / RESULT)["reason"]
    assert reason == "rank 0: PlantedFaultError: planted at step 13", "of its own life, not the first one's"
    _, printed = ran(tmp_path / "cut", "--resume")
    assert "Traceback" not in printed
    result = read_json(folder / RESULT)
    assert (result["status"], result["resumed_at"]) == ("ok", [8, 12])
    assert any(text.startswith("resumed at steps 8 and 12: ") for text in result["warnings"])
    assert result["throughput"]["warmup_steps"] == 6
    rows = list(read_jsonl(folder / record_files.STEPS))
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert [row["step"] for row in rows if row.get("restarted")] == [8, 12]
    assert [row["t"] for row in rows] == sorted(row["t"] for row in rows)
    assert check_runs([folder]) == []
    expected, found = (load_file(place / WEIGHTS) for place in (whole, folder))
    differing = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not differing
