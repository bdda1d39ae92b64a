"""`harness experiment duel` with real engines: a record whose figures follow from its blocks, and a failing contender
ends it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from backends.process.rank import detect
from harness.analysis.duels import record
from harness.analysis.duels.estimate import difference
from harness.analysis.duels.throughput import rates
from harness.experiments.duels.rank_environment import environments
from harness.experiments.trainings.launch import launch_of
from harness.job.declaration import Job
from harness.launch.preflight import launcher_of
from mpi import hostfile
from mpi.process import supervise

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
        rate = rates(told)[name]
        assert rate.duels == 2
        assert rate.value == pytest.approx(samples / spent, rel=0.2), "two duels of the same machine"
    again = difference(record.blocks_of(told), names[0], names[1])
    assert told["differences"][0]["value"] == pytest.approx(again.value)
    losses = [told["duels"][0]["told"][name]["losses"] for name in names]
    assert len(losses[1]) == 5 + 3 * 3
    assert losses[1] == pytest.approx(losses[2], rel=1e-4), "both engines train the same"
    waiting = [busy for one in told["duels"] for busy in one["waiting_cores"].values()]
    assert max(waiting) < record.WAITING * len(os.sched_getaffinity(0)), waiting
    page = (tmp_path / "duel" / "duel.md").read_text()
    assert "horovod@2 against single@1" in page
    assert "Which engine is faster" in (tmp_path / "duel" / "report.html").read_text()
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


PRINT = """
import json, os, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_ADDR", "HOROVOD_", "CROSS_", "OMP_NUM_THREADS")
chance = ("MASTER_PORT", "HOROVOD_GLOO_RENDEZVOUS_PORT")
print("RANK " + json.dumps({k: v for k, v in sorted(os.environ.items()) if k.startswith(names) and k not in chance}))
"""


@pytest.mark.parametrize(("backend", "workers"), [("deepspeed", 2), ("horovod", 2), ("horovod", 1), ("ddp", 2)])
def test_forked_ranks_get_the_variables_that_their_launcher_gives(backend: str, workers: int, tmp_path: Path) -> None:
    job = Job(backend=backend, slots=workers, global_batch=workers)
    script = tmp_path / "show.py"
    script.write_text(PRINT)
    argv = [sys.executable, str(script)]
    launch = launch_of(job, argv, hostfile.local(workers), str(tmp_path))
    done = supervise(launch, log_path=tmp_path / "log.txt", timeout=120)
    lines = re.findall(r"RANK (\{.*?\})", (tmp_path / "log.txt").read_text())
    assert done.ok, done.reason
    told = sorted((json.loads(line) for line in lines), key=lambda one: one.get("RANK") or one.get("HOROVOD_RANK"))
    assert len(told) == workers
    limit_s = int(told[0].get("HOROVOD_GLOO_TIMEOUT_SECONDS", 0))
    forked = environments(launcher_of(job), workers, port=1, limit_s=limit_s)
    for real, mine in zip(told, forked, strict=True):
        mine = {name: value for name, value in mine.items() if not name.endswith("_PORT")}
        assert {name: real.get(name) for name in mine} == mine, real
        assert detect(mine).rank == detect(real).rank
        assert detect(mine).launcher == detect(real).launcher


def test_forked_contenders_train_what_launched_ones_train(tmp_path: Path) -> None:
    """The same losses, and the same engine by its own description: only the start differs."""
    engines = "single@1,horovod@2,deepspeed:2@2"
    told = []
    for name, more in (("forked", ()), ("launched", ("--set", "launcher=torchrun"))):
        options = ("--backends", engines if name == "forked" else "single@1,deepspeed:2@2")
        done = duel(tmp_path / name, *options, *more, "--rounds", "2", "--duels", "1", "--global-batch", "4")
        assert done.returncode == 0, done.stderr
        told.append(json.loads((tmp_path / name / "duel" / record.NAME).read_text())["duels"][0]["told"])
    for name in ("single@1", "deepspeed ZeRO-2@2"):
        assert told[0][name]["losses"] == pytest.approx(told[1][name]["losses"], rel=1e-6)
        forked, launched = (one[name]["engine"] | {"launcher": ""} for one in told)
        assert forked == launched


def test_a_forked_rank_that_is_killed_ends_the_duel_and_nothing_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness", "experiment", "duel", "--preset", "tiny", "--results", str(tmp_path)]
    command += ["--backends", "single@1,ddp@2", "--rounds", "100000", "--duels", "1", "--global-batch", "4"]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    assert "contenders ready" in running.stderr.readline()
    below = psutil.Process(running.pid).children(recursive=True)
    servers = [process for process in below if "duels.fork_server" in " ".join(process.cmdline())]
    server = min(servers, key=lambda process: process.create_time())
    ranks = server.children()
    assert len(ranks) == 3
    ranks[-1].kill()
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 2, told
    assert "duel 1 failed: ddp@2: rank 1 was ended by SIGKILL" in told
    left = [process for process in (*servers, *ranks) if process.is_running()]
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]
