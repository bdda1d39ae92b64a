"""`harness experiment predict` on a comparison study: the scaling curve from its runs on one and two workers, drawn
past them.

    step(n, b) = fixed + sample * b + exchange(n),     exchange(1) = 0,  exchange(2) measured

b samples a worker. fixed and sample (a worker's own time) are told apart where runs of two sizes b exist (weak and
strong scaling together); else only weak scaling is drawn. exchange is what of the exchange is not hidden behind
computing. What it becomes with more workers lies between two laws of the ring (Thakur, Rabenseifner & Gropp, 2005):
bytes, 2(n-1)/n of the gradients, so it no more than doubles; messages, 2(n-1) of them, so it grows with n. The curve
follows the bytes, the band reaches to the messages and holds the scatter of the runs (resampled). That more workers may
sit behind slower links, and that less computing hides less exchange, is not in it: such a point falls below the band.

Cells with more workers than `fitted` never enter the fit; where the study has them, the error there is stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.analysis.comparison import Comparison
from harness.common.formatting import is_number
from harness.job.declaration import JobError
from mpi.ring import sent_share

KINDS = ("weak", "strong")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One run: workers, samples a worker and step, median step in seconds."""

    workers: int
    batch: float
    step_s: float


@dataclass(frozen=True, kw_only=True)
class Law:
    """Seconds, seconds a sample, seconds of unhidden exchange on two workers."""

    fixed: float
    sample: float
    exchange: float

    def step(self, workers: int, batch: float, *, messages: bool = False) -> float:
        """Predicted seconds; messages: by the pessimistic law of the exchange."""
        growth = (workers - 1.0) if messages else sent_share("all_reduce", workers)
        return self.fixed + self.sample * batch + self.exchange * growth


def fit(runs: Sequence[Timed]) -> Law:
    """Non-negative least squares of relative errors. Raises ValueError without runs on one and on two workers, and
    where a worker's own time and the exchange cannot be told apart (strong scaling alone: with the second worker comes
    the smaller batch)."""
    from scipy.optimize import nnls

    if not {1, 2} <= {run.workers for run in runs}:
        raise ValueError("runs on 1 and on 2 workers are needed")
    columns = _columns(runs)
    if not tells_sizes(runs):
        columns[:, 0] = 0.0
        if len({run.batch for run in runs}) > 1:
            raise ValueError("strong scaling alone cannot tell a worker's own time from the exchange")
    times = np.array([run.step_s for run in runs])
    (fixed, sample, exchange), _ = nnls(columns / times[:, None], np.ones(len(runs)))
    return Law(fixed=float(fixed), sample=float(sample), exchange=float(exchange))


def tells_sizes(runs: Sequence[Timed]) -> bool:
    """Whether the fixed part of a worker's time can be told from that of its samples, and both from the exchange."""
    return int(np.linalg.matrix_rank(_columns(runs))) == 3


def _columns(runs: Sequence[Timed]) -> np.ndarray:
    return np.array([[1.0, run.batch, float(run.workers > 1)] for run in runs])


def resampled(runs: Sequence[Timed], rounds: int, seed: int = 0) -> list[Law]:
    """Laws of `rounds` resamplings of the runs inside each cell (workers, batch)."""
    generator = np.random.default_rng(seed)
    cells: dict[tuple[int, float], list[Timed]] = {}
    for run in runs:
        cells.setdefault((run.workers, run.batch), []).append(run)
    return [
        fit([cell[pick] for cell in cells.values() for pick in generator.integers(0, len(cell), len(cell))])
        for _ in range(rounds)
    ]


