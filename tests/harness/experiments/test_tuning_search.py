"""The search for an engine's fastest settings, against engines whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random

import pytest

from backends.tuning import Candidate
from harness.experiments.tuning.search import Score, search, winner


def candidate(**settings: object) -> Candidate:
    return Candidate(settings=settings, why="why", source="source")


class Engine:
    """An engine whose settings each gain a known share; a round's log ratio scatters by `noise`."""

    def __init__(self, gains: Mapping[str, float], *, noise: float = 0.0, seed: int = 0) -> None:
        self.gains, self.noise, self.random = gains, noise, Random(seed)
        self.rungs: list[tuple[list[str], int]] = []

    def measure(self, candidates: Sequence[Candidate], rounds: int) -> dict[str, Score | str]:
        self.rungs.append(([item.name for item in candidates], rounds))
        scores: dict[str, Score | str] = {}
        for item in candidates:
            true = sum(self.gains[key] for key in item.settings)
            scatter = self.random.gauss(0, self.noise) / math.sqrt(rounds)
            scores[item.name] = Score(log_ratio=true + scatter, rounds=rounds)
        return scores


def test_halves_leave_and_rungs_get_longer() -> None:
    engine = Engine(dict(zip("abcdefgh", (0.04, -0.1, 0.02, 0, 0.01, -0.2, -0.3, -0.4), strict=True)))
    trials = search([candidate(**{name: 1}) for name in "abcdefgh"], engine.measure, trials=12, rounds=4)
    names, rounds = zip(*engine.rungs, strict=True)
    assert list(names[0]) == [f"{name}=1" for name in "abcdefgh"]
    assert set(names[1]) == {"a=1", "c=1", "e=1", "d=1", "a=1+c=1", "a=1+e=1", "c=1+e=1"}, "pairs of what gained"
    assert list(rounds) == [4 * 2**rung for rung in range(len(rounds))]
    assert len(names[1]) > len(names[2]) > len(names[-1]) - 1
    best = winner(trials)
    assert best is not None
    assert best.candidate.settings == {"a": 1, "c": 1}
    assert best.value == pytest.approx(math.expm1(0.06))
    assert all(trial.lost for trial in trials if trial is not best)


@pytest.mark.parametrize("trials", [1, 2, 5, 12])
def test_no_engine_gets_more_trials_than_asked(trials: int) -> None:
    engine = Engine(dict.fromkeys("abcdefghijklm", 0.01))
    found = search([candidate(**{name: 1}) for name in "abcdefghijklm"], engine.measure, trials=trials, rounds=2)
    assert len(found) <= trials
    assert len({trial.candidate.name for trial in found}) == len(found)


def test_where_all_lose_the_engine_stays_as_it_comes() -> None:
    engine = Engine({"a": -0.01, "b": -0.02})
    assert winner(search([candidate(a=1), candidate(b=1)], engine.measure, trials=4, rounds=2)) is None
    assert winner(search([], engine.measure, trials=4, rounds=2)) is None


def test_values_of_one_setting_are_never_paired() -> None:
    engine = Engine({"a": 0.05})
    trials = search([candidate(a=1), candidate(a=2), candidate(a=3)], engine.measure, trials=12, rounds=2)
    assert [trial.candidate.name for trial in trials] == ["a=1", "a=2", "a=3"]


def test_what_fails_leaves_with_its_reason_and_the_others_go_on() -> None:
    engine = Engine({"a": 0.05, "b": 0.1})

    def measure(candidates: Sequence[Candidate], rounds: int) -> dict[str, Score | str]:
        return engine.measure(candidates, rounds) | {"b=1": "out of memory"}

    trials = search([candidate(a=1), candidate(b=1)], measure, trials=4, rounds=2)
    assert [trial.lost for trial in trials] == ["", "failed: out of memory"]
    best = winner(trials)
    assert best is not None
    assert best.candidate.name == "a=1"


def test_when_time_is_up_the_best_of_what_was_measured_is_left() -> None:
    engine = Engine(dict(zip("abcd", (0.01, 0.02, 0.03, 0.04), strict=True)))

    def first_rung_only(candidates: Sequence[Candidate], rounds: int) -> dict[str, Score | str]:
        return engine.measure(candidates, rounds) if not engine.rungs else {}

    trials = search([candidate(**{name: 1}) for name in "abcd"], first_rung_only, trials=6, rounds=2)
    best = winner(trials)
    assert best is not None
    assert best.candidate.name == "d=1"
    never = [trial for trial in trials if not trial.scores]
    assert [trial.lost for trial in never] == ["not reached within the budget"] * len(never)


def test_a_gain_of_three_percent_is_found_among_rounds_that_scatter_by_four() -> None:
    gains = {"a": -0.05, "b": 0.0, "c": 0.03, "d": -0.02, "e": 0.0, "f": -0.1, "g": 0.0, "h": -0.03}
    found = 0
    for seed in range(200):
        engine = Engine(gains, noise=0.04, seed=seed)
        best = winner(search([candidate(**{name: 1}) for name in gains], engine.measure, trials=12, rounds=4))
        found += best is not None and "c" in best.candidate.settings
    assert found >= 190
