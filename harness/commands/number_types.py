"""Types of numbers and times that several commands take: a wrong one is one line, before anything is started."""

from __future__ import annotations

import click

from harness.job.options import Time

COUNT = click.IntRange(min=1)
WHOLE = click.IntRange(min=0)
TIME = Time()
TIME_OR_NONE = Time(zero=True)
AMOUNT = click.FloatRange(min=0)
SEED = click.IntRange(0, 2**32 - 1)  # as a job's
