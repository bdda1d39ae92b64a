"""The worker under the real launchers and engines: as `harness run` starts it and as a user starts it by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.record_files import RESULT, STEPS, read_json, read_jsonl, runs_of

pytestmark = [pytest.mark.parallel, pytest.mark.timeout(240)]
ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
TINY = ("--preset", "tiny", "--steps", "4", "--log-every", "2", "--timing-warmup", "1", "--eval-samples", "6")


def call(*argv: str, timeout: float = 200, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}", **environ}
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def only_run(results: Path) -> Path:
    (study,) = [path for path in results.iterdir() if path.is_dir()]
    (run,) = runs_of(study)
    return run


@pytest.mark.parametrize(
    "engine", [("horovod",), ("deepspeed", "--zero-stage", "2"), ("fsdp2",), ("ddp",)], ids="-".join
)
def test_every_engine_trains_with_frozen_bf16_weights(engine: tuple[str, ...], tmp_path: Path) -> None:
    done = call(
        str(BIN / "harness"), "run", "--backend", *engine, "--slots", "2", "--precision", "bf16", *TINY,
        "--results", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = read_json(only_run(tmp_path) / RESULT)
    assert result["status"] == "ok"
    assert result["world_size"] == 2
    assert [row["step"] for row in read_jsonl(only_run(tmp_path) / STEPS)] == [0, 1, 2, 3]
    assert "loss" in done.stdout
    assert "FutureWarning" not in done.stdout + done.stderr, "the engines' flood belongs into log.txt"


BY_HAND = {
    "horovodrun": ("horovodrun", "-np", "2", "-H", "localhost:2", "python", "harness/run.py", "--backend", "horovod"),
    "mpirun": (
        *("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", "2"),
        *("python", "harness/run.py", "--backend", "horovod"),
    ),
    "torchrun": ("torchrun", "--nproc-per-node", "2", "--master-port", "29713", "harness/run.py", "--backend", "ddp"),
    "deepspeed": (
        *("deepspeed", "--num_gpus", "2", "--no_local_rank", "--master_port", "29714"),
        *("harness/run.py", "--backend", "deepspeed"),
    ),
}


@pytest.mark.parametrize("launcher", BY_HAND)
def test_the_worker_under_a_launcher_by_hand(launcher: str, tmp_path: Path) -> None:
    done = call(*BY_HAND[launcher], *TINY, "--results", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    result = read_json(only_run(tmp_path) / RESULT)
    assert (result["status"], result["world_size"]) == ("ok", 2)
    # A horovodrun that was built with MPI starts its workers through mpirun.
    assert result["launcher"] in ((launcher, "mpirun") if launcher == "horovodrun" else (launcher,))
    assert "ok in" in done.stdout + done.stderr, "rank 0 says how it ended"


def test_a_killed_worker_ends_the_job(tmp_path: Path) -> None:
    for engine in ("horovod", "deepspeed"):
        results = tmp_path / engine
        done = call(
            str(BIN / "harness"), "run", "--backend", engine, "--slots", "2", "--preset", "tiny", "--steps", "5000",
            "--log-every", "1", "--results", str(results), HARNESS_FAULT="kill:rank=1,step=6",
        )  # fmt: skip
        assert done.returncode == 1, done.stdout + done.stderr
        run = only_run(results)
        result = read_json(run / RESULT)
        assert result["status"] == "failed"
        # DeepSpeed's launcher may see first the rank that lost its peer, and then reports that one's exit code.
        assert "SIGKILL" in result["reason"] or "rank 1 died without a message" in result["reason"], result["reason"]
        # From the last step that could be recorded to the sealed result.
        took = (run / RESULT).stat().st_mtime - (run / STEPS).stat().st_mtime
        assert took < 30, f"{took:.0f} s from the kill to the end"
        assert not _alive(str(run)), "an orphan is left"


def _alive(text: str) -> list[str]:
    """Command lines of living processes that hold `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and str(os.getpid()) not in path.parts:
            found.append(line)
    return found
