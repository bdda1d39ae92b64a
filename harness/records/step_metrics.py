"""From the rows of a run to the figures that are compared: throughput, typical step, tails, efficiency, time to target.

Definitions, used everywhere in records, tables and plots:

- throughput (samples/s) = total samples / total seconds of the timed steps, over all workers (`totals`). The seconds
  are wall time from the end of the last warm-up step to the end of the last timed step, on the device's own clock:
  data, logging and whatever else lies between steps is in it;
- a step is one whole optimizer step: waiting for data, forward, backward, exchange, clip and update (`step_s`). The
  typical step is its median: it says how long most steps take, and nothing about throughput where a few take long;
- the first `warmup` rows are dropped (compilation, negotiation, allocator growth), also those after a restart (a
  resumed run, another world of an elastic job), and nothing else: no outlier is removed;
- efficiency(N) = throughput(N) / (N x throughput of the baseline on one worker), same machine, study and repeat.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.records.environment import environment as environment  # the other half of what a run records

MIN_STEPS = 30  # timed steps below which the median is reported with a warning
MIN_REPEATS = 3
DRIFT_LIMIT = 0.05  # change of the median step from the first to the second half of a run that is called drift
BETWEEN_LIMIT = 0.05  # share of the timed seconds between steps above which the harness, not the engine, is measured
STRAGGLER_LIMIT = 0.10  # a rank's own work above the others' median by this share is called a straggler

Row = Mapping[str, Any]


def summarize(rows: Sequence[Row], warmup: int) -> dict[str, Any]:
    """The throughput part of result.json from the rows of steps.jsonl: ``total`` (`Totals`: what is printed as
    samples/s), ``samples_per_s, step_s, data_s`` of single steps as `spread` dicts, ``samples_per_s_per_worker`` where
    rows hold rank_step_s, the share of time spent waiting for data, drift, and the number of rows left out. Keys are
    always there; figures are None where no row is left."""
    warm = _warm(rows, warmup)
    timed = [row for row in warm if row.get("step_s")]
    step_s = np.array([row["step_s"] for row in timed], dtype=float)
    data_s = np.array([row.get("data_s") or 0.0 for row in timed], dtype=float)
    samples = np.array([row.get("samples") or 0 for row in timed], dtype=float)
    workers = len(timed[0].get("rank_step_s") or ()) if timed else 0
    rate = samples / step_s if timed else samples
    whole = totals(rows, warmup)
    return {
        "total": None if whole is None else whole.record(),
        "samples_per_s": spread(rate),
        "samples_per_s_per_worker": spread(rate / workers) if workers else None,
        "step_s": spread(step_s, tails=True),
        "data_s": spread(data_s, tails=True),
        "data_share": float(data_s.sum() / step_s.sum()) if timed else None,
        "drift": drift(step_s),
        "warmup_steps": len(rows) - len(warm),
        "skipped_steps": sum(bool(row.get("skipped")) for row in rows),
    }


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What the timed steps of a run come to. between_s: those of the `seconds` that lie between steps (the records'
    exchange, logging, checkpoints), not below 0."""

    steps: int
    samples: int
    seconds: float
    between_s: float

    @property
    def samples_per_s(self) -> float:
        """Throughput over all workers."""
        return self.samples / self.seconds

    @property
    def between_share(self) -> float:
        return self.between_s / self.seconds

    def record(self) -> dict[str, float]:
        """For result.json."""
        names = ("steps", "samples", "seconds", "between_s", "samples_per_s")
        return {name: getattr(self, name) for name in names}


