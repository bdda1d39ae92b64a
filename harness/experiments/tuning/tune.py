"""Tunes one engine for one job and number of workers: calibrate, search, measure the winner anew, prove it equal."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import backends
from backends.tuning import Candidate, Situation, spelled
from harness.analysis.duels.estimate import DuelDifference
from harness.experiments.duels.fight import Duel
from harness.experiments.duels.pace import Pace
from harness.experiments.parity.judge import FP32_BOUND
from harness.experiments.tuning.arena import AS_IT_COMES, Arena, Say, cell_of
from harness.experiments.tuning.search import Trial, search, winner
from harness.job.declaration import Job, JobError

FIRST_ROUNDS = 4  # of the first rung; 8 in the second, 16 in the third
TUNER_S, TUNER_STEPS = 60.0, (100, 500)  # what Horovod's own tuner is given: seconds, and steps at least and at most


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What every engine is given alike. trials: candidates. budget_s: seconds for the search and the last duels. pace:
    of a duel; its rounds are those of the last ones. side_by_side: candidates in one duel. other_rounding: also try
    candidates that round elsewhere."""

    trials: int
    budget_s: float
    pace: Pace
    side_by_side: int = 3
    other_rounding: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What tuning one engine gave. calibration: the engine against itself. difference: the winner against the engine as
    it comes, by fresh duels; None where nothing was faster in the search. parity: largest relative difference from the
    single process, None where it was not asked. reason: why the engine stays as it comes, "" where it does not."""

    backend: str
    given: Mapping[str, Any]
    workers: int
    settings: Mapping[str, Any]
    trials: Sequence[Trial]
    calibration: DuelDifference
    difference: DuelDifference | None
    parity: float | None
    reason: str
    seconds: float
    arena: Arena


def tune(base: Job, backend: str, given: Mapping[str, Any], workers: int, effort: Effort, say: Say) -> Tuned:
    """Searches for the fastest settings of one engine. Raises JobError where the engine as it comes fails.

    Args:
        base: the job, its global batch that of all workers.
        backend: name of the engine.
        given: settings that stay as they are.
        workers: on this machine.
        effort: the same for every engine.
        say: gets one line of progress at a time.
    """
    arena = Arena(
        base=base,
        backend=backend,
        given=given,
        workers=workers,
        pace=effort.pace,
        side_by_side=effort.side_by_side,
        seed=effort.seed,
        say=say,
        budget_s=effort.budget_s,
    )
    calibration, first = arena.calibrate()
    trials: list[Trial] = []
    if candidates := _candidates(arena, first, effort):
        trials = search(candidates, arena.measure, trials=effort.trials, rounds=FIRST_ROUNDS)
    best = winner(trials)
    difference, parity, reason = None, None, "no candidate was faster in the search" if trials else "nothing to try"
    if best is not None:
        difference = arena.confirm(best.candidate)
        reason = _unsure(best, difference)
        if not reason:
            parity, reason = _parity(best.candidate, arena, say)
        if reason:
            best.lost = reason
    settings = {} if reason or best is None else dict(best.candidate.settings)
    return Tuned(
        backend=backend,
        given=given,
        workers=workers,
        settings=settings,
        trials=trials,
        calibration=calibration,
        difference=difference,
        parity=parity,
        reason=reason,
        seconds=time.monotonic() - arena.began,
        arena=arena,
    )


def _unsure(best: Trial, difference: DuelDifference) -> str:
    """Why fresh duels do not show that the winner of the search is faster; "" where they do."""
    if difference.low is not None and difference.low > 0:
        return ""
    low, high = (f"{(end or 0.0) * 100:.1f}" for end in (difference.low, difference.high))
    return (
        f"{best.candidate.name}: {(best.value or 0.0) * 100:+.1f} % in the search, {difference.value * 100:+.1f} % "
        f"(95 % CI {low} to {high} %) in fresh duels, not shown to be faster"
    )


def _candidates(arena: Arena, first: Duel, effort: Effort) -> list[Candidate]:
    """What the engine names for this job, without what the user has set; Horovod's own tuner asked for its values."""
    described = first.told[AS_IT_COMES]["engine"]
    situation = Situation(
        workers=arena.workers,
        nodes=1,
        device=str(described["device"]).partition(":")[0],
        precision=arena.base.precision,
        gradient_elements=int(described["trainable_parameters"]),
    )
    settings = backends.settings_from(arena.backend, arena.given)
    named = backends.backend_class(arena.backend).candidates(settings, situation)
    found: dict[str, Candidate] = {}
    for candidate in named:
        if set(candidate.settings) & set(arena.given) or not (candidate.exact or effort.other_rounding):
            continue
        if "tune_steps" in candidate.settings:
            step_s = min(block.seconds for block in first.blocks) * arena.base.global_batch / first.blocks[0].samples
            asked = _own_tuner(candidate, arena, step_s)
            if asked is not None:
                found.setdefault(asked.name, asked)
        else:
            found.setdefault(candidate.name, candidate)
    return list(found.values())


