"""How a duel is cut into blocks: steps of the warm-up, steps of a block, rounds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Optimizer steps of the warm-up block, of a timed block, and rounds of a duel."""

    warmup: int = 5
    steps: int = 3
    rounds: int = 10

    def same_samples(self, step: int, every: int) -> int:
        """The step of a contender of every round that trains the same samples as `step` of one that fights in every
        `every`th round only."""
        if step < self.warmup:
            return step
        block, within = divmod(step - self.warmup, self.steps)
        return self.warmup + block * every * self.steps + within

    @property
    def total(self) -> int:
        """Steps that each contender trains in a duel."""
        return self.warmup + self.steps * self.rounds