def totals(rows: Sequence[Row], warmup: int) -> Totals | None:
    """Total samples and seconds of the timed rows of steps.jsonl; None where there is none.

    Each row holds the time `t` of its end: the device's own time stamp, tied to rank 0's clock where the device was
    synchronized at the end of each window of `log_every` steps. So the seconds of a stretch of timed rows are its last
    row's t minus that of the row before it; without one (no warm-up), minus its first row's begin. Stretches end where
    the workers were started again: the time in between is not theirs. The sum of `step_s` is less: it leaves out what
    lies between steps; or more, because it takes the slowest rank of each step, which is not always the same one.
    A stretch whose clock does not advance (t not recorded) counts by its step_s.
    """
    steps, samples, seconds, inside = 0, 0, 0.0, 0.0
    for before, stretch in _stretches(rows, warmup):
        own = math.fsum(row["step_s"] for row in stretch)
        clocked = all(row.get("t") is not None for row in (before or stretch[0], stretch[0], stretch[-1]))
        begin = (before["t"] if before else stretch[0]["t"] - stretch[0]["step_s"]) if clocked else 0.0
        wall = stretch[-1]["t"] - begin if clocked else 0.0
        steps += len(stretch)
        samples += sum(int(row.get("samples") or 0) for row in stretch)
        seconds += wall if wall > 0 else own
        inside += own
    if seconds <= 0:
        return None
    return Totals(steps=steps, samples=samples, seconds=seconds, between_s=max(0.0, seconds - inside))


def window_rate(rows: Sequence[Row]) -> float | None:
    """Samples/s of a few neighbouring rows, for a view of a running job: all samples over all seconds from the end of
    the first row's step to that of the last one's; of a single row, or rows without a clock, over their own steps.
    None where there is none."""
    if not rows:
        return None
    rows = list(rows)
    last = max((place for place, row in enumerate(rows) if row.get("restarted")), default=0)
    whole = totals(rows[last:], 1) or totals(rows[last:], 0)
    return None if whole is None else whole.samples_per_s


def _stretches(rows: Sequence[Row], warmup: int) -> Iterator[tuple[Row | None, list[Row]]]:
    """(the row before, timed rows) of each start of the workers that came beyond its warm-up."""
    starts = [0, *(place for place, row in enumerate(rows) if place and row.get("restarted")), len(rows)]
    for begin, end in itertools.pairwise(starts):
        timed = [row for row in rows[begin + warmup : end] if row.get("step_s")]
        if timed:
            yield (rows[begin + warmup - 1] if warmup else None), timed


def timed_rows(rows: Sequence[Row], warmup: int) -> list[Row]:
    """The rows of steps.jsonl that count: without the first `warmup` of the record and of each restart in it."""
    return [row for row in _warm(rows, warmup) if row.get("step_s")]


def _warm(rows: Sequence[Row], warmup: int) -> list[Row]:
    kept, since_start = [], 0
    for row in rows:
        since_start = 0 if row.get("restarted") else since_start
        if since_start >= warmup:
            kept.append(row)
        since_start += 1
    return kept


def spread(values: Sequence[float] | np.ndarray, *, tails: bool = False) -> dict[str, Any]:
    """``median, q1, q3, n`` and with `tails` also ``p90, p99`` of `values`, in their unit; None where n is 0.
    Percentiles interpolate linearly (numpy's default); p99 of fewer than 100 values is close to their maximum."""
    values = np.asarray(values, dtype=float)
    names = {"median": 50, "q1": 25, "q3": 75} | ({"p90": 90, "p99": 99} if tails else {})
    if values.size == 0:
        return {**dict.fromkeys(names), "n": 0}
    figures = np.percentile(values, list(names.values()))
    return {**{name: float(figure) for name, figure in zip(names, figures, strict=True)}, "n": int(values.size)}


def steps_for_percentile(percent: float) -> int:
    """Fewest steps of which a percentile is printed: 29 for p90, 59 for p95, 299 for p99.

    So many are needed that the slowest of them lies above the true percentile in 95 of 100 runs (Wilks 1941): with
    fewer, not even the slowest step bounds it from above, and the figure is only another name for the maximum."""
    return math.ceil(math.log(0.05) / math.log(percent / 100))


def tail(step_s: Sequence[float] | np.ndarray, percent: float) -> float | None:
    """A percentile of the step times in seconds; None where they are too few (`steps_for_percentile`)."""
    if len(step_s) < steps_for_percentile(percent):
        return None
    return float(np.percentile(np.asarray(step_s, dtype=float), percent))