def _own_tuner(candidate: Candidate, arena: Arena, step_s: float) -> Candidate | None:
    """`candidate` with the values that Horovod's own tuner finds in a phase of its own; None where it finds none."""
    from harness.launch.run import run_job
    from harness.worker.horovod_autotune import FILE

    least, most = TUNER_STEPS
    steps = int(min(most, max(least, TUNER_S / step_s)))
    arena.say(f"Horovod's own tuner searches over {steps} steps")
    job = arena.base.with_(
        backend=arena.backend, nodes=1, slots=arena.workers, engine={**arena.given, "tune_steps": steps}, steps=1,
        warmup_steps=0, keep_weights=False, study="own-tuner",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="harness-tune-") as scratch:
        file = run_job(job, Path(scratch)) / FILE
        if not file.exists():
            arena.say("Horovod's own tuner found nothing: it is left out")
            return None
        chosen = json.loads(file.read_text())["settings"]
    settings = {name: round(chosen[name], 4) for name in ("fusion_threshold_mb", "cycle_time_ms")}
    return replace(candidate, settings=settings)


def _parity(candidate: Candidate, arena: Arena, say: Say) -> tuple[float | None, str]:
    """(largest relative difference of any weight from the single process, why that is too much or ""): a short training
    of the preset `tiny`, in fp32 unless the candidate is one of a reduced type."""
    from harness.experiments.parity.run import run_parity

    base = Job.from_dict(
        {
            "preset": "tiny", "steps": 10, "global_batch": 4 * arena.workers * arena.base.accumulation, "lr": 1e-3,
            "warmup_steps": 2, "eval_samples": -1, "threads": arena.base.threads, "device": arena.base.device,
            "timeout_s": arena.base.timeout_s,
        }
    )  # fmt: skip
    precision = "fp32" if candidate.exact else arena.base.precision
    cell = cell_of(arena.backend, {**arena.given, **candidate.settings}, arena.workers, arena.base)
    (verdict,) = run_parity(base, [replace(cell, precision=precision, precision_mode="matched")], say=say)
    figures = [figure for figure in (verdict.difference, verdict.same_split) if figure is not None]
    if not figures:
        return None, f"parity could not be shown: {verdict.reason}"
    equal = verdict.status == "equal" or min(figures) <= FP32_BOUND
    return min(figures), "" if equal else f"it is not the same training: weights differ by {min(figures):.0e}"


def check(base: Job, backend: str, given: Mapping[str, Any], workers: int) -> None:
    """Raises JobError (or its kin) for what cannot be tuned, before anything is started."""
    from harness.launch.preflight import check_choices

    name = ":".join(filter(None, (backend, spelled(given))))
    if backend == "single":
        raise JobError("engine 'single' has no settings: tune an engine that exchanges gradients")
    for key, value in given.items():
        if isinstance(value, Mapping):
            raise JobError(f"engine '{name}': {key} is a table, tuning takes plain settings: leave it out")
    for key in ("min_np", "max_np", "tune_steps", "autotune"):
        if given.get(key):
            raise JobError(f"engine '{name}': a job with {key} changes while it runs: leave it out")
    check_choices(base.with_(backend=backend, nodes=1, slots=workers, engine=dict(given)))


def record_of(tuned: Tuned) -> dict[str, Any]:
    """The whole result, JSON-serializable, with every block that was timed."""
    arena = tuned.arena
    return {
        "backend": tuned.backend,
        "workers": tuned.workers,
        "given": dict(tuned.given),
        "settings": dict(tuned.settings),
        "reason": tuned.reason,
        "difference": None if tuned.difference is None else asdict(tuned.difference),
        "calibration": asdict(tuned.calibration),
        "parity": tuned.parity,
        "seconds": tuned.seconds,
        "pace": asdict(arena.pace),
        "trials": [
            {
                "name": trial.candidate.name,
                "settings": dict(trial.candidate.settings),
                "why": trial.candidate.why,
                "source": trial.candidate.source,
                "value": trial.value,
                "rounds": [score.rounds for score in trial.scores],
                "lost": trial.lost,
            }
            for trial in tuned.trials
        ],
        "duels": [
            {"start_s": duel.start_s, "fight_s": duel.fight_s, "foreign_cores": duel.foreign} for duel in arena.duels
        ],
        "blocks": [asdict(block) for block in arena.blocks],
    }
