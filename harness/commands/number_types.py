"""Types of numbers that several commands take: out of range is one line, before anything is started."""

from __future__ import annotations

import click

COUNT = click.IntRange(min=1)
WHOLE = click.IntRange(min=0)
SECONDS = click.FloatRange(min=0, min_open=True)
AMOUNT = click.FloatRange(min=0)
SEED = click.IntRange(0, 2**32 - 1)  # as a job's
