"""Which shapes the batches to come will have, from the lengths of some texts: their CUDA graphs are captured before the
first step. A capture takes half a second; within a timed step it would be taken for training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from core_model.language.ragged import longest_for, rows_for

SPREAD = 4.0  # standard deviations of a batch's number of tokens that are prepared for, on either side


def expected_rows(lengths: Sequence[int], *, batch: int, frame: int) -> list[tuple[int, int]]:
    """(row's length, longest sample) of rows of `batch` samples, the largest first.

    Args:
        lengths: of some texts. frame: positions before each text.
    """
    mean = batch * (frame + statistics.fmean(lengths))
    spread = SPREAD * statistics.pstdev(lengths) * math.sqrt(batch)
    low = max(batch * (frame + min(lengths)), math.floor(mean - spread))
    high = min(batch * (frame + max(lengths)), math.ceil(mean + spread))
    found = set()
    tokens = low
    while True:
        rows = rows_for(tokens)
        found |= {(rows, longest_for(frame + length, rows)) for length in _longest(lengths, batch)}
        if rows >= high:
            return sorted(found, reverse=True)
        tokens = rows + 1


def expected_lengths(lengths: Sequence[int], *, batch: int, frame: int, step: int) -> list[int]:
    """Lengths of padded batches, rounded up to a multiple of `step`, the largest first."""
    return sorted({-(-(frame + length) // step) * step for length in _longest(lengths, batch)}, reverse=True)


def step_for(lengths: Sequence[int], *, batch: int, frame: int, least: int, graphs: int) -> int:
    """The multiple, `least` doubled as often as need be, to which lengths are rounded up so that padded batches have
    `graphs` different ones at most."""
    step = least
    while len(expected_lengths(lengths, batch=batch, frame=frame, step=step)) > graphs:
        step *= 2
    return step


def _longest(lengths: Sequence[int], batch: int) -> list[int]:
    """Lengths that the longest text of a batch may have: of several texts it is hardly below the median."""
    return [length for length in lengths if batch == 1 or length >= statistics.median(lengths)]
