"""Successive halving over candidates; knows nothing of engines or processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from backends.tuning import Candidate

SINGLES = 2 / 3  # share of the trials for settings alone; the rest is for pairs of the better ones


@dataclass(frozen=True, kw_only=True)
class Score:
    """log_ratio: of the candidate's throughput over the engine's as it comes. rounds: that it is the mean of."""

    log_ratio: float
    rounds: int


# Candidates and rounds -> name -> score, or why it failed; a name that is missing was not reached in the time given.
Measure = Callable[[Sequence[Candidate], int], Mapping[str, Score | str]]


@dataclass(kw_only=True)
class Trial:
    """One candidate's way through the search. lost: why it left, "" for the one that is left over."""

    candidate: Candidate
    scores: list[Score] = field(default_factory=list)
    lost: str = ""

    @property
    def log_ratio(self) -> float:
        """The mean over all its rounds; -inf before the first."""
        rounds = sum(score.rounds for score in self.scores)
        return sum(score.log_ratio * score.rounds for score in self.scores) / rounds if rounds else -math.inf

    @property
    def value(self) -> float | None:
        """How much faster than the engine as it comes, as a share; None where it was not measured."""
        return math.expm1(self.log_ratio) if self.scores else None


def search(candidates: Sequence[Candidate], measure: Measure, *, trials: int, rounds: int) -> list[Trial]:
    """All trials in the order in which they joined; at most one has not lost.

    Args:
        candidates: most promising first; as many as SINGLES of `trials` are tried alone.
        measure: called once a rung.
        trials: candidates in all, pairs among them.
        rounds: of the first rung; each later one is twice as long.
    """
    singles = candidates[: math.ceil(trials * SINGLES)]
    joined = [Trial(candidate=candidate) for candidate in singles]
    alive, rung = list(joined), 1
    while alive:
        scores = measure([trial.candidate for trial in alive], rounds)
        reached = _scored(alive, scores)
        out_of_time = len(scores) < len(alive)
        ranked = sorted(reached, key=lambda trial: -trial.log_ratio)
        kept = ranked[:1] if out_of_time else ranked[: max(1, math.ceil(len(ranked) / 2))]
        for trial in ranked[len(kept) :]:
            trial.lost = f"left after rung {rung}"
        pairs = (
            [] if out_of_time or rung > 1 else [Trial(candidate=pair) for pair in _pairs(kept, trials - len(joined))]
        )
        joined += pairs
        if out_of_time or len(kept) + len(pairs) <= 1:
            break
        alive, rung, rounds = kept + pairs, rung + 1, rounds * 2
    return joined


def winner(trials: Sequence[Trial]) -> Trial | None:
    """The trial that is left over and was faster than the engine as it comes."""
    left = [trial for trial in trials if not trial.lost and trial.scores and trial.log_ratio > 0]
    return max(left, key=lambda trial: trial.log_ratio, default=None)


def _scored(alive: Sequence[Trial], scores: Mapping[str, Score | str]) -> list[Trial]:
    """Those of `alive` that stay in the search, with their new scores."""
    reached = []
    for trial in alive:
        score = scores.get(trial.candidate.name)
        if isinstance(score, Score):
            trial.scores.append(score)
            reached.append(trial)
        elif score is None:
            # What has been measured in an earlier rung stays a candidate for the last word.
            trial.lost = "" if trial.scores else "not reached within the budget"
            reached += [trial] if trial.scores else []
        else:
            trial.lost = f"failed: {score}"
    return reached


def _pairs(kept: Sequence[Trial], room: int) -> list[Candidate]:
    """Pairs of the better candidates that gained something and set different things, best sum first."""
    gained = [trial for trial in kept if trial.log_ratio > 0]
    found = sorted(combinations(gained, 2), key=lambda pair: -(pair[0].log_ratio + pair[1].log_ratio))
    made: dict[str, Candidate] = {}
    for one, other in found:
        a, b = one.candidate, other.candidate
        if set(a.settings) & set(b.settings):
            continue
        pair = Candidate(
            settings=dict(sorted({**a.settings, **b.settings}.items())),
            why=f"both gained alone: {a.why}; {b.why}",
            source=f"{a.source}; {b.source}",
            exact=a.exact and b.exact,
        )
        made.setdefault(pair.name, pair)
    return list(made.values())[: max(0, room)]
