"""Where candidates are measured: duels of a few of them beside the engine as it comes, within a budget of time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from backends.tuning import Candidate
from harness.analysis.duels.estimate import FIRST_STAGE, Block, DuelDifference, difference, duel_ratios
from harness.experiments.duels.fight import Contender, Duel, fight
from harness.experiments.duels.pace import Pace
from harness.experiments.trainings.cells import Cell
from harness.experiments.tuning.search import Score
from harness.job.declaration import Job, JobError
from harness.job.engines import ZERO_STAGE

AS_IT_COMES = "as it comes"
AGAIN = "as it comes, again"
SHORTEST_BLOCK_S = 0.5  # a block that is shorter is mostly the noise of its ends
MOST_STEPS = 50

Settings = Mapping[str, object]
Say = Callable[[str], None]


@dataclass(kw_only=True)
class Arena:
    """Duels of one engine and number of workers.

    Args:
        base: the job; its global batch is that of all workers.
        backend: the engine.
        given: settings that the user asked for: part of every contender.
        workers: processes of each contender.
        pace: warm-up and steps of a block; rounds are those of the last duels.
        side_by_side: candidates beside the engine as it comes in one duel, as memory allows.
        deadline: of the search, by ``time.monotonic()``; the last duels are not cut.
        say: gets progress.
    """

    base: Job
    backend: str
    given: Settings
    workers: int
    pace: Pace
    side_by_side: int
    seed: int
    say: Say
    budget_s: float
    blocks: list[Block] = field(default_factory=list)
    duels: list[Duel] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def calibrate(self) -> tuple[DuelDifference, Duel]:
        """The engine against itself: how far apart two equal things come out here. From then on a block is long enough
        to be timed."""
        duel = self._fight([self.contender(AS_IT_COMES, {}), self.contender(AGAIN, {})], rounds=4)
        steps = self.pace.steps
        step_s = min(block.seconds for block in duel.blocks) / steps
        longer = min(MOST_STEPS, max(steps, math.ceil(SHORTEST_BLOCK_S / step_s)))
        self.pace = replace(self.pace, steps=longer)
        return difference(duel.blocks, AS_IT_COMES, AGAIN), duel

    def measure(self, candidates: Sequence[Candidate], rounds: int) -> dict[str, Score | str]:
        """A rung. Candidates that there is no time for are missing in the answer."""
        found: dict[str, Score | str] = {}
        for first in range(0, len(candidates), self.side_by_side):
            group = candidates[first : first + self.side_by_side]
            if self.scored and not self._time_for(len(group), rounds):
                return found
            found |= self._together(group, rounds)
        return found

    def confirm(self, candidate: Candidate) -> DuelDifference:
        """`candidate` against the engine as it comes, by fresh duels alone. Raises JobError where a side fails."""
        blocks: list[Block] = []
        sides = [self.contender(AS_IT_COMES, {}), self.contender(candidate.name, candidate.settings)]
        for _ in range(FIRST_STAGE):
            blocks += self._fight(sides, rounds=self.pace.rounds).blocks
        return difference(blocks, AS_IT_COMES, candidate.name)

    @property
    def scored(self) -> bool:
        """Whether a rung has been begun: the first one is measured whatever the budget."""
        return len(self.duels) > 1

    def contender(self, name: str, settings: Settings) -> Contender:
        """One side: the engine with the settings that are given and those of a candidate."""
        return Contender(
            name=name,
            cell=cell_of(self.backend, {**self.given, **settings}, self.workers, self.base),
            global_batch=self.base.global_batch,
        )

    def _together(self, group: Sequence[Candidate], rounds: int) -> dict[str, Score | str]:
        """`group` beside the engine as it comes; one by one where that fails, so that the one at fault is found."""
        sides = [self.contender(AS_IT_COMES, {})]
        sides += [self.contender(candidate.name, candidate.settings) for candidate in group]
        try:
            duel = self._fight(sides, rounds=rounds)
        except JobError as error:
            if len(group) == 1:
                if f"{AS_IT_COMES}: " in str(error):
                    raise
                return {group[0].name: str(error).partition(f"{group[0].name}: ")[2] or str(error)}
            found: dict[str, Score | str] = {}
            for candidate in group:
                found |= self._together([candidate], rounds)
            return found
        return {candidate.name: _score(duel, candidate.name, rounds) for candidate in group}

    def _fight(self, sides: Sequence[Contender], *, rounds: int) -> Duel:
        pace = replace(self.pace, rounds=rounds)
        names = ", ".join(side.name for side in sides[1:])
        self.say(f"{AS_IT_COMES} beside {names} ({rounds} rounds)")
        duel = fight(self.base, sides, pace, number=len(self.duels), seed=self.seed, say=lambda _: None)
        self.duels.append(duel)
        self.blocks += duel.blocks
        return duel

    def _time_for(self, candidates: int, rounds: int) -> bool:
        """Whether a duel of so many, and then the last ones, end within the budget."""
        last = FIRST_STAGE * self._cost_s(2, self.pace.rounds)
        return time.monotonic() - self.began + self._cost_s(candidates + 1, rounds) + last <= self.budget_s

    def _cost_s(self, sides: int, rounds: int) -> float:
        """Seconds that a duel takes, by those so far."""
        starts = [duel.start_s / len(duel.told) for duel in self.duels]
        timed = [block.seconds * self.base.global_batch * self.pace.steps / block.samples for block in self.blocks]
        return sides * (max(starts) + sum(timed) / len(timed) * (rounds + 1))


def cell_of(backend: str, settings: Settings, workers: int, base: Job) -> Cell:
    """The training of an engine with settings, as duels and parity take it."""
    rest = dict(settings)
    stage = rest.pop("zero_stage", ZERO_STAGE if backend == "deepspeed" else None)
    return Cell(
        backend=backend,
        zero_stage=stage if isinstance(stage, int) else None,
        settings=tuple(rest.items()),
        workers=workers,
        accumulation=base.accumulation,
        clip=base.clip_norm is not None,
        precision=base.precision,
        precision_mode=base.precision_mode if base.precision != "fp32" else "matched",
    )


def _score(duel: Duel, name: str, rounds: int) -> Score:
    (ratio,) = duel_ratios(duel.blocks, AS_IT_COMES, name).values()
    return Score(log_ratio=ratio, rounds=rounds)
