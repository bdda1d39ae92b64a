"""Figures of a ranking: how well a number separates positives from negatives. Exact, ties included.

Everything is computed from a tally (how many positives and negatives have each distinct score), so the cost of a curve
is that of its distinct scores, not of its samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Figure(NamedTuple):
    """A figure, or None with the reason why it is not defined. Never a made-up number."""

    value: float | None
    reason: str = ""


ONE_CLASS = "needs both good and defective {what}: found only one kind"
NOT_FINITE = "scores are not finite"
NO_MASKS = "no masks"  # nobody has drawn the defects


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Counts by distinct score, ascending: (K,) each."""

    positives: np.ndarray
    negatives: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, labels: np.ndarray) -> Tally:
        """scores: (N,) finite numbers; labels: (N,) bool."""
        values, places = np.unique(scores, return_inverse=True)
        labels = np.asarray(labels, bool)
        return cls(
            positives=np.bincount(places[labels], minlength=len(values)),
            negatives=np.bincount(places[~labels], minlength=len(values)),
        )

    def has_both(self) -> bool:
        return bool(self.positives.sum() > 0 and self.negatives.sum() > 0)


def auroc(tally: Tally, what: str = "samples") -> Figure:
    """Probability that a positive scores above a negative, ties counted half (Mann-Whitney)."""
    if not tally.has_both():
        return Figure(None, ONE_CLASS.format(what=what))
    below = np.cumsum(tally.negatives) - tally.negatives
    wins = float(np.dot(tally.positives, below + 0.5 * tally.negatives))
    return Figure(wins / (float(tally.positives.sum()) * float(tally.negatives.sum())))


def f1_max(tally: Tally, what: str = "samples") -> Figure:
    """Largest F1 = 2 TP / (2 TP + FP + FN) over all thresholds "score >= t"."""
    if not tally.has_both():
        return Figure(None, ONE_CLASS.format(what=what))
    hits = np.cumsum(tally.positives[::-1])
    alarms = np.cumsum(tally.negatives[::-1])
    return Figure(float(np.max(2 * hits / (hits + alarms + hits[-1]))))


def area_under_pro(overlap: np.ndarray, negatives: np.ndarray, limit: float) -> Figure:
    """Area under the per-region overlap curve up to false-positive rate `limit`, divided by `limit`.

    overlap, negatives: float64 (K,), ascending score: how much each score adds to the mean overlap of the regions, and
    how many good pixels have it. The curve is linear between neighbouring thresholds and is cut at `limit` by
    interpolation (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, sec. 4).
    """
    if overlap.sum() <= 0:
        return Figure(None, "needs a defective region")
    if negatives.sum() <= 0:
        return Figure(None, "needs good pixels")
    rate = np.concatenate([[0.0], np.cumsum(negatives[::-1]) / negatives.sum()])
    pro = np.concatenate([[0.0], np.cumsum(overlap[::-1]) / overlap.sum()])
    inside = int(np.searchsorted(rate, limit, side="right"))  # first point beyond the limit
    if inside < len(rate):
        share = (limit - rate[inside - 1]) / (rate[inside] - rate[inside - 1])
        edge = pro[inside - 1] + share * (pro[inside] - pro[inside - 1])
        rate, pro = np.append(rate[:inside], limit), np.append(pro[:inside], edge)
    return Figure(float(np.trapezoid(pro, rate)) / limit)
