"""`harness results index`: results/README.md and the measured part of the README."""

from __future__ import annotations

import click

from harness.commands.options import results_option
from harness.job.options import results_root
from harness.publish.index import write_index
from harness.publish.readme_blocks import fill


@click.command()
@results_option
def index(results: str | None) -> None:
    """Write results/README.md, and the measured part of the README beside results/, from the studies that are there.

    Only between this program's own markers; a README.md without them is left alone.
    """
    root = results_root(results)
    click.echo(str(write_index(root)))
    readme = root.parent / "README.md"
    if readme.is_file() and fill(readme, root):
        click.echo(str(readme))
