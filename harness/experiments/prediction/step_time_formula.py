"""An alpha-beta model of one optimizer step, fitted to measured runs: pure functions on arrays.

    step(n) = wait + own(n) + max(0, exchange(n) - overlap * wait * 2/3) + straggler * slowest(n)
    own(n) = crowd * (overhead + update * P)
    exchange(n) = alpha * 2(n-1) + V(n) * host * crowd + V(n) / link * inefficiency,        V(n) = 2(n-1)/n * P

n ranks; P parameter bytes; wait = computing (known); link = the link's rate. own: the rank's own work beside the wait.
alpha is the cost of one message of a ring, host what a byte costs in the processes (copying, reducing), inefficiency
what a byte costs on the link against its nominal rate (Hockney, 1994; Thakur, Rabenseifner & Gropp, 2005). ZeRO 1 and 2
exchange the same volume as a reduce-scatter and an all-gather. crowd is the number of workers a core where virtual
nodes share cores (1 elsewhere): what the processors do takes so many times longer, what the links do does not. Without
it the fit would read shared cores as dear messages and condemn large clusters, where nobody shares. alpha and host are
told apart only by runs of two sizes P. overlap is the share of the backward pass (two thirds of the wait) behind which
exchange hides. slowest(n) is how many deviations the slowest of n ranks lies above the mean: the expected maximum of n
normal values, exactly (its limit, sqrt(2 ln n), is twice too much at two ranks, 1.4 times at eight). All constants are
at least 0, for each engine its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from mpi.ring import sent_share

BACKWARD_SHARE = 2.0 / 3.0
OVERLAPS = np.linspace(0.0, 1.0, 21)


@cache
def slowest(ranks: int) -> float:
    """Expected maximum of `ranks` independent standard normal values: 0, 0.564, 0.846, 1.029, ... (Cramer, 1946)."""
    from scipy.integrate import quad
    from scipy.special import ndtr

    above, _ = quad(lambda x: 1.0 - ndtr(x) ** ranks, 0.0, 12.0, limit=200, epsabs=1e-12)
    below, _ = quad(lambda x: ndtr(-x) ** ranks, 0.0, 40.0, limit=200, epsabs=1e-12)
    return above - below if ranks > 1 else 0.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured or wanted situation. wait_s: computing a step. link_bytes_per_s: None = no limit. crowd: workers a
    core, at least 1."""

    ranks: int
    wait_s: float
    parameter_bytes: float
    link_bytes_per_s: float | None
    step_s: float = 0.0
    crowd: float = 1.0

    @property
    def volume(self) -> float:
        """Bytes each rank sends a step."""
        return sent_share("all_reduce", self.ranks) * self.parameter_bytes


@dataclass(frozen=True, kw_only=True)
class Model:
    """Constants of one engine: seconds, seconds a byte, seconds a message, seconds a byte, none, none, seconds."""

    overhead: float
    update: float
    alpha: float
    host: float
    inefficiency: float
    overlap: float
    straggler: float

    def step(self, point: Point) -> float:
        """Predicted seconds of a step."""
        slow = self.straggler * slowest(point.ranks)
        hidden = self.overlap * BACKWARD_SHARE * point.wait_s
        own = point.crowd * (self.overhead + self.update * point.parameter_bytes)
        return point.wait_s + own + slow + max(0.0, self.exchange(point) - hidden)

    def exchange(self, point: Point) -> float:
        """Predicted seconds of the exchange alone."""
        _, _, messages, volume, wire, _ = _features(point)
        return self.alpha * messages + self.host * volume + self.inefficiency * wire


def fit(points: Sequence[Point]) -> Model:
    """The constants that fit `points` best in relative error: non-negative least squares for each overlap.

    Which points hide all their exchange depends on the constants themselves: those are found by a few rounds.
    """
    from scipy.optimize import nnls

    best: tuple[float, Model] | None = None
    measured = np.array([point.step_s for point in points])
    waits = np.array([point.wait_s for point in points])
    for overlap in OVERLAPS:
        exposed = np.array([point.ranks > 1 for point in points], dtype=float)
        for _ in range(4):
            columns = np.array([_features(point) for point in points])
            columns[:, 2:5] *= exposed[:, None]
            target = measured - waits + exposed * overlap * BACKWARD_SHARE * waits
            constants, _ = nnls(columns / measured[:, None], target / measured)
            model = Model(
                overhead=constants[0],
                update=constants[1],
                alpha=constants[2],
                host=constants[3],
                inefficiency=constants[4],
                straggler=constants[5],
                overlap=float(overlap),
            )
            now = np.array(
                [float(model.exchange(p) > overlap * BACKWARD_SHARE * p.wait_s and p.ranks > 1) for p in points]
            )
            if (now == exposed).all():
                break
            exposed = now
        loss = float(np.sum(errors(model, points) ** 2))
        if best is None or loss < best[0] * (1 - 1e-9):
            best = (loss, model)
    assert best is not None
    return best[1]


def errors(model: Model, points: Sequence[Point]) -> np.ndarray:
    """(predicted - measured) / measured for each point."""
    return np.array([(model.step(point) - point.step_s) / point.step_s for point in points])


def leave_one_out(points: Sequence[Point], groups: Sequence[object]) -> list[tuple[Point, float]]:
    """(point, relative error) of each point, predicted by a model that saw no point of its group."""
    found = []
    for index, point in enumerate(points):
        rest = [other for other, group in zip(points, groups, strict=True) if group != groups[index]]
        found.append((point, float(errors(fit(rest), [point])[0])))
    return found


def bootstrap(points: Sequence[Point], rounds: int, seed: int = 0) -> list[Model]:
    """Models of `rounds` resamplings of the fit's relative residuals: their spread is the prediction's uncertainty."""
    generator = np.random.default_rng(seed)
    model = fit(points)
    base = [model.step(point) for point in points]
    left = errors(model, points)
    found = []
    for _ in range(rounds):
        drawn = generator.choice(left, len(points))
        moved = [
            replace(point, step_s=max(1e-9, step / (1.0 + residual)))
            for point, step, residual in zip(points, base, drawn, strict=True)
        ]
        found.append(fit(moved))
    return found


def _features(point: Point) -> tuple[float, float, float, float, float, float]:
    wire = point.volume / point.link_bytes_per_s if point.link_bytes_per_s else 0.0
    slow = slowest(point.ranks)
    own = point.crowd * point.parameter_bytes
    return point.crowd, own, 2.0 * (point.ranks - 1), point.crowd * point.volume, wire, slow
