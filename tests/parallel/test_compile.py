"""Compiled blocks and recomputed activations under real engines: the model is arranged before an engine takes it, runs
train as without, and say in their contract what they were."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from launch import run_command

from harness.records.record_files import RESULT, STEPS, read_json, read_jsonl
from tests.parallel.test_harness_run import BIN, call, only_run

pytestmark = [pytest.mark.parallel, pytest.mark.slow, pytest.mark.timeout(400)]
SMALL = '{"width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "mlp": 48, "vocab": 64, "length": 8}'
JOB = (
    "--preset",
    "llama-600m",
    "--set",
    f"model={SMALL}",
    "--steps",
    "4",
    "--timing-warmup",
    "1",
    "--eval-samples",
    "-1",
)


def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path: Path) -> None:
    losses = {}
    for name, more in (("plain", ()), ("compiled", ("--set", "compile=true"))):
        done = call(
            str(BIN / "harness"), "run", "--backend", "horovod", "--slots", "2", *JOB, *more,
            "--results", str(tmp_path / name), timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        run = only_run(tmp_path / name)
        result = read_json(run / RESULT)
        assert result["status"] == "ok"
        assert result["contract"].get("compile", False) is (name == "compiled")
        losses[name] = [row["loss"] for row in read_jsonl(run / STEPS)]
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-4)


@pytest.mark.timeout(900)  # each launch compiles anew
def test_every_engine_ends_with_the_weights_of_a_compiled_single_process(tmp_path: Path) -> None:
    """DDP's, FSDP2's, Horovod's and ZeRO-3's hooks around blocks that are compiled, and run twice in backward."""
    engines = "ddp,fsdp2:wrap_min_parameters=200,horovod,deepspeed:1,deepspeed:3"
    command = [sys.executable, "-m", "harness", "experiment", "parity", *JOB[:4], "--backends", engines]
    command += ["--workers", "2"]
    command += [
        "--steps",
        "4",
        "--study",
        "",
        "--json",
        "--set",
        "compile=true",
        "--set",
        "activation_checkpointing=true",
    ]
    ended = run_command(command, tmp_path / "log.txt", limit_s=880)
    table = json.loads(ended.output[ended.output.index("{\n") :])
    assert len(table["cells"]) == 5
    for cell in table["cells"]:
        assert cell["status"] == "equal" or cell["explained"], cell
