"""The README is true: its code is the tested code, its commands exist, its figures are the program's."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from harness.cli import cli
from harness.commands.tree import all_commands, load
from harness.publish.readme_blocks import fill

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CALLS = re.findall(r"^(harness [^\n]*?)(?: {2,}.*)?$", README, re.MULTILINE)


def test_the_engine_example_is_the_tested_file() -> None:
    example = (ROOT / "tests" / "backends" / "flat_engine.py").read_text().strip()
    assert example in README
    assert 30 <= len([line for line in example.splitlines() if line.strip()]) <= 60


def test_every_command_can_be_loaded() -> None:
    for name in all_commands():
        assert isinstance(load(name), click.Command), name


@pytest.mark.parametrize("call", CALLS)
def test_commands_of_the_readme_parse(call: str) -> None:
    words = shlex.split(call)
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None, words[1]
    while isinstance(command, click.Group):
        words = words[1:]
        command = command.get_command(click.Context(command), words[1])
        assert command is not None, call
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words[2:]:
        if word == "--":
            break
        if word.startswith("--"):
            assert word in known, f"{call}: {word}"


def test_the_two_commands_are_make_targets() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"compare", "test"} <= set(targets)
    assert "make " in (ROOT / ".ci" / "run").read_text()


def _changed_results() -> bool:
    """Whether results/ differs from what is committed: then it is the user's own, and the README is not about it."""
    status = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "results"]
    done = subprocess.run(status, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode != 0 or bool(done.stdout.strip())


@pytest.mark.skipif(_changed_results(), reason="results/ holds studies that are not committed")
def test_measured_blocks_are_what_the_program_writes(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(README)
    (tmp_path / "results").mkdir()
    for study in (ROOT / "results").iterdir():
        if study.is_dir():
            (tmp_path / "results" / study.name).symlink_to(study)
    fill(copy, tmp_path / "results")
    assert copy.read_text() == README, "run `harness results index`: README.md is older than results/"
