"""Compiled blocks under a real engine: the run trains as without, and says in its contract what it was."""

from __future__ import annotations

from pathlib import Path

import pytest

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
        assert result["engine"]["compile"] is (name == "compiled")
        assert result["contract"].get("compile", False) is (name == "compiled")
        losses[name] = [row["loss"] for row in read_jsonl(run / STEPS)]
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-4)
