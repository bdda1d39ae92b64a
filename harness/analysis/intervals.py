"""Is a difference real? Paired, interleaved comparison of two engines, with a 95 % interval.

Runs are paired by repeat: within a repeat the engines ran right after one another (A B, then B A), so a slow drift of
the machine hits both and cancels in the ratio. Ratios of throughputs are compared on the log scale, where "4 % faster"
and "4 % slower" are symmetric; quality figures by their plain difference.

- n >= 2 pairs: Student's t interval over the pairs (n - 1 degrees of freedom: honestly wide where pairs are few);
- three or more engines, each in two or more repeats: one additive model of all of them, log(throughput) = engine +
  repeat (a randomized complete block design with the repeats as blocks, by least squares, so missing runs do no harm).
  Its residuals say how much the machine scatters with (engines - 1) x (repeats - 1) degrees of freedom instead of
  repeats - 1, and Tukey and Kramer's studentized range holds all the comparisons together. It takes the scatter to be
  the same share of the throughput for every engine; where it clearly is not (one engine jumps by a third, another
  repeats itself to a thousandth), each two engines are judged by their own pairs. For two engines both are Student's
  interval over the pairs;
- one pair: no interval. What its two runs scatter by from step to step is not what a second pair would scatter by:
  starts differ (placement, memory layout, load of the machine), and nothing of that is in them.

With several comparisons at once, some would come out "real" by chance alone: the intervals of one cell are widened so
that all of them hold together with 95 % (Tukey and Kramer for the model above, Bonferroni elsewhere). Both widen
Student's distribution, whose tails are known, not quantiles of resamples, of which only a few would lie so far out.

A difference is "real" where its interval excludes zero, "alike" where all of it lies within a margin that nobody would
choose by, and undecided everywhere else: that zero is inside an interval does not show that two engines are equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from harness.common.formatting import plural

LEVEL = 0.95
ALIKE = 0.05  # a difference in speed that is smaller than this for certain is none that anybody would choose by
ALIKE_QUALITY = 0.02  # the same of a share: an AUROC, an accuracy
UNEQUAL = 0.01  # how improbable equal scatter must be
_DRAWS = 2000  # of a 95 % interval: fifty lie beyond each of its ends

_UNBOUNDED = 100.0  # an interval that reaches to a 100th and to 100 times bounds nothing


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much `b` is above `a`: a share (0.04 = 4 % more) where `relative`, else in the figure's own unit. `low` and
    `high` bound it with 95 % confidence (None where nothing bounds it)."""

    a: str
    b: str
    value: float
    low: float | None
    high: float | None
    pairs: int
    relative: bool = True
    comparisons: int = 1  # that the interval holds for together
    engines: int = 2  # whose runs say how much the machine scatters
    duels: bool = False  # `pairs` are duels

    @property
    def real(self) -> bool:
        """Zero is outside of the interval, and more than one pair stands behind it."""
        if self.low is None or self.high is None or self.pairs < 2:
            return False
        return self.low > 0 or self.high < 0

    @property
    def alike(self) -> bool:
        """Whether they are equivalent, from whichever side it is told: zero is inside, and the whole interval within a
        factor of 1 + ALIKE (of shares: ALIKE_QUALITY to either side)."""
        if self.low is None or self.high is None or self.pairs < 2 or self.real:
            return False
        if not self.relative:
            return self.low > -ALIKE_QUALITY and self.high < ALIKE_QUALITY
        return (1 + ALIKE) * (1 + self.low) > 1 and self.high < ALIKE

    @property
    def undecided(self) -> bool:
        """Neither real nor alike."""
        return not self.real and not self.alike

    @property
    def word(self) -> str:
        """What the interval shows, for a table."""
        return "real" if self.real else "alike" if self.alike else "undecided"

    def interval(self, digits: int = 1) -> str:
        """``95 % CI 2.0 to 6.1 %``."""
        prefix = "" if self.low is None or self.high is None else "95 % CI "
        return prefix + self.bounds(digits)

    def bounds(self, digits: int = 1) -> str:
        """``2.0 to 6.1 %``."""
        if self.low is None or self.high is None:
            return "no interval"
        low, high = (self.low * 100, self.high * 100) if self.relative else (self.low, self.high)
        return f"{low:.{digits}f} to {high:.{digits}f}{' %' if self.relative else ''}"

    def basis(self) -> str:
        """What the interval stands on."""
        if self.duels:
            return plural(self.pairs, "duel")
        if self.engines > 2:
            return f"{self.pairs} interleaved repeats of {self.engines} engines"
        return f"{self.pairs} interleaved pairs" if self.pairs > 1 else "one pair: an interval needs 2 repeats"


