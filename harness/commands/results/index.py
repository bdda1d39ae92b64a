"""`harness results index`: results/README.md and the measured parts of README.md and docs/."""

from __future__ import annotations

import click

from harness.commands.options import results_option
from harness.job.options import results_root
from harness.publish import recommend_block, versions_block
from harness.publish.index import write_index
from harness.publish.readme_blocks import fill


@click.command()
@results_option
def index(results: str | None) -> None:
    """Write results/README.md from the studies that are there.

    Also the measured parts of README.md and of docs/results.md, docs/recommend.md and docs/install.md beside it, only
    between this program's own markers: a file without them is left alone.
    """
    root = results_root(results)
    click.echo(str(write_index(root)))
    project = root.parent
    pages = {
        "README.md": lambda page: fill(page, root),
        "docs/results.md": lambda page: fill(page, root),
        "docs/recommend.md": lambda page: recommend_block.fill(page, root),
        "docs/install.md": lambda page: versions_block.fill(page, project, root),
    }
    for name, filled in pages.items():
        if (project / name).is_file() and filled(project / name):
            click.echo(str(project / name))
