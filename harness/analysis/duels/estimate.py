"""From the blocks of duels to "engine b is so much faster than engine a", with an interval.

A block is a few optimizer steps of one engine between two device-synchronized marks. Within a duel the difference is
the log ratio of the two engines' throughputs, each total samples over total seconds of the rounds that both trained.
The unit of inference is the duel: the interval is Student's t over the duels, because rounds of one start share
whatever that start did to the engines.

The number of duels for an interval of a wanted width is Stein's (1945): a first stage of n0 duels gives the scatter s,
which says how many duels n are needed, and the interval keeps the n0 - 1 degrees of freedom of the first stage:
mean of all n +- t(n0 - 1) s / sqrt(n). Since the mean of normal figures is independent of their scatter, this interval
covers at its level exactly, however n was chosen from s and whatever budget cut it short: looking does not inflate it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
FIRST_STAGE = 4  # duels of the first stage: t(3) = 3.18; with three it would be 4.30


@dataclass(frozen=True, kw_only=True)
class Block:
    """A few steps of one engine. seconds: from its device-synchronized begin to its device-synchronized end."""

    duel: int
    round: int
    engine: str
    samples: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DuelDifference:
    """How much faster `b` is than `a`, as a share (0.04 = 4 % more samples/s).

    low, high: 95 % bounds, None with a single duel. sd_between: standard deviation of the log ratio from start to
    start, beyond what the rounds explain; sd_within: of one round's log ratio inside a duel (None with one round).
    """

    a: str
    b: str
    value: float
    low: float | None
    high: float | None
    duels: int
    rounds: int
    sd_between: float | None
    sd_within: float | None

    @property
    def half_width(self) -> float | None:
        """Half of the interval on the log scale: about the same share up and down."""
        if self.low is None or self.high is None:
            return None
        return (math.log1p(self.high) - math.log1p(self.low)) / 2

    @property
    def decided(self) -> bool:
        """Zero is outside the interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def alike(self, margin: float) -> bool:
        """The whole interval lies within a factor of 1 + `margin`, from whichever side it is told."""
        if self.low is None or self.high is None:
            return False
        return (1 + margin) * (1 + self.low) > 1 and self.high < margin


def duel_ratios(blocks: Iterable[Block], a: str, b: str) -> dict[int, float]:
    """Duel -> log of b's throughput over a's: total samples over total seconds of the rounds that both trained."""
    return {duel: _totals_ratio(pairs) for duel, pairs in _pairs(blocks, a, b).items()}


def difference(blocks: Iterable[Block], a: str, b: str, *, first_stage: int = FIRST_STAGE) -> DuelDifference:
    """`b` against `a`. first_stage: duels after which the number of duels was chosen (all of them where fewer).

    Raises ValueError where no round holds both engines.
    """
    by_duel = _pairs(blocks, a, b)
    if not by_duel:
        raise ValueError(f"no round holds both {a} and {b}")
    ratios = np.array([_totals_ratio(by_duel[duel]) for duel in sorted(by_duel)])
    half = half_width(ratios, first_stage=first_stage)
    centre = float(ratios.mean())
    between, within = scatter(by_duel)
    return DuelDifference(
        a=a,
        b=b,
        value=math.expm1(centre),
        low=None if half is None else math.expm1(centre - half),
        high=None if half is None else math.expm1(centre + half),
        duels=len(by_duel),
        rounds=sum(map(len, by_duel.values())),
        sd_between=between,
        sd_within=within,
    )


def half_width(ratios: np.ndarray, *, first_stage: int = FIRST_STAGE, level: float = LEVEL) -> float | None:
    """Half the interval of the mean of `ratios` (n,), by Stein's rule; None below two duels."""
    first = min(len(ratios), first_stage)
    if first < 2:
        return None
    return _quantile(first - 1, level) * float(ratios[:first].std(ddof=1)) / math.sqrt(len(ratios))


def duels_needed(first: Sequence[float], wanted: float, *, level: float = LEVEL) -> int:
    """How many duels in all make half the interval at most `wanted` (log scale; 0.02 = 2 %), by the log ratios of the
    first stage. At least the first stage itself. Source: Stein, Annals of Mathematical Statistics 16 (1945)."""
    scatter_ = float(np.std(np.asarray(first, dtype=float), ddof=1))
    return max(len(first), math.ceil((_quantile(len(first) - 1, level) * scatter_ / wanted) ** 2))


Pair = tuple[int, float, int, float]  # samples and seconds of a, then of b


def scatter(by_duel: Mapping[int, Sequence[Pair]]) -> tuple[float | None, float | None]:
    """(standard deviation between duels beyond the rounds' own, within duels of one round's log ratio)."""
    logs = [np.array([_log_ratio(pair) for pair in pairs]) for pairs in by_duel.values()]
    freedom = sum(len(rounds) - 1 for rounds in logs)
    if freedom < 1:
        return None, None
    within = sum(float(((rounds - rounds.mean()) ** 2).sum()) for rounds in logs) / freedom
    if len(logs) < 2:
        return None, math.sqrt(within)
    means = np.array([rounds.mean() for rounds in logs])
    from_rounds = float(np.mean([within / len(rounds) for rounds in logs]))
    return math.sqrt(max(0.0, float(means.var(ddof=1)) - from_rounds)), math.sqrt(within)


def _pairs(blocks: Iterable[Block], a: str, b: str) -> dict[int, list[Pair]]:
    """Duel -> its rounds that hold both engines."""
    found: dict[tuple[int, int], dict[str, Block]] = {}
    for block in blocks:
        found.setdefault((block.duel, block.round), {})[block.engine] = block
    result: dict[int, list[Pair]] = {}
    for (duel, _), sides in sorted(found.items()):
        if a in sides and b in sides:
            first, second = sides[a], sides[b]
            result.setdefault(duel, []).append((first.samples, first.seconds, second.samples, second.seconds))
    return result


def _totals_ratio(pairs: Sequence[Pair]) -> float:
    a_samples, a_seconds, b_samples, b_seconds = (math.fsum(column) for column in zip(*pairs, strict=True))
    return _log_ratio((a_samples, a_seconds, b_samples, b_seconds))


def _log_ratio(pair: tuple[float, float, float, float]) -> float:
    a_samples, a_seconds, b_samples, b_seconds = pair
    return math.log(b_samples / b_seconds) - math.log(a_samples / a_seconds)


def _quantile(freedom: int, level: float) -> float:
    from scipy.special import stdtrit  # the inverse t distribution, without scipy.stats' second of import time

    return float(stdtrit(freedom, 1 - (1 - level) / 2))
