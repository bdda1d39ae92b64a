"""Finding the largest point that fits, by few tries: step away from a guess, doubling, then halve the gap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

FITS, TOO_LARGE = "ok", "oom"
_TRUSTED = 3  # after so many tries the hint has shown to be wrong: halving is surer


class Asked(Protocol):
    """What the search needs to know of a try: ``status`` is ok, oom, or anything else, which says nothing of size."""

    @property
    def status(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class State:
    """low: largest point that fitted; high: smallest that was too large; each None where none was met. next: the point
    to try now, None when nothing is left to try. spoiled: a try ended otherwise, so that the answer is open."""

    low: int | None
    high: int | None
    next: int | None
    spoiled: bool = False

    @property
    def found(self) -> bool:
        """Whether `low` is the answer: its neighbour was too large."""
        return self.low is not None and self.high is not None and self.high - self.low == 1


def state(tries: Mapping[int, Asked], guess: int, *, lowest: int, hint: int | None = None) -> State:
    """Where a search stands after `tries` (point -> what came of it) that began at `guess`. `lowest`: no point below it
    is tried. hint: what the tries' measured memory makes of the answer, None = nothing. Depends on its arguments alone,
    so a search goes on after an interruption as if there had been none."""
    fitted = [point for point, one in tries.items() if one.status == FITS]
    large = [point for point, one in tries.items() if one.status == TOO_LARGE]
    low, high = max(fitted, default=None), min(large, default=None)
    if low is not None and high is not None and high < low:
        high = min((point for point in large if point > low), default=None)  # memory is not quite monotonic: trust low
    if any(one.status not in (FITS, TOO_LARGE) for one in tries.values()):
        return State(low=low, high=high, next=None, spoiled=True)
    return State(low=low, high=high, next=_next(low, high, guess, lowest, hint if len(tries) <= _TRUSTED else None))


def _next(low: int | None, high: int | None, guess: int, lowest: int, hint: int | None) -> int | None:
    if low is None and high is None:
        return max(guess, lowest)
    if low is None:
        assert high is not None
        # 1, 2, 4, ... points below the guess
        return None if high <= lowest else max(lowest, high - max(1, guess - high + 1))
    if high is None:
        return max(hint, low + 1) if hint is not None else low + max(1, low - guess + 1)
    if high - low <= 1:
        return None
    return (low + high) // 2 if hint is None else min(max(hint, low + 1), high - 1)