def relative_difference(a: str, b: str, rates: Sequence[tuple[float, float]], *, comparisons: int = 1) -> Difference:
    """`b` against `a` from pairs of positive figures (a's, b's), one pair a repeat."""
    logs = np.log([second / first for first, second in rates])
    ends = _unlogged(float(logs.mean()), _half_width(logs, comparisons))
    return Difference(a=a, b=b, **ends, pairs=len(rates), comparisons=comparisons)


def block_differences(rates: Mapping[str, Mapping[Any, float]]) -> list[Difference]:
    """Every two of three or more engines, from the positive figures (by repeat) of each, in one additive model.

    Engines with fewer than two repeats are left out. Empty where two engines or fewer are left, where the repeats do
    not connect them, where nothing is left over to estimate the scatter from, or where the engines scatter unequally.
    """
    labels = [label for label, figures in rates.items() if len(figures) > 1]
    blocks = list(dict.fromkeys(block for label in labels for block in rates[label]))
    rows = [(labels.index(label), blocks.index(block)) for label in labels for block in rates[label]]
    design = np.zeros((len(rows), len(labels) + len(blocks)))
    for row, (label, block) in enumerate(rows):
        design[row, [label, len(labels) + block]] = 1
    rank = np.linalg.matrix_rank(design) if rows else 0
    freedom = len(rows) - int(rank)
    if len(labels) < 3 or rank < len(labels) + len(blocks) - 1 or freedom < 1:
        return []
    logs = np.log([rates[labels[label]][blocks[block]] for label, block in rows])
    inverse = np.linalg.pinv(design.T @ design)  # of deficient rank: only contrasts have a meaning, and they are exact
    effects = inverse @ design.T @ logs
    if _scatter_unequally({label: rates[label] for label in labels}):
        return []
    scatter = math.sqrt(float(((logs - design @ effects) ** 2).sum()) / freedom)
    quantile = _studentized_range(len(labels), freedom) / math.sqrt(2)
    found = []
    for first, second in combinations(range(len(labels)), 2):
        a, b = labels[first], labels[second]
        variance = inverse[first, first] + inverse[second, second] - 2 * inverse[first, second]
        ends = _unlogged(float(effects[second] - effects[first]), quantile * scatter * math.sqrt(float(variance)))
        pairs = len(rates[a].keys() & rates[b].keys())
        many = len(labels) * (len(labels) - 1) // 2
        found.append(Difference(a=a, b=b, **ends, pairs=pairs, comparisons=many, engines=len(labels)))
    return found


def _scatter_unequally(rates: Mapping[str, Mapping[Any, float]]) -> bool:
    """Whether the engines' scatter differs more than chance makes it (1 %), judged by the repeats that all have.

    An engine's scatter is the median variance of its differences to the others: one that jumps does not lend its own
    to them. The largest over the smallest is compared with what engines of equal, normal scatter give.
    """
    shared = set.intersection(*(set(figures) for figures in rates.values()))
    if len(shared) < 2:
        return False
    logs = np.log([[figures[block] for block in sorted(shared)] for figures in rates.values()])
    scatters = _scatters(logs[None])[0]
    if scatters.min() < 1e-20:  # figures of a planted example: no scatter to compare
        return False
    return bool(scatters.max() / scatters.min() > _largest_ratio(*logs.shape))


@cache
def _largest_ratio(engines: int, repeats: int) -> float:
    """What `_scatter_unequally` compares with: exceeded once in a hundred by engines of equal scatter."""
    scatters = _scatters(np.random.default_rng(0).normal(size=(_DRAWS * 5, engines, repeats)))
    return float(np.quantile(scatters.max(axis=1) / scatters.min(axis=1), 1 - UNEQUAL))


def _scatters(logs: np.ndarray) -> np.ndarray:
    """(draws, engines) from (draws, engines, repeats): each engine's median variance of differences to the others."""
    variances = (logs[:, :, None] - logs[:, None]).var(axis=-1, ddof=1)
    others = ~np.eye(logs.shape[1], dtype=bool)
    return np.median(variances[:, others].reshape(len(logs), logs.shape[1], -1), axis=-1)


def _unlogged(centre: float, half: float | None) -> dict[str, Any]:
    """A difference of logarithms and half its interval as shares."""
    if half is None or half > math.log(_UNBOUNDED):  # two pairs, and many comparisons that must hold together
        return {"value": math.expm1(centre), "low": None, "high": None}
    return {"value": math.expm1(centre), "low": math.expm1(centre - half), "high": math.expm1(centre + half)}