def drift(step_s: Sequence[float] | np.ndarray) -> float | None:
    """Median of the second half over that of the first half, minus 1; None below 8 steps. Well above 0 on a
    throttling or shared machine, well below 0 where the warm-up was too short."""
    step_s = np.asarray(step_s, dtype=float)
    if step_s.size < 8:
        return None
    half = step_s.size // 2
    return float(np.median(step_s[half:]) / np.median(step_s[:half]) - 1.0)


def efficiency(rate_one: float, rate_n: float, workers: int) -> float:
    """Scaling efficiency of `workers` workers, 1.0 = linear. rate_one: samples/s of the baseline on one worker, in the
    same study and repeat: plain torch, one baseline for every engine, or the engine itself. Above 1.0 is possible but
    suspicious: see `efficiency_warning`."""
    return rate_n / (workers * rate_one)


def efficiency_warning(value: float, workers: int, scaling: str) -> str | None:
    """The sentence that belongs beside an efficiency above 100 %, with the likely cause; None up to 100.5 %."""
    if value <= 1.005:
        return None
    cause = (
        "each worker's share of the fixed global batch is smaller and fits caches better, or one worker was slowed by "
        "memory pressure or by threads that the others also use"
        if scaling == "strong"
        else "the one-worker run was slowed (other load, too short a warm-up, memory pressure)"
    )
    return f"efficiency {value:.0%} at {workers} workers is above 100 %: likely {cause}; repeat the one-worker run"


def time_to_target(points: Sequence[tuple[float, float]], target: float, *, higher_is_better: bool) -> float | None:
    """Seconds from the start of training to the first point (seconds, quality) that reaches `target`, None if none
    does: MLPerf Training's definition (time to train to a target quality, evaluation included in the clock)."""
    for seconds, quality in points:
        if quality >= target if higher_is_better else quality <= target:
            return float(seconds)
    return None


def smooth_loss(rows: Sequence[Row], window: int = 10) -> list[tuple[float, float]]:
    """(seconds since training began, mean loss of the last `window` steps): the quality that `time_to_target` takes
    where a run is not evaluated on the way. Points begin when the window is full."""
    kept = [(row["t"], row["loss"]) for row in rows if row.get("loss") is not None and row.get("t") is not None]
    if len(kept) < window:
        return []
    losses = np.array([loss for _, loss in kept])
    means = np.convolve(losses, np.ones(window) / window, mode="valid")
    return [(float(kept[index + window - 1][0]), float(mean)) for index, mean in enumerate(means)]


def stragglers(own_s: Mapping[int, Sequence[float]], limit: float = STRAGGLER_LIMIT) -> list[dict[str, Any]]:
    """Ranks whose own work per step (data + forward + backward + update, without waiting for others) is above the
    median of the other ranks by more than `limit`, worst first: ``rank, own_s, others_s, excess``.

    A synchronous step lasts equally long on every rank, so whole step times hide a slow rank: only the time before a
    rank joins the exchange shows it. own_s: rank -> seconds of the sampled steps (see
    `harness.instruments.step_timing`)."""
    medians = {rank: float(np.median(values)) for rank, values in own_s.items() if len(values)}
    found = []
    for rank, own in medians.items():
        others = [value for other, value in medians.items() if other != rank]
        if others and own > (1.0 + limit) * (reference := float(np.median(others))):
            found.append({"rank": rank, "own_s": own, "others_s": reference, "excess": own / reference - 1.0})
    return sorted(found, key=lambda item: -item["excess"])


def own_work_s(row: Row) -> float:
    """Seconds of a rank's own part of a sampled step (a row of split.jsonl), without waiting for others."""
    return sum(row.get(f"{part}_s") or 0.0 for part in ("data", "forward", "backward", "optimizer"))


def launching_s(row: Row) -> float:
    """Seconds that the processor worked for forward and backward in a sampled step (a row of split.jsonl): on a GPU,
    what launching its kernels takes. 0 where it was not recorded."""
    return (row.get("forward_cpu_s") or 0.0) + (row.get("backward_cpu_s") or 0.0)
