"""The command tree: every command is where its help says, old and mistyped names get the nearest one, the reference is
the program's."""

from __future__ import annotations

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
