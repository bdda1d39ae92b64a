"""Options that mean the same in every command that has them, written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from harness.commands.list_types import COUNTS, ENGINES, MODES, PRECISIONS
from harness.job.options import FieldType

_F = Callable[..., Any]

RESULTS_HELP = "Results folder (default: $HARNESS_RESULTS, or the repository's results/)."

results_option = click.option("--results", type=click.Path(), help=RESULTS_HELP)
workers_option = click.option(
    "--workers", metavar="LIST", type=COUNTS, default="1,2", show_default=True, help="Numbers of workers: 1,2,4."
)
accumulation_option = click.option(
    "--accumulation", metavar="LIST", type=COUNTS, default="1", show_default=True, help="Accumulation steps: 1,4."
)
precision_option = click.option(
    "--precision",
    metavar="LIST",
    type=PRECISIONS,
    default="fp32",
    show_default=True,
    help="Precisions, of fp32, bf16, fp16.",
)
precision_mode_option = click.option(
    "--precision-mode",
    metavar="LIST",
    type=MODES,
    default="matched",
    show_default=True,
    help="Precision modes, of matched, native.",
)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be run; start nothing.")
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other job field; model.KEY, data_options.KEY."
)


def backends_option(default: Any, text: str = "") -> Callable[[_F], _F]:
    """--backends of an experiment, as a list[str] named ``backends``.

    Args:
        default: the engines where none are given.
        text: what else there is to know of them.
    """
    how = "Engines: NAME or NAME:KEY=VALUE+KEY=VALUE, commas between them; deepspeed:2 is ZeRO stage 2."
    help_ = f"{how} {text}".strip()
    return click.option("--backends", metavar="LIST", type=ENGINES, default=default, show_default=True, help=help_)


def study_option(default: str, *, optional: bool = False) -> Callable[[_F], _F]:
    """--study of an experiment: the folder in results/ that its record goes to.

    Args:
        default: its name where none is given.
        optional: whether ``--study ''`` writes no record.
    """
    text = "Folder in results/ for the record" + (" ('' = none)." if optional else ".")
    return click.option("--study", default=default, show_default=True, help=text)


def time_limit_option(command: _F) -> _F:
    """--time-limit of a command that launches, but does not have the options of a job: the limit of one launch."""
    text = "Limit of one launch, which is then ended and counts as failed: 90s, 10m; 0 = none."
    kind = FieldType("time_limit_s", "--time-limit")
    return click.option("--time-limit", "time_limit_s", type=kind, default="0", show_default=True, help=text)(command)
