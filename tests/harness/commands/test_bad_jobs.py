"""Jobs of a user's that cannot work, by the command that he types: one line that names the thing and the remedy, exit
code 2, before any rank is started, and nothing left behind.

Each is really built and tried (two processes a case). What the line says of every single rule is held in
tests/core_model/user_job/test_checks.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from harness.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HEAD = """
import os, time
import torch
from torch import nn
from torch.utils.data import TensorDataset, default_collate
from core_model.user_job import TrainingJob

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
    def forward(self, batch):
        x, y = batch
        return (self.layer(x)[:, 0] - y).square().mean()

data = TensorDataset(torch.arange(64.0).view(16, 4) / 64, torch.arange(16.0) / 16)

def job(**parts):
    return TrainingJob(**{"module": Net(), "dataset": data, "collate": default_collate, **parts})
"""
ODD = "class Odd(Net):\n    def forward(self, b): return {}\ndef make_job(): return job(module=Odd())"
SPARE = """
class Odd(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)

def make_job(): return job(module=Odd())
"""
PLAIN = "def make_job(width=1): return job()"

# What is wrong -> (the file's end, options, what the line says of it).
BAD: dict[str, tuple[str, tuple[str, ...], str]] = {
    "no function": ("", (), "has no function 'make_job': it has job"),
    "syntax": ("def make_job(:", (), "cannot be imported: SyntaxError"),
    "raises": ("def make_job(): raise OSError('no disk')", (), "raised OSError: no disk (my_job.py, line"),
    "not a job": ("def make_job(): return Net()", (), "returned a Net: return core_model.user_job.TrainingJob("),
    "unknown setting": (PLAIN, ("--set", "model.widht=3"), "did you mean 'width'?"),
    "sum, not mean": (ODD.format("16 * len(b[1]) * super().forward(b)"), (), "not the mean over the samples"),
    "not a number": (ODD.format("super().forward(b) * float('nan')"), (), "loss of the first batch is nan"),
    "no gradient": (ODD.format("super().forward(b).detach()"), (), "the loss has no gradient"),
    "parameter unused": (SPARE, (), "parameter 'spare.weight' and 1 more never gets a gradient"),
    "nothing trained": ("def make_job(): return job(module=Net().requires_grad_(False))", (), "no trainable parameter"),
    "unpicklable": (
        "def make_job(): return job(collate=lambda s: default_collate(s))",
        (),
        "collate cannot be pickled",
    ),
    "draws in collate": (
        "def odd(s): return [default_collate(s)[0], torch.rand(len(s))]\ndef make_job(): return job(collate=odd)",
        (),
        "collate draws random numbers",
    ),
    "weights by rank": (
        "def make_job():\n    torch.manual_seed(int(os.environ['RANK']))\n    return job(module=Net())",
        (),
        "two builds with the same seed have different start weights",
    ),
    "data by time": (
        "def make_job(): return job(dataset=TensorDataset(torch.full((16, 4), time.time_ns() % 1e6), torch.ones(16)))",
        (),
        "two builds with the same seed have different data",
    ),
    "too few samples": (PLAIN, ("--global-batch", "32"), "has 16 samples, a step takes 32: use --global-batch 16"),
    "dies": ("def make_job(): os._exit(7)", (), "trying it ended with exit code 7"),
    "hangs": ("def make_job(): time.sleep(600)", ("--timeout", "8"), "did not end within 8 s: raise --timeout"),
    "unknown hint": ("def make_job(): return job(optimizer={'lrr': 1})", (), "did you mean 'lr'?"),
    "evaluate": (
        "def odd(module): return 3.0\ndef make_job(): return job(evaluate=odd)",
        (),
        "return a dict of numbers",
    ),
    "cannot be compiled": (PLAIN, ("--compile",), "none of this project's transformer blocks"),
    "cannot recompute": (PLAIN, ("--activation-checkpointing",), "cannot recompute activations"),
    "a preset too": (PLAIN, ("--preset", "tiny"), "--model and --preset exclude each other"),
    "data beside it": (PLAIN, ("--data", "textures"), "brings its own data set"),
    "weights of a hub": (PLAIN, ("--random-weights",), "decides its own weights"),
}


def refused(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    before = psutil.Process().children(recursive=True)  # such as a fork server that an earlier test began
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    said = capfd.readouterr()
    assert stop.value.code == 2, said
    (line,) = (said.out + said.err).strip().splitlines()
    assert not set(psutil.Process().children(recursive=True)) - set(before)
    return line


def options(file: Path, results: Path) -> list[str]:
    return ["--model", f"{file}:make_job", "--results", str(results)]


def written(folder: Path, end: str) -> Path:
    file = folder / "my_job.py"
    file.write_text(f"{HEAD}\n{end}\n")
    return file


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_job_is_one_line(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    end, more, said = BAD[kind]
    file, results = written(tmp_path, end), tmp_path / "results"
    line = refused(capfd, "run", *options(file, results), *more)
    assert said in line
    assert line.startswith("error: ")
    assert not results.exists(), "something was written"


@pytest.mark.parametrize("command", [
    ("compare", "--backends", "ddp,horovod", "--workers", "2"),
    ("experiment", "parity", "--workers", "2"),
    ("experiment", "overhead", "--workers", "2"),
    ("experiment", "wire", "--hostfile", "HOSTS"),
    ("experiment", "duel", "--backends", "ddp,horovod", "--workers", "2"),
])  # fmt: skip
def test_every_command_that_takes_a_job_refuses_it(
    command: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, results = written(tmp_path, BAD["no gradient"][0]), tmp_path / "results"
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\nc slots=1\nd slots=1\n")
    argv = [str(tmp_path / "hosts") if word == "HOSTS" else word for word in command]
    assert "the loss has no gradient" in refused(capfd, *argv, *options(file, results))
    assert not list(results.rglob("*.json")) if results.exists() else True


def test_a_model_of_transformers_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for more, said in (
        (("--model", "hf:gpt2", "--random-weights", "--compile"), "none of this project's transformer blocks"),
        (("--model", "hf:no-such-model", "--random-weights"), "shapes that need no files"),
        (("--model", "hf:", "--random-weights"), "write hf:NAME or hf:FOLDER"),
        (("--model", "gpt2"), "write FILE.py:FUNCTION or hf:NAME"),
        (("--model", "/nowhere/my_job.py"), "there is no such file"),
    ):
        assert said in refused(capfd, "run", *more, "--results", str(tmp_path / "results"))
    assert not (tmp_path / "results").exists()


def test_by_the_installed_command(tmp_path: Path) -> None:
    """The same from a shell: nothing but the line, on stderr."""
    file = written(tmp_path, BAD["sum, not mean"][0])
    argv = [sys.executable, "-m", "harness", "run", *options(file, tmp_path / "results")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: my_job.py:make_job: the loss is not the mean over the samples")
    assert done.stderr.count("\n") == 1


def test_a_run_goes_on_only_with_the_file_that_it_was_begun_with(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The seal of a checkpoint holds a hash of the file and of the modules beside it."""
    file, helper = written(tmp_path, "import beside\n" + PLAIN), tmp_path / "beside.py"
    helper.write_text("SCALE = 1\n")
    argv = ["run", *options(file, tmp_path / "results"), "--run-name", "mine", "--global-batch", "4"]
    argv += ["--checkpoint-every", "2", "--set", "schedule=constant", "--steps"]
    with pytest.raises(SystemExit) as stop:
        main([*argv, "3"])  # ends after the checkpoint of step 2
    assert stop.value.code in (0, None), capfd.readouterr()
    capfd.readouterr()
    for path in (file, helper):
        content = path.read_text()
        path.write_text(content + "# another thought\n")
        line = refused(capfd, *argv, "4", "--resume")
        assert f"step-000002: {path.name} has been changed since it was saved: put its old content back" in line
        path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        main([*argv, "4", "--resume"])
    assert stop.value.code in (0, None), capfd.readouterr()
