"""Made-up duels with a known answer: how often does the interval hold it, and how small a difference is found?

The machine that is imitated is worse than a quiet one: neighbouring steps are correlated, the machine drifts within a
duel, every start of an engine has a speed of its own, and bursts of foreign load fall on single blocks. All of it is
stated, so that anybody can make it worse and see what remains: ``python -m harness.experiments.duels.simulate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.analysis.duels.estimate import FIRST_STAGE, duels_needed, half_width

WIDTH = 0.02  # half of the interval that is asked for
BUDGET = 12  # duels at most
SHORT_STAGE = 6  # duels of the first stage where a start costs little (`harness.experiments.duels.of_study`)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is imitated, as shares of a step's time.

    start_sd: standard deviation of an engine's speed from start to start. step_sd, neighbour: of single steps, and the
    correlation of neighbouring ones. drift: of the machine's change from the first to the last round of a duel, both
    engines'. burst, burst_size: chance that foreign load falls on a block, and how much longer it makes it. second: how
    much slower whoever comes second in a round is.
    """

    start_sd: float = 0.006
    step_sd: float = 0.04
    neighbour: float = 0.5
    drift: float = 0.10
    burst: float = 0.05
    burst_size: float = 0.5
    second: float = 0.01


QUIET = Machine(start_sd=0.002, step_sd=0.01, drift=0.01, burst=0.0, second=0.0)
SHARED = Machine()
TWO_CORES = Machine(start_sd=0.005, step_sd=0.085, neighbour=0.0, drift=0.02, burst=0.0, second=0.0)
MACHINES = {"quiet": QUIET, "shared, with drift and bursts": SHARED, "starts differ": replace(QUIET, start_sd=0.02)}


def log_ratios(
    machine: Machine, *, studies: int, duels: int, rounds: int, steps: int, truth: float, rng: np.random.Generator
) -> np.ndarray:
    """(studies, duels) log ratios of throughput, b over a, where b is truly `truth` faster (log scale).

    rounds, steps: of a duel, of a block. Every block's seconds are drawn step by step, then totals are taken as
    `harness.analysis.duels.estimate.duel_ratios` takes them.
    """
    shape = (studies, duels, 2)
    noise = rng.normal(size=(*shape, rounds, steps)) * machine.step_sd
    for step in range(1, steps):  # an AR(1) series of unchanged variance
        fresh = noise[..., step] * np.sqrt(1 - machine.neighbour**2)
        noise[..., step] = machine.neighbour * noise[..., step - 1] + fresh
    log_s = noise - np.array([0.0, truth])[:, None, None]
    log_s += (rng.normal(size=shape) * machine.start_sd)[..., None, None]
    slope = rng.normal(size=(studies, duels, 1, 1, 1)) * machine.drift
    second = _second(rng, studies, duels, rounds)
    log_s += slope * np.linspace(0, 1, 2 * rounds * steps)[_places(second, steps)]
    seconds = np.exp(log_s).sum(axis=-1)
    seconds *= 1 + machine.second * second
    seconds *= 1 + machine.burst_size * (rng.random(seconds.shape) < machine.burst)
    totals = seconds.sum(axis=-1)
    return np.log(totals[..., 0]) - np.log(totals[..., 1])


def _second(rng: np.random.Generator, studies: int, duels: int, rounds: int) -> np.ndarray:
    """(studies, duels, 2, rounds): 1 for the engine that comes second, by a fair coin in each round."""
    b_second = rng.integers(0, 2, size=(studies, duels, 1, rounds))
    return np.concatenate([1 - b_second, b_second], axis=2)


def _places(second: np.ndarray, steps: int) -> np.ndarray:
    """(studies, duels, 2, rounds, steps): each step's place in the duel's time. second: as `_second` draws it."""
    rounds = second.shape[-1]
    return (2 * np.arange(rounds)[:, None] + second[..., None]) * steps + np.arange(steps)


_HARD = ("shared, with drift and bursts", "starts differ")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """coverage: share of studies whose interval holds the truth. found: share whose interval excludes zero. half: the
    median half width. duels: the mean number of duels fought."""

    coverage: float
    found: float
    half: float
    duels: float


def outcome(
    machine: Machine,
    *,
    truth: float,
    studies: int = 4000,
    rounds: int = 10,
    steps: int = 3,
    wanted: float | None = WIDTH,
    budget: int = BUDGET,
    first_stage: int = FIRST_STAGE,
    seed: int = 0,
) -> Outcome:
    """Fights `studies` studies. wanted: go on until half the interval is that narrow or `budget` duels are fought;
    None: the first stage, of `first_stage` duels, alone."""
    rng = np.random.default_rng(seed)
    drawn = log_ratios(machine, studies=studies, duels=budget, rounds=rounds, steps=steps, truth=truth, rng=rng)
    held = found = fought = 0
    halves = []
    for ratios in drawn:
        number = first_stage
        if wanted is not None:
            number = min(budget, duels_needed(ratios[:first_stage], wanted))
        half = half_width(ratios[:number], first_stage=first_stage)
        assert half is not None
        centre = float(ratios[:number].mean())
        held += abs(centre - truth) <= half
        found += abs(centre) > half
        fought += number
        halves.append(half)
    return Outcome(
        coverage=held / studies, found=found / studies, half=float(np.median(halves)), duels=fought / studies
    )


_RULES: tuple[tuple[str, dict[str, Any]], ...] = (
    (f"{FIRST_STAGE} duels", {"wanted": None}),
    (f"{FIRST_STAGE} or more, until {WIDTH:.0%}", {"wanted": WIDTH}),
)
_SHORT: dict[str, Any] = {"first_stage": SHORT_STAGE, "rounds": 12, "steps": 1}
_SHORT_RULES: tuple[tuple[str, dict[str, Any]], ...] = (
    (f"{SHORT_STAGE} duels", {"wanted": None, **_SHORT}),
    (f"{SHORT_STAGE} or more, until 3%", {"wanted": 0.03, **_SHORT}),
)
# (machine's name, rule's name, machine, options of `outcome`): a row of the table each.
SETTINGS = [
    *((name, rule, machine, options) for name, machine in MACHINES.items() for rule, options in _RULES),
    *(("two cores, as measured", rule, TWO_CORES, options) for rule, options in _SHORT_RULES),
    (
        "two cores, as measured",
        f"{SHORT_STAGE} or more, until 1.5%",
        TWO_CORES,
        _SHORT | {"wanted": 0.015, "budget": 60},
    ),
    *((f"{name}, short duels", rule, MACHINES[name], o) for name in _HARD for rule, o in _SHORT_RULES),
]


def table(truths: Sequence[float] = (0.0, 0.02, 0.05), studies: int = 4000) -> list[list[str]]:
    """Rows of the table in the methodology: machine, rule, coverage, found by true difference, half width, duels."""
    rows = []
    for name, rule, machine, options in SETTINGS:
        outcomes = [outcome(machine, truth=truth, studies=studies, **options) for truth in truths]
        null = outcomes[0]
        figures = [f"{null.coverage:.1%}", *(f"{result.found:.1%}" for result in outcomes)]
        rows.append([name, rule, *figures, f"{null.half:.2%}", f"{null.duels:.1f}"])
    return rows


def main() -> None:
    """Prints the table as Markdown."""
    truths = (0.0, 0.02, 0.05)
    heads = ["machine", "rule", "coverage", *(f"found at {truth:.0%}" for truth in truths), "half width", "duels"]
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for row in table(truths):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
