"""The duels of a study: its engines and worker counts, and plain torch on one worker as the baseline of all.

They follow the study's whole trainings, which say how long a step takes and how much memory each engine needs.
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import backends
from harness.analysis.duels.estimate import FIRST_STAGE
from harness.analysis.duels.record import AGAIN, asked_pairs, deciding_pairs
from harness.common.formatting import is_number
from harness.experiments.duels.fight import Contender
from harness.experiments.duels.lineups import CONTEXT_MIB, Memory, free_memory, lineups
from harness.experiments.duels.pace import Pace
from harness.experiments.duels.record import side
from harness.experiments.duels.starting import why_not_forked
from harness.experiments.duels.until import Campaign, Goal
from harness.experiments.trainings.cells import Cell
from harness.job.declaration import Job
from harness.records.locks import hold, release
from harness.records.record_files import runs_of
from harness.records.run_record import RecordedRun
from harness.study.study_file import Study
from mpi.process import CTRL_C, signals_raise

BLOCK_S = 0.5  # that a block should take at least: shorter ones measure the marks
FIGHT_S = 60.0  # that the rounds of a duel should take at most
WARMUP_S = 2.0  # that each engine's steps before the first round should take at least
SLACK = 0.95  # of the budget is planned: the last duel of the first stage must not miss it by a second
ROUNDS = (6, 40)  # of a duel, at least and at most
BASELINE_EVERY = 2  # rounds of which plain torch fights in one: engines are asked about, it is what they stand beside
FORKED_STARTS = 1.5  # times the start of one training that all forked contenders need
FORKED_STAGE = 6  # duels of a first stage whose starts cost little: t(5) = 2.57 instead of t(3) = 3.18


def why_none(study: Study) -> str:
    """Why the study's engines fight no duels; "" where they do."""
    if not study.budget_s:
        return "no budget (--budget 0)"
    job = study.jobs[0]
    cores = len(os.sched_getaffinity(0))
    most = max(job.slots for job in study.jobs)
    shared = ("backend", "engine", "slots", "global_batch", "seed", "repeat", "run")
    kinds = {
        json.dumps({key: value for key, value in job.to_dict().items() if key not in shared}, sort_keys=True)
        for job in study.jobs
    }
    reasons = {
        "its workers are on several hosts": job.nodes > 1,
        "its runs share the machine (--concurrent)": job.concurrent > 1,
        "its runs are profiled": bool(job.profile),
        "its jobs are elastic": any(job.elastic is not None for job in study.jobs),
        "its Horovod tunes itself before each run": any(job.tune_steps for job in study.jobs),
        "its computing is emulated": bool(job.emulate_compute_ms),
        "it has more workers than cores": job.oversubscribe and most > cores,
        "its [matrix] holds several jobs: ask about one of them": len(kinds) > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def fight_study(study: Study, folder: Path, *, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Fights the study's duels until its `until` or its budget is reached, goes on from those that were fought; returns
    the record, None where too few engines trained. Raises JobError where no duel could be fought, and SystemExit
    (130) after an interrupt."""
    runs = [run for run in map(RecordedRun, runs_of(folder)) if run.ok]
    base = base_job(study)
    contenders = contenders_of_study(study, runs)
    if len(contenders) < 3:  # plain torch twice, and nothing to compare with it
        return None
    forked = not why_not_forked([item.cell.job(item.job(base)) for item in contenders])
    stage = FORKED_STAGE if forked else FIRST_STAGE
    pace = pace_of(contenders, runs, study.budget_s, stage=stage, forked=forked)
    goal = Goal(wanted=study.until, budget_s=study.budget_s, first_stage=stage)
    sides = [side(item) for item in contenders]
    pairs = asked_pairs(sides)
    hold(folder, f"study {study.name}")
    try:
        with signals_raise(lambda _: KeyboardInterrupt(), signal.SIGTERM, signal.SIGHUP):
            campaign = Campaign(
                *(base, contenders, pace, folder, goal),
                seed=base.seed,
                say=say,
                keep_pace=True,
                deciding=deciding_pairs(sides),
            )
            free = free_memory(devices=any(_peaks(run, "peak_device_mib") for run in runs))
            names = [item.name for item in contenders]
            fitting, unfit = lineups(names, pairs, memory_needs(contenders, runs), free)
            campaign.not_fought |= unfit
            if unfit:
                say(f"{len(unfit)} of {len(pairs)} pairs do not fit side by side: {next(iter(unfit.values()))}")
            return campaign.run(fitting, in_pairs=True)
    except KeyboardInterrupt:
        say("interrupted: finished duels are kept, the same command goes on where it stopped")
        raise SystemExit(CTRL_C) from None
    finally:
        release(folder)


def base_job(study: Study) -> Job:
    """What all contenders train: the study's job without its engine."""
    job = study.jobs[0]
    return job.with_(
        backend="single",
        engine={},
        slots=1,
        global_batch=job.global_batch // job.slots if job.scaling == "weak" else job.global_batch,
        eval_samples=-1,
        schedule="constant",
        warmup_steps=0,
        time_limit_s=0.0,
        checkpoint_every=0,
        resume=False,
        repeat=0,
        run="",
    )


def contenders_of_study(study: Study, runs: Sequence[RecordedRun]) -> list[Contender]:
    """Plain torch on one worker twice (the second calibrates), then every engine and worker count of the study that has
    a finished run. runs: the study's finished ones."""
    base = base_job(study)
    plain = _contender(next((job for job in study.jobs if job.backend == "single"), base))
    baseline = replace(plain, every=BASELINE_EVERY)
    again = replace(baseline, name=f"{baseline.name}{AGAIN}2")
    trained = {_contender(Job.from_dict(run.job)).name for run in runs}
    others = {item.name: item for item in map(_contender, study.jobs) if item.name in trained}
    others.pop(baseline.name, None)
    return [baseline, again, *others.values()]


def _contender(job: Job) -> Contender:
    settings = dict(job.engine)
    stage = settings.pop("zero_stage", None)
    if job.backend == "deepspeed" and stage is None:
        stage = getattr(backends.settings_from("deepspeed", {}), "zero_stage", None)
    cell = Cell(
        backend=job.backend,
        zero_stage=stage,
        settings=tuple(sorted(settings.items())),
        workers=job.slots,
        accumulation=job.accumulation,
        clip=job.clip_norm is not None,
        precision=job.precision,
        precision_mode=job.precision_mode,
    )
    return Contender(name=f"{cell.engine}@{cell.workers}", cell=cell, global_batch=job.global_batch)


def _by_contender(runs: Sequence[RecordedRun]) -> dict[str, list[RecordedRun]]:
    found: dict[str, list[RecordedRun]] = {}
    for run in runs:
        found.setdefault(_contender(Job.from_dict(run.job)).name, []).append(run)
    return found


def memory_needs(contenders: Sequence[Contender], runs: Sequence[RecordedRun]) -> dict[str, Memory]:
    """Contender -> what its finished training needed at its peak."""
    trained = _by_contender(runs)
    needs = {}
    for item in contenders:
        own = trained.get(item.name) or []
        host = max((sum(_peaks(run, "peak_rss_mib")) for run in own), default=0.0)
        device = max((value + CONTEXT_MIB for run in own for value in _peaks(run, "peak_device_mib")), default=0.0)
        if host or device:
            needs[item.name] = Memory(host=host, device=device)
    return needs


def _peaks(run: RecordedRun, name: str) -> list[float]:
    return [float(value) for value in run.memory.get(name) or () if is_number(value)]


def pace_of(
    contenders: Sequence[Contender],
    runs: Sequence[RecordedRun],
    budget_s: float,
    *,
    stage: int = FIRST_STAGE,
    forked: bool = False,
) -> Pace:
    """Steps of a block and rounds of a duel, by how long a step and a start took in the trainings: blocks of at least
    BLOCK_S, and a first stage of `stage` duels that fits in the budget. forked: all ranks are forked from one process,
    which is made ready as one rank is."""
    trained = _by_contender(runs)
    steps = {name: statistics.median(map(_step_s, own)) for name, own in trained.items()}
    longest = max(steps.values(), default=1.0)
    each = [steps.get(item.name, longest) for item in contenders]
    block = min(50, max(1, round(BLOCK_S / statistics.median(each))))
    warmup = min(10, max(2, math.ceil(WARMUP_S / longest)))
    starts = [statistics.median(map(_start_s, own)) for own in trained.values()]
    ready_s = (FORKED_STARTS * max(starts, default=0.0) if forked else sum(starts)) + warmup * sum(each)
    fight_s = min(FIGHT_S, max(0.0, SLACK * budget_s / stage - ready_s))
    round_s = block * math.fsum(step / item.every for step, item in zip(each, contenders, strict=True))
    rounds = min(ROUNDS[1], max(ROUNDS[0], int(fight_s / round_s)))
    return Pace(warmup=warmup, steps=block, rounds=rounds)


def _step_s(run: RecordedRun) -> float:
    """Mean seconds of a step of a finished run."""
    return max(1e-4, float(_phases(run).get("train_s") or 1.0) / max(1, int(run.job.get("steps") or 1)))


def _start_s(run: RecordedRun) -> float:
    return float(_phases(run).get("setup_s") or 10.0)


def _phases(run: RecordedRun) -> Mapping[str, Any]:
    return run.result.get("phases") or {}
