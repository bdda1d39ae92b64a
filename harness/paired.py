"""Is a difference real? Paired, interleaved comparison of two engines, with a 95 % interval.

Runs are paired by repeat: within a repeat the engines ran right after one another (A B, then B A), so a slow drift of
the machine hits both and cancels in the ratio. Ratios of throughputs are compared on the log scale, where "4 % faster"
and "4 % slower" are symmetric; quality figures by their plain difference.

- n >= 2 pairs: Student's t interval over the pairs (n - 1 degrees of freedom: honestly wide where pairs are few);
- one pair: a moving-block bootstrap of the steps inside the two runs (blocks keep the correlation between neighbouring
  steps, Kuensch 1989). It says nothing of the variation between runs, and the sentence says that.

With several comparisons at once, some would come out "real" by chance alone: the intervals of one cell are widened so
that all of them hold together with 95 % (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
_DRAWS = 2000

_UNBOUNDED = 100.0  # an interval that reaches to a 100th and to 100 times bounds nothing


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much `b` is above `a`: a share (0.04 = 4 % more) where `relative`, else in the figure's own unit. `low` and
    `high` bound it with 95 % confidence (None where nothing bounds it). `real`: zero is outside."""

    a: str
    b: str
    value: float
    low: float | None
    high: float | None
    pairs: int
    relative: bool = True
    comparisons: int = 1  # that the interval holds for together

    @property
    def real(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def interval(self, digits: int = 1) -> str:
        """``95 % CI 2.0 to 6.1 %``."""
        if self.low is None or self.high is None:
            return "no interval"
        low, high = (self.low * 100, self.high * 100) if self.relative else (self.low, self.high)
        return f"95 % CI {low:.{digits}f} to {high:.{digits}f}{' %' if self.relative else ''}"

    def basis(self) -> str:
        """What the interval stands on."""
        return f"{self.pairs} interleaved pairs" if self.pairs > 1 else "steps of one run each: repeat it to be sure"


def relative_difference(a: str, b: str, rates: Sequence[tuple[float, float]], *, comparisons: int = 1) -> Difference:
    """`b` against `a` from pairs of positive figures (a's, b's), one pair a repeat."""
    logs = np.log([second / first for first, second in rates])
    centre = float(logs.mean())
    half = _half_width(logs, comparisons)
    if half is not None and half > math.log(_UNBOUNDED):  # two pairs, and many comparisons that must hold together
        half = None
    return Difference(
        a=a,
        b=b,
        value=math.expm1(centre),
        low=None if half is None else math.expm1(centre - half),
        high=None if half is None else math.expm1(centre + half),
        pairs=len(rates),
        comparisons=comparisons,
    )


def plain_difference(a: str, b: str, figures: Sequence[tuple[float, float]], *, comparisons: int = 1) -> Difference:
    """`b` minus `a` from pairs of figures, one pair a seed."""
    gaps = np.array([second - first for first, second in figures], dtype=float)
    centre, half = float(gaps.mean()), _half_width(gaps, comparisons)
    low, high = (None, None) if half is None else (centre - half, centre + half)
    return Difference(
        a=a, b=b, value=centre, low=low, high=high, pairs=len(figures), relative=False, comparisons=comparisons
    )


def step_difference(
    a: str, b: str, a_step_s: Sequence[float], b_step_s: Sequence[float], *, comparisons: int = 1, seed: int = 0
) -> Difference:
    """Throughput of `b` against `a` from the step times (s) of one run each, of equal samples per step."""
    first, second = np.asarray(a_step_s, dtype=float), np.asarray(b_step_s, dtype=float)
    value = float(np.median(first) / np.median(second) - 1.0)
    if min(first.size, second.size) < 8:
        return Difference(a=a, b=b, value=value, low=None, high=None, pairs=1)
    rng = np.random.default_rng(seed)
    ratios = _block_medians(first, rng) / _block_medians(second, rng) - 1.0
    tail = 100 * (1 - LEVEL) / 2 / comparisons
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Difference(a=a, b=b, value=value, low=float(low), high=float(high), pairs=1, comparisons=comparisons)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and the half width of its 95 % interval over seeds (None for a single one)."""
    array = np.asarray(values, dtype=float)
    return float(array.mean()), _half_width(array)


def _half_width(values: np.ndarray, comparisons: int = 1) -> float | None:
    """Half of Student's 95 % interval of the mean, None below two values; wider for several `comparisons`."""
    if values.size < 2:
        return None
    from scipy.special import stdtrit  # the inverse t distribution, without scipy.stats' second of import time

    return float(
        stdtrit(values.size - 1, 1 - (1 - LEVEL) / 2 / comparisons) * values.std(ddof=1) / math.sqrt(values.size)
    )


def _block_medians(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Medians of `_DRAWS` moving-block resamples, shape (_DRAWS,)."""
    length = max(1, round(values.size ** (1 / 3)))
    blocks = math.ceil(values.size / length)
    starts = rng.integers(0, values.size - length + 1, size=(_DRAWS, blocks))
    index = (starts[..., None] + np.arange(length)).reshape(_DRAWS, -1)[:, : values.size]
    return np.median(values[index], axis=1)
