"""Ranks that are started by hand, under real launchers: who they are, how they end, and what reaches the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from launch import free_port, run_command

from harness.records.record_files import read_json

pytestmark = pytest.mark.timeout(240)
ROOT = Path(__file__).resolve().parents[2]
WORKER = str(ROOT / "harness" / "run.py")
TINY = ("--preset", "tiny", "--steps", "2", "--timing-warmup", "0", "--eval-samples", "-1", "--device", "cpu")
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1")


def result_of(results: Path) -> dict:
    """The one run's."""
    (file,) = results.rglob("result.json")
    return read_json(file)


def start(rank: int, results: Path, environ: Mapping[str, str], *options: str) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if "RANK" not in key and "WORLD_SIZE" not in key}
    argv = [sys.executable, WORKER, "--backend", "ddp", *TINY, "--results", str(results), *options]
    env = {**kept, "OMP_NUM_THREADS": "1", "RANK": str(rank), **environ}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def test_rank_and_world_size_alone_are_ranks_of_one_job(tmp_path: Path) -> None:
    """As Kubernetes operators and hand-written Slurm lines set them: no LOCAL_RANK, no LOCAL_WORLD_SIZE."""
    environ = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [start(rank, tmp_path, environ) for rank in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    result = result_of(tmp_path)
    assert (result["status"], result["world_size"], result["launcher"]) == ("ok", 2, "env")
    (file,) = tmp_path.rglob("environment.json")
    places = [(rank["local_rank"], rank["local_size"]) for rank in read_json(file)["ranks"]]
    assert places == [(0, 2), (1, 2)]


def test_a_rank_given_twice_and_words_for_numbers_are_one_line(tmp_path: Path) -> None:
    environ = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    first, *twins = [start(rank, tmp_path, environ) for rank in (0, 1, 1)]
    end = time.monotonic() + 100
    while all(twin.poll() is None for twin in twins) and time.monotonic() < end:
        time.sleep(0.2)
    loser = next(twin for twin in twins if twin.poll() is not None)
    for process in (first, *twins):
        process.kill()
    assert loser.returncode == 2
    told = "error: rank 1: two processes say that they are rank 1: give every process a RANK of its own\n"
    assert loser.communicate()[0] == told
    word = start(0, tmp_path, environ | {"WORLD_SIZE": "two"})
    assert word.communicate(timeout=60)[0] == "error: WORLD_SIZE=two: it must be a whole number from 0 up\n"
    assert word.returncode == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["ddp", "fsdp2", "deepspeed", "horovod", "single"])
def test_mpirun_ends_with_0(backend: str, tmp_path: Path) -> None:
    count = "1" if backend == "single" else "2"
    argv = (*MPIRUN, "-np", count, sys.executable, WORKER, "--backend", backend, *TINY, "--results", str(tmp_path))
    ended = run_command(argv, tmp_path / "log.txt", limit_s=200)
    assert ended.code == 0, ended.output
    assert "improperly" not in ended.output
    assert (result_of(tmp_path)["status"], result_of(tmp_path)["world_size"]) == ("ok", int(count))


PASSING_LOCAL_RANK = {
    "deepspeed": (str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port"),
    "ddp": (sys.executable, "-m", "torch.distributed.launch", "--nproc-per-node", "2", "--master-port"),
}


@pytest.mark.parametrize("backend", PASSING_LOCAL_RANK)
def test_launchers_that_pass_the_local_rank(backend: str, tmp_path: Path) -> None:
    launcher = (*PASSING_LOCAL_RANK[backend], str(free_port()))
    argv = (*launcher, WORKER, "--backend", backend, *TINY, "--results", str(tmp_path))
    ended = run_command(argv, tmp_path / "log.txt", limit_s=200)
    assert ended.code == 0, ended.output
    assert (result_of(tmp_path)["status"], result_of(tmp_path)["world_size"]) == ("ok", 2)


STARTED = {
    "torchrun": ("torchrun", "--nproc-per-node", "2", "--no-python", "--master-port"),
    "deepspeed": ("deepspeed", "--num_gpus", "2", "--no_python", "--no_local_rank", "--master_port"),
    "mpirun": (*MPIRUN, "-np", "2"),
    "horovodrun": ("horovodrun", "--gloo", "-np", "2"),
}
# Rank 1 alone is given BAD: before there is a log (a GPU that is not there), after there is one (no data).
SCRIPT = """#!/bin/bash
if [ "${HOROVOD_RANK:-${OMPI_COMM_WORLD_RANK:-$RANK}}" = 1 ]; then set -- "$@" BAD; fi
exec PYTHON WORKER --backend ENGINE TINY --results RESULTS "$@"
"""
FAULTS = {
    "early": ("--device cuda", "device 'cuda' was asked for but torch finds no GPU here"),
    "late": ("--data /nowhere", "unknown data set '/nowhere'"),
}


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="the planted mistake is a GPU that is not there")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("launcher", STARTED)
def test_why_rank_1_failed_reaches_the_terminal(launcher: str, fault: str, tmp_path: Path) -> None:
    bad, told = FAULTS[fault]
    results = tmp_path / "results"
    words = {"BAD": bad, "PYTHON": sys.executable, "WORKER": WORKER, "TINY": " ".join(TINY), "RESULTS": str(results)}
    words["ENGINE"] = {"deepspeed": "deepspeed", "horovodrun": "horovod"}.get(launcher, "ddp")
    text = SCRIPT
    for word, value in words.items():
        text = text.replace(word, value)
    script = tmp_path / "rank.sh"
    script.write_text(text)
    port = (str(free_port()),) if launcher in ("torchrun", "deepspeed") else ()
    ended = run_command((*STARTED[launcher], *port, "bash", str(script)), tmp_path / "log.txt", limit_s=150)
    assert ended.code != 0
    assert f"rank 1: {told}" in ended.output, ended.output
    assert ended.seconds < 90, "torchrun and deepspeed kill a rank that does not end only after 30 s"
    if fault == "late":
        result = result_of(results)
        assert (result["status"], result["exit_code"]) == ("failed", 2)
        assert result["reason"].startswith(f"rank 1: {told}")


def test_a_tuning_phase_under_mpirun_ends_well(tmp_path: Path) -> None:
    """Its processes leave MPI too; they ended the run by "exiting improperly"."""
    harness = str(Path(sys.executable).parent / "harness")
    tuned = ("--backend", "horovod", "--slots", "2", "--autotune", "40", "--launcher", "mpirun")
    ended = run_command((harness, "run", *tuned, *TINY, "--results", str(tmp_path)), tmp_path / "log.txt", limit_s=200)
    assert ended.code == 0, ended.output
    assert result_of(tmp_path)["status"] == "ok"
