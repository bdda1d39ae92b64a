"""The command reference, docs/commands.md, out of the commands themselves: ``harness list commands``."""

from __future__ import annotations

import click

from harness.commands.tree import TOPICS, load

HEAD = """# Commands

Written by `harness list commands > docs/commands.md`: do not edit. `--help` behind any command says the same.

- Engines are written one way everywhere: `NAME`, `NAME:KEY=VALUE+KEY=VALUE`, `NAME@WORKERS`; `deepspeed:2` is short for
  `deepspeed:zero_stage=2`. Lists have commas: `--backends ddp,horovod,deepspeed:2`.
- `--results` is the folder that holds the studies, `--study` the folder in it that a command writes. `--dry-run` starts
  nothing, `--json` prints for programs, `--set KEY=VALUE` sets any field of the job.
- `--timeout` limits any single wait, `--time-limit` a run, `--budget` what a whole command measures. Times have units:
  `90s`, `10m`, `2h`; a bare number is in seconds.
- A mistake is one line that names the remedy, with exit code 2. Exit code 1: something was run and failed.

The Tab key completes commands, options, engines and studies: [install](install.md#completion-with-the-tab-key).
"""


def page() -> str:
    """docs/commands.md as Markdown."""
    parts = [HEAD]
    for topic in TOPICS:
        parts.append(f"## {topic.title}\n")
        for name in topic.commands:
            path = f"{topic.name} {name}".strip()
            parts += _entries(path, load(path))
    return "\n".join(parts)


def _entries(path: str, command: click.Command) -> list[str]:
    """A command's entry, and those of its sub-commands."""
    root = click.Context(click.Group("harness"), info_name="harness", help_option_names=["-h", "--help"])
    context = click.Context(command, info_name=path, parent=root, terminal_width=110)
    text = command.get_help(context).rstrip()
    found = [f"### harness {path}\n", f"```\n{text}\n```\n"]
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            found += _entries(f"{path} {name}", inner)
    return found
