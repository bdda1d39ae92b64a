"""A token in the environment is in nothing that the program prints or writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import main
from harness.job.declaration import Job
from harness.launch.run import run_job
from harness.records import environment

TOKEN = "hf_not4realNot4realNot4real"
HIDDEN = {
    "HF_TOKEN": TOKEN,
    "NCCL_PROXY_URL": "http://me:pr0xy-not-real@proxy:3128",
    "DS_API_KEY": "ds-n0t-real-n0t-real",
    "TORCH_HOME_TOKEN": "t0rch-not-real",
}
# Options of the job -> what makes its launcher copy variables.
COMMANDS = (
    ("run", "--dry-run", "--backend", "horovod", "--slots", "2"),
    ("run", "--dry-run", "--backend", "horovod", "--slots", "2", "--launcher", "mpirun"),
    ("run", "--dry-run", "--backend", "deepspeed", "--slots", "2", "--launcher", "deepspeed-openmpi"),
    ("run", "--dry-run", "--backend", "ddp", "--slots", "2"),
    ("cluster", "job-script", "slurm", "--backend", "horovod", "--nodes", "2", "--slots", "2"),
    ("cluster", "job-script", "mpijob", "--backend", "horovod", "--nodes", "2", "--slots", "2", "--image", "x/y"),
)


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HIDDEN.items():
        monkeypatch.setenv(name, value)


def assert_unseen(text: str) -> None:
    assert not [name for name, value in HIDDEN.items() if value in text]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: " ".join(argv[:2] + argv[-1:]))
def test_dry_runs_and_job_files(argv, capsys):
    main([*argv, "--device", "cpu", "--oversubscribe", "--preset", "tiny"])
    said = capsys.readouterr()
    assert_unseen(said.out + said.err)
    assert ("HF_TOKEN=***" in said.out) is (argv[0] == "run")


def test_the_doctor(capsys):
    for more in ((), ("--json",)):
        with pytest.raises(SystemExit):
            main(["cluster", "doctor", "--hosts", "localhost", "--no-links", *more])
        said = capsys.readouterr()
        assert_unseen(said.out + said.err)


def test_the_environments_record():
    assert_unseen(json.dumps(environment.environment()))


def test_a_runs_folder(tmp_path: Path):
    few = {"steps": 2, "warmup_steps": 0, "timing_warmup": 0, "global_batch": 2, "eval_samples": -1}
    job = Job(backend="single", preset="tiny", device="cpu", study="s", run="r", **few)
    folder = run_job(job, tmp_path)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert json.loads((folder / "result.json").read_text())["status"] == "ok"
    for path in files:
        assert_unseen(path.read_bytes().decode(errors="replace"))
