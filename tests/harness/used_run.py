"""A really trained tiny run on a tiny data set, made once a test process, and the command line in this process."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from core_model.data.generated_sets import write_mvtec
from harness import cli

ONCE = pytest.mark.xdist_group("trained")  # a test process trains it once: its tests go to the same one


@functools.cache
def workplace() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="harness-used-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def data() -> Path:
    """MVTec's layout: one category, 'plate', with dark discs as defects."""
    return write_mvtec(workplace() / "data", size=(72, 56), good=4, defective=2)


@functools.cache
def trained() -> Path:
    """Run folder of three steps on one worker, evaluated with two shots by the worker itself."""
    command = [sys.executable, "-m", "harness", "run", "--backend", "single", "--preset", "tiny"]
    command += ["--data", f"mvtec:{data()}", "--steps", "3", "--global-batch", "4", "--shots", "2", "--study", "use"]
    command += ["--run-name", "tiny", "--results", str(workplace() / "results")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return workplace() / "results" / "use" / "tiny"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """`harness ARGUMENTS` in this process: exit code, standard output, standard error."""
    capsys.readouterr()
    code = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