def plain_difference(a: str, b: str, figures: Sequence[tuple[float, float]], *, comparisons: int = 1) -> Difference:
    """`b` minus `a` from pairs of figures, one pair a seed. Gaps that are all the same (one answer more in each of two
    seeds: figures that are counted come in steps) say nothing of their scatter: no interval, unless all are zero."""
    gaps = np.array([second - first for first, second in figures], dtype=float)
    centre, half = float(gaps.mean()), _half_width(gaps, comparisons)
    if centre != 0 and float(np.ptp(gaps)) < 1e-12:
        half = None
    low, high = (None, None) if half is None else (centre - half, centre + half)
    return Difference(
        a=a, b=b, value=centre, low=low, high=high, pairs=len(figures), relative=False, comparisons=comparisons
    )


def step_difference(
    a: str, b: str, a_step_s: Sequence[float], b_step_s: Sequence[float], *, seed: int = 0
) -> Difference:
    """Throughput of `b` against `a` from the step times (s) of one run each, of equal samples per step.

    Moving-block bootstrap of the mean step (blocks keep the correlation between neighbouring steps, Kuensch 1989).
    The interval holds for these two runs; what differs from run to run is not in it, so it is never `real`."""
    first, second = np.asarray(a_step_s, dtype=float), np.asarray(b_step_s, dtype=float)
    value = float(first.mean() / second.mean() - 1.0)
    if min(first.size, second.size) < 8:
        return Difference(a=a, b=b, value=value, low=None, high=None, pairs=1)
    rng = np.random.default_rng(seed)
    ratios = _block_means(first, rng) / _block_means(second, rng) - 1.0
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Difference(a=a, b=b, value=value, low=float(low), high=float(high), pairs=1)


class Speeds:
    """Differences of speed between any two of `rates`' labels: from one additive model of all of them where it holds
    (`block_differences`), else from the two's own pairs.

    rates: label -> repeat -> samples/s. comparisons: made of them in all.
    """

    def __init__(self, rates: Mapping[str, Mapping[Any, float]], comparisons: int) -> None:
        self.rates, self.comparisons = rates, comparisons
        self.together = {(found.a, found.b): found for found in block_differences(rates)}

    def difference(self, a: str, b: str) -> Difference | None:
        """`b` against `a`, which stands before it in `rates`; None where no repeat of both was timed."""
        shared = sorted(self.rates[a].keys() & self.rates[b].keys())
        if not shared:
            return None
        if (a, b) in self.together:
            return self.together[a, b]
        pairs = [(self.rates[a][key], self.rates[b][key]) for key in shared]
        return relative_difference(a, b, pairs, comparisons=self.comparisons)


def mean_ratio(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Geometric mean of positive figures, one a repeat, and the ends of its 95 % interval (Student's t on the log
    scale). The ends are None for fewer than two values, and where they bound nothing; the mean for none.

    The ratio of two such means over the same repeats is the difference that `relative_difference` gives."""
    if not len(values):
        return None, None, None
    logs = np.log(np.asarray(values, dtype=float))
    ends = _unlogged(float(logs.mean()), _half_width(logs))
    low, high = ends["low"], ends["high"]
    return ends["value"] + 1, None if low is None else low + 1, None if high is None else high + 1


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and the half width of its 95 % interval over seeds (None for a single one)."""
    array = np.asarray(values, dtype=float)
    return float(array.mean()), _half_width(array)


@cache
def _studentized_range(means: int, freedom: int) -> float:
    """The 95 % quantile of the range of `means` equal means in units of their estimated deviation."""
    from scipy.stats import studentized_range  # here: it takes a second to import

    return float(studentized_range.ppf(LEVEL, means, freedom))


def _half_width(values: np.ndarray, comparisons: int = 1) -> float | None:
    """Half of Student's 95 % interval of the mean, None below two values; wider for several `comparisons`."""
    if values.size < 2:
        return None
    from scipy.special import stdtrit  # the inverse t distribution, without scipy.stats' second of import time

    return float(
        stdtrit(values.size - 1, 1 - (1 - LEVEL) / 2 / comparisons) * values.std(ddof=1) / math.sqrt(values.size)
    )


def _block_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of `_DRAWS` moving-block resamples, shape (_DRAWS,)."""
    length = max(1, round(values.size ** (1 / 3)))
    blocks = math.ceil(values.size / length)
    starts = rng.integers(0, values.size - length + 1, size=(_DRAWS, blocks))
    index = (starts[..., None] + np.arange(length)).reshape(_DRAWS, -1)[:, : values.size]
    return values[index].mean(axis=1)
