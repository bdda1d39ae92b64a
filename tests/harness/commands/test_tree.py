"""The command tree: every command is where its help says, old and mistyped names get the nearest one, the reference is
the program's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from harness.commands.tree import TOPICS, all_commands, instead_of, load
from tests.harness.commands.test_bad_input import refused

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_a_command_is_called_as_it_is_typed() -> None:
    for name in all_commands():
        assert load(name).name == name.split()[-1], name


@pytest.mark.parametrize(
    ("typed", "instead"),
    [
        ("fit --workers 2", "'fit' is now 'harness experiment max-model'"),
        ("comm", "'comm' is now 'harness experiment collectives'"),
        ("duel", "'duel' is now 'harness experiment duel'"),
        ("check results/x", "'check' is now 'harness results check'"),
        ("nodes up 2", "'nodes' is now 'harness cluster nodes'"),
        ("nodes scaling", "'nodes scaling' is now 'harness experiment scaling'"),
        ("page x", "'page' is now 'harness model serve'"),
        ("template slurm", "'template' is now 'harness cluster job-script'"),
        ("comapre", "no command 'comapre': did you mean 'harness compare'?"),
        ("results chek", "no command 'results chek': did you mean 'harness results check'?"),
        ("experiment fit", "'experiment fit' is now 'harness experiment max-model'"),
        ("qqq", "no command 'qqq': `harness --help` lists all"),
    ],
)
def test_an_old_or_mistyped_name(typed: str, instead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *typed.split()) == f"error: {instead}"


def test_no_name_that_there_is_is_called_moved() -> None:
    for name in all_commands():
        assert instead_of(name.split()[-1]).endswith(f"'harness {name}'")


def test_shared_options_mean_the_same_everywhere() -> None:
    """One option, one kind: --results and --study take text, --json, --dry-run and --resume are switches."""
    switches = {"--json", "--dry-run", "--render"}
    for name in all_commands():
        command = load(name)
        for option in command.params:
            if isinstance(option, click.Option):
                for flag in switches & set(option.opts):
                    assert option.is_flag, f"harness {name} {flag}"
                assert "--engines" not in option.opts, f"harness {name}: engines are --backends"


def test_the_help_lists_every_topic() -> None:
    assert [topic.name for topic in TOPICS] == ["", "results", "experiment", "model", "cluster", "list"]


def test_the_reference_is_the_programs() -> None:
    # In a process of its own: click keeps a command's help option from its first use, whoever made that.
    argv = [sys.executable, "-m", "harness", "list", "commands"]
    done = subprocess.run(argv, cwd=DOCS.parent, capture_output=True, text=True, timeout=120, check=True)
    assert (DOCS / "commands.md").read_text() == done.stdout, "run `harness list commands > docs/commands.md`"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("harness exp", "plain,experiment"),
        ("harness experiment max", "plain,max-model"),
        ("harness run --backend ho", "plain,horovod"),
        ("harness compare --backends ddp,ho", "plain,ddp,horovod"),
        ("harness compare zero", "plain,zero-stages"),
        ("harness run --time-l", "plain,--time-limit"),
    ],
)
def test_the_tab_key_completes_what_the_documents_promise(typed: str, offered: str) -> None:
    words = {"_HARNESS_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    argv = [sys.executable, "-m", "harness"]
    done = subprocess.run(
        argv, cwd=DOCS.parent, env={**os.environ, **words}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == [offered], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_every_documented_shell_is_made(shell: str) -> None:
    text = (DOCS / "install.md").read_text()
    assert f"_HARNESS_COMPLETE={shell}_source harness" in text
    argv, environ = [sys.executable, "-m", "harness"], {**os.environ, "_HARNESS_COMPLETE": f"{shell}_source"}
    done = subprocess.run(argv, cwd=DOCS.parent, env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert f"_HARNESS_COMPLETE={shell}_complete" in done.stdout
