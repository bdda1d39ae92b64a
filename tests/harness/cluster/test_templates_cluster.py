"""Cluster templates: what is written is valid, says what was asked, and quotes what a shell would split."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from harness.cluster.job_scripts import validate_mpijob
from harness.commands.cluster.job_script import job_script
from harness.commands.run import run
from harness.job.declaration import Job, JobError
from harness.job.options import make_job

JOB = [
    "--nodes",
    "2",
    "--slots",
    "3",
    "--preset",
    "tiny",
    "--steps",
    "5",
    "--global-batch",
    "6",
    "--data",
    "mvtec:/d/my tiles",
]


def text(*words: str) -> str:
    result = CliRunner().invoke(job_script, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_slurm_script_is_shell_and_starts_the_worker_as_asked(tmp_path):
    """srun is a stand-in here: it only shows its arguments."""
    options = ["--folder", str(tmp_path), "--python", "/p/bin/python", "--device", "cpu"]
    script = text("slurm", "--backend", "deepspeed", "--zero-stage", "2", *JOB, *options)
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=3", "#SBATCH --time=01:00:00"} <= set(directives)
    assert not any("gpus" in line for line in directives)
    show = tmp_path / "srun"
    show.write_text('#!/bin/sh\nprintf "%s\\n" "$OMP_NUM_THREADS" "$@"\n')
    show.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    out = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environ).stdout
    words = out.splitlines()
    assert words[0] == "1"
    assert words[words.index("--ntasks") + 1] == "6"
    worker = words[words.index("/p/bin/python") :]
    assert worker[1] == "harness/run.py"
    assert worker[worker.index("--data") + 1] == "mvtec:/d/my tiles"
    assert worker[worker.index("--zero-stage") + 1] == "2"
    assert "--nodes" not in worker
    assert not any("eth0" in line for line in words)


def test_slurm_asks_for_gpus_and_horovod_goes_through_mpirun():
    script = text("slurm", "--backend", "horovod", *JOB, "--device", "cuda", "--partition", "gpu")
    assert "#SBATCH --gpus-per-node=3" in script
    assert "#SBATCH --partition=gpu" in script
    assert "exec mpirun -np 6 --map-by ppr:3:node" in script


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--name", "a b"], "name 'a b'"),
        (["--time-limit", "2 hours"], "write a time such as 90s"),
        (["--set", "engine.tune_steps=100"], "started by `harness run` alone"),
        (["--partition", "x\n#SBATCH --uid=0"], "partition"),
    ],
)
def test_what_slurm_would_refuse_is_one_line(words, says):
    with pytest.raises(JobError, match=says):
        CliRunner().invoke(job_script, ["slurm", "--backend", "horovod", *JOB, *words], catch_exceptions=False)


@pytest.mark.parametrize(
    ("given", "line", "deadline"),
    [([], "01:00:00", 3600), (["--time-limit", "1.5d"], "1-12:00:00", 129600), (["--time-limit", "0"], None, None)],
)
def test_the_time_limit_is_that_of_the_cluster(given: list[str], line: str | None, deadline: int | None) -> None:
    """Whoever runs the script ends the job: the worker itself, started by hand, refuses a time limit."""
    script = text("slurm", "--backend", "ddp", *JOB, *given)
    assert [row for row in script.splitlines() if "--time" in row] == ([f"#SBATCH --time={line}"] if line else [])
    manifest = yaml.safe_load(text("mpijob", "--backend", "ddp", *JOB, *given, "--image", "i", "--device", "cpu"))
    assert manifest["spec"]["runPolicy"].get("activeDeadlineSeconds") == deadline
    assert "--time-limit" not in str(manifest)


def test_the_worker_s_words_are_the_job_that_was_asked_for() -> None:
    """Every option as it was given, also those that switch something off or hold several numbers."""
    given = ["--backend", "ddp", *JOB, "--no-keep-weights", "--betas", "0.8,0.9", "--timeout", "2m", "--bind-cores"]
    given += ["--set", "model.decoder_layers=mlp", "--set", "concurrent=2", "--clip-norm", "0"]
    script = text("slurm", *given, "--python", "/p/python").replace("\\\n", " ")
    words = shlex.split(script.splitlines()[-1])
    words = words[words.index("harness/run.py") + 1 :]

    def job_of(typed: list[str]) -> Job:
        own = {"results": None, "dry_run": None, "launcher_args": None}  # of `harness run`, not of the job
        return make_job({**run.make_context("run", list(typed)).params, "nodes": 2, "slots": 3, **own})

    again = job_of(words)
    assert again == job_of(given)
    assert (again.keep_weights, again.betas, again.timeout_s) == (False, (0.8, 0.9), 120.0)


def test_mpijob_is_valid_and_says_what_was_asked():
    options = ["--image", "reg.example/x:1", "--device", "cuda", "--data-claim", "tiles", "--results-claim", "out"]
    manifest = yaml.safe_load(text("mpijob", "--backend", "horovod", *JOB, *options))
    validate_mpijob(manifest)
    spec = manifest["spec"]
    worker = spec["mpiReplicaSpecs"]["Worker"]
    assert (spec["slotsPerWorker"], worker["replicas"]) == (3, 2)
    (container,) = worker["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 3
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm", "/results", "/data"}
    command = spec["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0]["command"]
    assert command[command.index("-np") + 1] == "6"
    assert command[command.index("--data") + 1] == "mvtec:/d/my tiles"
    assert command[-2:] == ["--results", "/results"]
    assert spec["runPolicy"]["backoffLimit"] == 0


def test_a_broken_manifest_is_found():
    manifest = yaml.safe_load(text("mpijob", "--backend", "ddp", *JOB, "--image", "i", "--device", "cpu"))
    for break_it in (
        lambda m: m["spec"].pop("mpiReplicaSpecs"),
        lambda m: m["spec"].update(slotsPerWorker=0),
        lambda m: m["spec"]["mpiReplicaSpecs"]["Worker"].update(replicas="2"),
        lambda m: m["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"].update(containers=[]),
        lambda m: m.update(apiVersion="kubeflow.org/v1"),
    ):
        copy = json.loads(json.dumps(manifest))
        break_it(copy)
        with pytest.raises(JobError, match="not valid at"):
            validate_mpijob(copy)


def test_pods_must_know_their_device():
    with pytest.raises(JobError, match="--device cuda or --device cpu"):
        CliRunner().invoke(job_script, ["mpijob", "--backend", "ddp", *JOB, "--image", "i"], catch_exceptions=False)


@pytest.mark.parallel
@pytest.mark.slow
def test_the_slurm_scripts_worker_really_trains(tmp_path):
    """One task: the script's own worker line, started as srun starts it (its variables set), trains and records."""
    options = ["--folder", str(Path.cwd()), "--python", sys.executable, "--device", "cpu", "--results", str(tmp_path)]
    words = ["--preset", "tiny", "--steps", "2", "--eval-samples", "-1", "--run-name", "slurm"]
    script = text("slurm", "--backend", "ddp", *words, *options)
    srun = tmp_path / "srun"
    skip = '[[ "$1" == *=* || "$1" == --unbuffered ]] || shift; shift'  # options, most with a value of their own
    srun.write_text(f'#!/bin/bash\nwhile [[ "$1" == -* ]]; do {skip}; done\nexec "$@"\n')
    srun.chmod(0o755)
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "1"}
    slurm |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}
    environ = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, env=environ)
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["status"] == "ok"
