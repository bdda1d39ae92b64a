"""`harness`: the command line. Its commands stand in `harness.commands.tree`, and are imported when they are called."""

from __future__ import annotations

import sys
from typing import Any

import click

from harness.commands.tree import TOPICS, LazyGroup
from harness.job.foreign_options import explain
from mpi.errors import UserError

cli = LazyGroup(
    *TOPICS,
    name="harness",
    help="Horovod or DeepSpeed, and for which job? The same training job on interchangeable engines.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
cli = click.version_option(package_name="anomaly-distbench", prog_name="harness")(cli)


def main(argv: list[str] | None = None) -> Any:
    """Console entry point: errors a user can cause are one line and exit code 2; a failed job exits with 1."""
    try:
        # What a command ends with by click's Exit comes back as a value here.
        code = cli.main(args=argv, prog_name="harness", standalone_mode=False)
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
