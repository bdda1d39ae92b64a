"""`harness results index`: results/README.md and the measured parts of README.md and docs/results.md."""

from __future__ import annotations

import click

from harness.commands.options import results_option
from harness.job.options import results_root
from harness.publish.index import write_index
from harness.publish.readme_blocks import fill


@click.command()
@results_option
def index(results: str | None) -> None:
    """Write results/README.md from the studies that are there.

    Also the measured parts of README.md and docs/results.md beside it, only between this program's own markers: a file
    without them is left alone.
    """
    root = results_root(results)
    click.echo(str(write_index(root)))
    for page in (root.parent / "README.md", root.parent / "docs" / "results.md"):
        if page.is_file() and fill(page, root):
            click.echo(str(page))
