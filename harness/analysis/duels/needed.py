"""How many more duels would decide: what Stein's rule says of each pair that is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.analysis.duels.estimate import FIRST_STAGE, Block, duel_ratios, duels_needed


@dataclass(frozen=True, kw_only=True)
class Need:
    """Of one pair. fought: its duels so far. needed: in all, for half an interval of the wanted width; the first stage
    while it lasts, since nothing is known of the scatter before."""

    fought: int
    needed: int

    @property
    def missing(self) -> int:
        """Duels still to fight."""
        return max(0, self.needed - self.fought)


def need(blocks: Iterable[Block], a: str, b: str, wanted: float, *, first_stage: int = FIRST_STAGE) -> Need:
    """What the pair `a`, `b` needs. wanted: half of the interval (log scale). first_stage: duels that say it."""
    ratios = duel_ratios(blocks, a, b)
    if len(ratios) < first_stage:
        return Need(fought=len(ratios), needed=first_stage)
    first = [ratios[number] for number in sorted(ratios)][:first_stage]
    return Need(fought=len(ratios), needed=duels_needed(first, wanted))


def duel_seconds(record: Mapping[str, Any]) -> float:
    """Mean seconds of one of the record's duels, its start included; 0 where none was fought."""
    spent = [duel["start_s"] + duel["fight_s"] for duel in record["duels"]]
    return sum(spent) / len(spent) if spent else 0.0
