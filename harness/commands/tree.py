"""The command tree of `harness`: what each command is called, where its code lies, its line of the help.

This file imports none of them: a command is imported when it is called, so `harness --help` answers at once. A new
command is a file in this folder and a line here.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass

import click

from mpi.errors import UserError


class CommandError(UserError):
    """There is no such command; the line names the nearest one."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A part of the help. `name`: the group of its commands (``harness NAME COMMAND``), "" for those at the top.
    `commands`: name -> (module:attribute, the line of the help)."""

    name: str
    title: str
    commands: Mapping[str, tuple[str, str]]


TOPICS = (
    Topic(
        name="",
        title="Train and compare",
        commands={
            "run": ("run:run", "Train one job on one engine and record it."),
            "compare": ("compare:compare", "Run engines x workers x repeats, interleaved, and report them."),
            "recommend": (
                "recommend:recommend",
                "Say which engines fit a job, how fast, and on what basis.",
            ),
            "tune": ("tune:tune", "Find the fastest settings of each engine for a job, by short duels."),
            "report": ("report:report", "Render runs or studies as HTML, Markdown, CSV, JSON or LaTeX."),
        },
    ),
    Topic(
        name="results",
        title="Recorded runs",
        commands={
            "check": ("results.check:check", "Check a study's records, rules and figures again."),
            "diff": ("results.diff:diff", "Say in words what differs between two runs."),
            "export": ("results.export:export", "Send finished runs to TensorBoard, MLflow or Weights & Biases."),
            "watch": ("results.watch:watch", "Follow a running job in the terminal."),
            "index": ("results.index:index", "Write results/README.md from the studies that are there."),
        },
    ),
    Topic(
        name="experiment",
        title="Experiments, each for one question",
        commands={
            "duel": ("experiment.duel:duel", "Compare engines block by block on the same devices until one is faster."),
            "parity": ("experiment.parity:parity", "Prove that every engine computes what a single process computes."),
            "wire": ("experiment.wire:wire", "Measure the bytes each engine sends per step, and compare with theory."),
            "overhead": ("experiment.overhead:overhead", "Time the harness's step against hand-written loops."),
            "collectives": (
                "experiment.collectives:collectives",
                "Measure collectives through MPI, gloo, NCCL and both engines.",
            ),
            "max-model": ("experiment.max_model:max_model", "Find the largest model that each engine setting trains."),
            "scaling": ("experiment.scaling:scaling", "Measure scaling on virtual nodes with limited links."),
            "predict": ("experiment.predict:predict", "Fit a scaling study and extrapolate it to more nodes."),
        },
    ),
    Topic(
        name="model",
        title="Trained weights in use",
        commands={
            "eval": ("model.eval:evaluate", "Evaluate weights on a data set, with or without shots."),
            "quality": ("model.quality:quality", "Judge runs by decoder, memory and both, over all seeds."),
            "detect": ("model.detect:detect", "Score, localize and judge pictures."),
            "chat": ("model.chat:chat", "Talk about a picture in the terminal."),
            "serve": ("model.serve:serve", "Serve the detect-and-chat page (needs the extra 'gradio')."),
        },
    ),
    Topic(
        name="cluster",
        title="Hosts",
        commands={
            "doctor": ("cluster.doctor:doctor", "Find what is wrong with a cluster before a job starts."),
            "job-script": ("cluster.job_script:job_script", "Write a Slurm script or a Kubernetes MPIJob for a job."),
            "nodes": ("cluster.nodes:nodes", "Virtual nodes: several hosts with limited links on one machine."),
        },
    ),
    Topic(
        name="list",
        title="What there is to choose from",
        commands={
            "engines": ("list:engines", "List the engines and their settings."),
            "presets": ("list:presets", "List the models that can be trained."),
            "studies": ("list:studies", "List the studies that `harness compare NAME` runs."),
            "commands": ("list:commands", "Print the command reference (docs/commands.md)."),
        },
    ),
)
# Former names whose last word is another today; all others are found by their last word.
_RENAMED = {
    "fit": "experiment max-model",
    "comm": "experiment collectives",
    "template": "cluster job-script",
    "page": "model serve",
    "nodes scaling": "experiment scaling",
}


class LazyGroup(click.Group):
    """The commands of topics: each is imported when it is called, not when it is listed."""

    def __init__(self, *topics: Topic, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.topics = topics

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for topic in self.topics for name in ([topic.name] if self._below(topic) else topic.commands)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        for topic in self.topics:
            if self._below(topic):
                if topic.name == name:
                    return group_of(topic)
            elif name in topic.commands:
                return _imported(topic.commands[name][0])
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            if len(args) > 1 and " ".join(args[:2]) in _RENAMED:
                raise CommandError(instead_of(" ".join(args[:2])))
            before = [ctx.info_name or ""] if ctx.parent is not None else []
            raise CommandError(instead_of(" ".join([*before, args[0]])))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for topic in self.topics:
            head = f"{topic.name} " if self._below(topic) else ""
            with formatter.section(topic.title):
                formatter.write_dl([(head + name, text) for name, (_, text) in topic.commands.items()], col_max=24)

    def _below(self, topic: Topic) -> bool:
        """Whether the topic's commands stand in a group of their own, below this one."""
        return bool(topic.name) and len(self.topics) > 1


def group_of(topic: Topic) -> LazyGroup:
    """``harness TOPIC``."""
    return LazyGroup(topic, name=topic.name, help=f"{topic.title}: `harness {topic.name} COMMAND`.")


def all_commands() -> dict[str, str]:
    """Every command as it is typed after ``harness`` -> module:attribute below harness.commands."""
    return {f"{topic.name} {name}".strip(): where for topic in TOPICS for name, (where, _) in topic.commands.items()}


def load(name: str) -> click.Command:
    """The command that is typed as ``harness NAME``, such as ``experiment duel``. Raises KeyError."""
    return _imported(all_commands()[name])


def _imported(where: str) -> click.Command:
    module, attribute = where.split(":")
    return getattr(importlib.import_module(f"harness.commands.{module}"), attribute)


def instead_of(typed: str) -> str:
    """One line about a command that there is not, with the one that may be meant.

    Args:
        typed: the words after ``harness`` up to the one that is not known, such as ``fit`` or ``results chek``.
    """
    known = list(all_commands())
    last = typed.split()[-1]
    if typed in _RENAMED or last in _RENAMED:
        return f"'{typed}' is now 'harness {_RENAMED.get(typed) or _RENAMED[last]}'"
    if homes := [name for name in known if name.split()[-1] == last]:
        return f"'{typed}' is now 'harness {homes[0]}'"
    groups = [topic.name for topic in TOPICS if topic.name]
    words = {name.split()[-1]: name for name in known} | {name: name for name in [*groups, *known]}
    near = difflib.get_close_matches(typed, words, 1, 0.6) or difflib.get_close_matches(last, words, 1, 0.6)
    hint = f"did you mean 'harness {words[near[0]]}'?" if near else "`harness --help` lists all"
    return f"no command '{typed}': {hint}"
