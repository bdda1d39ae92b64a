"""`harness`: the command line. Sub-commands are imported only when they are called, so that `--help` is instant."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from harness.job.foreign_options import explain
from mpi.errors import UserError

# command -> (module:attribute, the one line of `harness --help`)
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("harness.commands.run:run", "Train one job on one engine and record it."),
    "compare": (
        "harness.commands.compare:compare",
        "Run engines x workers x repeats, interleaved, and report them side by side.",
    ),
    "duel": (
        "harness.experiments.duels.run:duel",
        "Set engines beside each other, block by block, until it is decided.",
    ),
    "parity": (
        "harness.experiments.parity.run:parity",
        "Prove that every engine computes what a single process computes.",
    ),
    "wire": (
        "harness.experiments.wire.run:wire",
        "Measure the bytes each engine puts on the wire in a step, beside ring theory.",
    ),
    "overhead": (
        "harness.experiments.overhead.run:overhead",
        "Time the harness's step against hand-written loops, interleaved.",
    ),
    "report": ("harness.report.formats:report", "Render runs or studies as HTML, Markdown, CSV, JSON or LaTeX."),
    "check": ("harness.analysis.check:check", "Re-check a study's records, rules and figures."),
    "diff": ("harness.analysis.diff:diff", "Say in words what differs between two runs."),
    "index": ("harness.publish.index:index", "Write results/README.md from the studies that are there."),
    "watch": ("harness.tracking.live_view:watch_command", "Follow a running job in the terminal."),
    "export": ("harness.tracking.trackers:export", "Send finished runs to TensorBoard, MLflow or Weights & Biases."),
    "eval": ("harness.commands.eval:evaluate", "Evaluate weights on a data set, with or without shots."),
    "quality": (
        "harness.commands.quality:quality",
        "Judge runs by decoder, memory and both, mean and spread over seeds.",
    ),
    "detect": ("harness.commands.detect:detect", "Score, localize and judge pictures with trained weights."),
    "chat": ("harness.commands.chat:chat", "Talk about a picture with trained weights, in the terminal."),
    "page": ("harness.commands.page:page", "Serve the detect-and-chat page (needs the extra 'gradio')."),
    "nodes": ("harness.cluster.virtual_nodes:nodes", "Virtual nodes: several hosts with limited links on one machine."),
    "doctor": ("harness.cluster.doctor:doctor", "Find what is wrong with a cluster before a job starts."),
    "fit": (
        "harness.experiments.max_model.run:fit",
        "Find the largest model that each engine setting trains on so many workers.",
    ),
    "comm": (
        "harness.experiments.collectives.run:comm",
        "Measure collectives through MPI, gloo, NCCL and both engines.",
    ),
    "template": ("harness.cluster.job_scripts:template", "Write a Slurm script or a Kubernetes MPIJob for a job."),
    "predict": (
        "harness.experiments.prediction.run:predict",
        "Fit a model of the step to a scaling study and draw it to more nodes.",
    ),
}


class LazyGroup(click.Group):
    """A group that imports a sub-command when it is called, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name][0].split(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="anomaly-distbench", prog_name="harness")
def cli() -> None:
    """Horovod or DeepSpeed, and for which job? The same AnomalyGPT training job on interchangeable engines."""


def main(argv: list[str] | None = None) -> Any:
    """Console entry point: errors a user can cause are one line and exit code 2; a failed job exits with 1."""
    try:
        # What a command ends with by click's Exit comes back as a value here.
        code = cli.main(args=argv, standalone_mode=False)
        if isinstance(code, int) and code:
            sys.exit(code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        explain(error).show()
        sys.exit(2)
    except Exception as error:
        if isinstance(error, UserError):
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