def build(comparison: Comparison, *, largest: int, fitted: int = 2, rounds: int = 200) -> dict[str, Any]:
    """What prediction.json holds: by engine the law, curves of both kinds of scaling, and errors past `fitted` workers.

    Raises JobError where no engine has timed runs on one and two workers, or only strong scaling.
    """
    timed = _timed(comparison)
    engines: dict[str, Any] = {}
    reason = "no engine has timed runs on 1 and on 2 workers: measure both"
    for label, by_kind in timed.items():
        near = [run for runs in by_kind.values() for run in runs if run.workers <= fitted]
        try:
            law, laws = fit(near), resampled(near, rounds)
        except ValueError as unfit:
            if "strong" in str(unfit):
                reason = f"{unfit}: measure weak scaling too"
            continue
        two_sizes = tells_sizes(near)
        curves, errors = {}, []
        for kind, runs in by_kind.items():
            if kind == "strong" and not two_sizes:
                continue
            base = next(run.batch * run.workers if kind == "strong" else run.batch for run in runs)
            counts = sorted({2**power for power in range(largest.bit_length())} | {run.workers for run in runs})
            curves[kind] = [_point(kind, law, laws, count, base) for count in counts]
            for point in curves[kind]:
                seen = [run.step_s for run in runs if run.workers == point["workers"]]
                point["measured_step_s"] = float(np.median(seen)) if seen else None
                if seen and point["workers"] > fitted:
                    error = point["step_s"] / point["measured_step_s"] - 1
                    inside = point["step_low_s"] <= point["measured_step_s"] <= point["step_high_s"]
                    errors.append({"scaling": kind, "workers": point["workers"], "error": error, "inside": inside})
            _measure_efficiency(curves[kind], comparison, label, kind)
        engines[label] = {"law": law.__dict__, "curves": curves, "errors": errors}
    if not engines:
        raise JobError(f"study '{comparison.title}' cannot be drawn further: {reason}")
    off = [abs(error["error"]) for one in engines.values() for error in one["errors"]]
    return {"fitted_workers": fitted, "median_error": float(np.median(off)) if off else None, "engines": engines}


def _timed(comparison: Comparison) -> dict[str, dict[str, list[Timed]]]:
    """Runs by label and kind of scaling. Of groups that must not share a curve only the first of each kind."""
    cells = {kind: _cells(comparison, kind) for kind in KINDS}
    first = {kind: int(own["group"].iloc[0]) for kind, own in cells.items() if len(own)}
    found: dict[str, dict[str, list[Timed]]] = {}
    for run, row in zip(comparison.runs, comparison.frame.to_dict("records"), strict=True):
        rate = row["samples_per_s"]
        if row["group"] != first.get(str(run.job["scaling"])) or not rate or not np.isfinite(rate):
            continue
        whole = float(run.job["global_batch"])
        timed = Timed(workers=int(row["workers"]), batch=whole / int(row["workers"]), step_s=whole / rate)
        found.setdefault(row["label"], {}).setdefault(str(run.job["scaling"]), []).append(timed)
    return found


def _cells(comparison: Comparison, kind: str) -> Any:
    """The cells of the first group with good runs of that kind of scaling."""
    if not len(comparison.cells):
        return comparison.cells
    cells = comparison.cells[(comparison.cells["scaling"] == kind) & (comparison.cells["ok"] > 0)]
    return cells[cells["group"] == cells["group"].min()]


def _point(kind: str, law: Law, laws: Sequence[Law], workers: int, base: float) -> dict[str, Any]:
    """The predicted step and efficiency at so many workers, with their bands."""
    batch = base / workers if kind == "strong" else base
    share = 1.0 / workers if kind == "strong" else 1.0

    def both(each: Law, *, messages: bool) -> tuple[float, float]:
        step = each.step(workers, batch, messages=messages)
        return step, each.step(1, base) / step * share

    step, efficiency = both(law, messages=False)
    near, far = (np.array([both(each, messages=messages) for each in laws]) for messages in (False, True))
    return {
        "workers": workers,
        "samples_per_s": workers * batch / step,
        "step_s": step,
        "step_low_s": float(np.percentile(near[:, 0], 5)),
        "step_high_s": float(np.percentile(far[:, 0], 95)),
        "efficiency": efficiency,
        "efficiency_low": float(np.percentile(far[:, 1], 5)),
        "efficiency_high": float(np.percentile(near[:, 1], 95)),
    }


def _measure_efficiency(curve: Sequence[dict[str, Any]], comparison: Comparison, label: str, kind: str) -> None:
    """Puts the efficiency against the engine's own one worker, which the law predicts, beside each point; None where
    it was not measured in two repeats."""
    cells = _cells(comparison, kind)
    own = cells[cells["label"] == label]
    seen = {int(cell.workers): cell.own_efficiency for cell in own.itertuples() if is_number(cell.own_efficiency)}
    for point in curve:
        point["measured_efficiency"] = seen.get(point["workers"])
