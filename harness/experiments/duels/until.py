"""Duels until every asked difference is known well enough, or the time is spent; finished duels are kept.

duel.json is written after each duel. The same call goes on from it: an interrupt costs the duel under way alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.analysis.duels.estimate import FIRST_STAGE
from harness.analysis.duels.needed import Need, need
from harness.analysis.duels.record import NAME, asked_pairs, first_stage_of, sentence
from harness.common.formatting import duration, percent
from harness.experiments.duels import record as records_
from harness.experiments.duels.fight import Contender, Duel, fight
from harness.experiments.duels.lineups import Lineup
from harness.experiments.duels.pace import Pace
from harness.job.declaration import Job, JobError
from harness.records.record_files import read_json

# Fields of a job that change nothing of what a duel measures.
_QUIET = ("timeout_s", "time_limit_s", "study", "run", "steps", "log_every", "hostfile", "keep_weights", "eval_samples")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """wanted: half of each asked interval (0.05 = 5 %). budget_s: seconds of all duels, those of earlier calls too.
    most: duels of a lineup at most. first_stage: duels whose scatter says how many are needed."""

    wanted: float
    budget_s: float
    most: int = 200
    first_stage: int = FIRST_STAGE


class Campaign:
    """All duels of one folder: those that were fought before, and those to come."""

    def __init__(
        self,
        base: Job,
        contenders: Sequence[Contender],
        pace: Pace,
        folder: Path,
        goal: Goal,
        *,
        seed: int,
        say: Callable[[str], None],
        keep_pace: bool = False,
        deciding: Sequence[tuple[str, str]] = (),
    ) -> None:
        """keep_pace: duels of an earlier call decide the pace of those to come; else one that differs is refused.
        deciding: pairs that the duels go on for; none: all that are asked."""
        self.base, self.folder, self.goal, self.seed, self.say = base, folder, goal, seed, say
        self.contenders = list(contenders)
        self.asked = asked_pairs([records_.side(item) for item in contenders])
        self.deciding = list(deciding) or self.asked
        self.not_fought: dict[tuple[str, str], str] = {}
        self.duels: list[Duel] = []
        self.pace = pace
        if (folder / NAME).exists():
            self._take_over(read_json(folder / NAME), keep_pace)

    @property
    def spent_s(self) -> float:
        """Seconds of the duels so far, their starts included."""
        return sum(map(_seconds, self.duels))

    def run(self, lineups: Sequence[Lineup], *, in_pairs: bool = False) -> dict[str, Any]:
        """Fights until the goal is reached; returns the record. lineups: who fights beside whom, every asked pair in at
        least one of them. in_pairs: a lineup that fails is fought in pairs, and a pair that fails is given up; one that
        was fought before is tried once more.

        Raises JobError for the first failure, or with in_pairs where no pair at all could be fought.
        """
        lineups = list(lineups)
        failed: JobError | None = None
        again: list[Lineup] = []
        while (lineup := self._next(lineups)) is not None:
            try:
                self._fight(lineup)
            except JobError as error:
                if not in_pairs:
                    raise
                failed = error
                if self._fought(lineup) and lineup not in again:  # it fits, so something else went wrong
                    again.append(lineup)
                    self.say(f"{error}; the duel is fought again")
                    continue
                lineups.remove(lineup)
                lineups += self._in_pairs(lineup, error)
        if failed is not None and not self.duels:
            raise failed
        return self.write()

    def write(self) -> dict[str, Any]:
        """Writes the record of what has been fought, if anything has, and returns it."""
        sides = [records_.side(item) for item in self.contenders]
        first_stage = self.goal.first_stage
        pairs = asked_pairs(sides)
        record = records_.record_of(self.base, self.contenders, self.pace, self.duels, pairs, first_stage=first_stage)
        record["goal"] = {"until": self.goal.wanted, "budget_s": self.goal.budget_s, "first_stage": first_stage}
        record["not_fought"] = [{"a": a, "b": b, "reason": reason} for (a, b), reason in self.not_fought.items()]
        if self.duels or self.not_fought:
            records_.write(record, self.folder)
        return record

    def _next(self, lineups: Sequence[Lineup]) -> Lineup | None:
        """The lineup that lacks duels and has fought the fewest; None where all is decided or the time is spent."""
        open_ = [(self._need(lineup), lineup) for lineup in lineups]
        open_ = [(need_, lineup) for need_, lineup in open_ if need_.missing and need_.fought < self.goal.most]
        if not open_:
            return None
        _, lineup = min(open_, key=lambda item: item[0].fought)
        alike = list(map(_seconds, self._fought(lineup)))
        longest = max(alike or map(_seconds, self.duels), default=0.0)
        return lineup if self.spent_s + longest <= self.goal.budget_s else None

    def _fought(self, lineup: Lineup) -> list[Duel]:
        return [duel for duel in self.duels if set(duel.told) == set(lineup)]

    def _need(self, lineup: Lineup) -> Need:
        """What the pair of `lineup` that lacks most needs."""
        blocks = [block for duel in self.duels for block in duel.blocks]
        here = [pair for pair in self.asked if set(pair) <= set(lineup) and pair not in self.not_fought]
        pairs = [pair for pair in here if pair in self.deciding] or here
        needs = [need(blocks, a, b, self.goal.wanted, first_stage=self.goal.first_stage) for a, b in pairs]
        return max(needs, key=lambda item: item.missing, default=Need(fought=0, needed=0))

    def _fight(self, lineup: Lineup) -> None:
        by_name = {item.name: item for item in self.contenders}
        duel = fight(
            self.base,
            [by_name[name] for name in lineup],
            self.pace,
            number=len(self.duels),
            seed=self.seed,
            say=self.say,
        )
        self.duels.append(duel)
        record = self.write()
        for item in record["differences"]:
            if (item["a"], item["b"]) in self.deciding:
                self.say(f"  {sentence(item)}")
        self.say(f"  {self._time_left(lineup)}")

    def _time_left(self, lineup: Lineup) -> str:
        """``2 more duels like this for +-5 %: about 3.1 min; 6.2 min of the budget are left``."""
        missing = self._need(lineup).missing
        left = duration(max(0.0, self.goal.budget_s - self.spent_s))
        if not missing:
            return f"all intervals that were asked for are within ±{percent(self.goal.wanted, 1)}"
        more = "1 more duel" if missing == 1 else f"{missing} more duels"
        each = self.spent_s / len(self.duels)
        reason = "" if len(self.duels) < self.goal.first_stage else f" for intervals of ±{percent(self.goal.wanted, 1)}"
        return f"{more}{reason}: about {duration(missing * each)}; {left} of the budget left"

    def _in_pairs(self, lineup: Lineup, error: JobError) -> list[Lineup]:
        """What is fought instead of a lineup that failed: its asked pairs, each alone; a pair is given up."""
        pairs = [pair for pair in self.asked if set(pair) <= set(lineup)]
        if len(lineup) == 2:
            self.not_fought |= dict.fromkeys(pairs, str(error))
            self.say(f"{' and '.join(lineup)} fight no duel: {error}")
            return []
        self.say(f"{error}; the duels are fought in pairs")
        return list(pairs)

    def _take_over(self, record: Mapping[str, Any], keep_pace: bool) -> None:
        """The duels of an earlier call. Raises JobError where they are of another job, machine or contender."""
        old = Job.from_dict(record["job"]).to_dict()
        new = self.base.to_dict()
        changed = [key for key in new if key not in _QUIET and old.get(key) != new[key]]
        mine = {item.name: item for item in self.contenders}
        known = [records_.contender_of(side) for side in record["contenders"]]
        if keep_pace:  # which rounds a contender fights in belongs to the pace
            mine |= {item.name: replace(mine[item.name], every=item.every) for item in known if item.name in mine}
            self.contenders = [mine[item.name] for item in self.contenders]
        changed += [item.name for item in known if item.name in mine and mine[item.name] != item]
        if not keep_pace and record["pace"] != asdict(self.pace):
            changed.append("pace")
        if changed:
            raise JobError(
                f"{self.folder / NAME}: holds duels of another job ({', '.join(changed)}): choose another --study"
            )
        self.contenders += [item for item in known if item.name not in mine]
        self.pace = Pace(**record["pace"])
        self.goal = replace(self.goal, first_stage=first_stage_of(record))  # it was chosen before the first duel
        self.duels = records_.duels_of(record)


def _seconds(duel: Duel) -> float:
    return duel.start_s + duel.fight_s
