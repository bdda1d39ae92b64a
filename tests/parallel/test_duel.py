"""`harness experiment duel` with real engines: a record whose figures follow from its blocks, and a failing contender
ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.analysis.duels import record
from harness.analysis.duels.estimate import difference

pytestmark = pytest.mark.parallel
ROOT = Path(__file__).resolve().parents[2]


def duel(results: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "harness",
        "experiment",
        "duel",
        "--preset",
        "tiny",
        "--results",
        str(results),
        *arguments,
    ]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=280, check=False
    )


def test_two_engines_against_plain_torch_on_one_and_two_workers(tmp_path: Path) -> None:
    engines = "single@1,horovod@2,deepspeed:2@2"
    done = duel(
        tmp_path, "--backends", engines, "--rounds", "3", "--duels", "2", "--scaling", "weak", "--global-batch", "4"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "duel" / record.NAME).read_text())
    names = ["single@1", "horovod@2", "deepspeed ZeRO-2@2"]
    assert [item["name"] for item in told["contenders"]] == names
    assert len(told["blocks"]) == 2 * 3 * 3
    for name in names:
        mine = [block for block in told["blocks"] if block["engine"] == name]
        samples, spent = sum(block["samples"] for block in mine), sum(block["seconds"] for block in mine)
        assert samples == 2 * 3 * 3 * (4 if name == "single@1" else 8)
        assert record.totals(told)[name] == pytest.approx(samples / spent)
    again = difference(record.blocks_of(told), names[0], names[1])
    assert told["differences"][0]["value"] == pytest.approx(again.value)
    losses = [told["duels"][0]["told"][name]["losses"] for name in names]
    assert len(losses[1]) == 5 + 3 * 3
    assert losses[1] == pytest.approx(losses[2], rel=1e-4), "both engines train the same"
    waiting = [busy for one in told["duels"] for busy in one["waiting_cores"].values()]
    assert max(waiting) < record.WAITING * len(os.sched_getaffinity(0)), waiting
    page = (tmp_path / "duel" / "duel.md").read_text()
    assert "horovod@2 against single@1" in page
    orders = {
        tuple(block["engine"] for block in told["blocks"] if (block["duel"], block["round"]) == key)
        for key in {(block["duel"], block["round"]) for block in told["blocks"]}
    }
    assert len(orders) > 1, "the order of the blocks changes"


def test_a_contender_that_fails_ends_the_duel_with_its_reason(tmp_path: Path) -> None:
    done = duel(tmp_path, "--backends", "single,ddp@2", "--set", "lr=1e30", "--set", "clip_norm=0", "--rounds", "3")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert "duel 1 failed" in done.stderr
    assert not (tmp_path / "duel").exists()
