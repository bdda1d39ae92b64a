"""Which engine and settings for a job: memory and speed of each, the fastest three, and what each figure stands on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import backends
from harness.experiments.max_model.memory_formula import Demand, Setting, demand_of
from harness.experiments.max_model.run import OUTSIDE_MIB
from harness.experiments.recommend.evidence import Evidence, engine_text, key_of, read_evidence
from harness.experiments.recommend.machine import Machine
from harness.experiments.recommend.scores_record import flops_in, read_scores
from harness.experiments.recommend.scoring import MEMORY, training_of
from harness.experiments.recommend.sizing import Sized
from harness.experiments.recommend.speed import MEASURED, Asked, Known, Speed, speed_of
from harness.experiments.recommend.spot_duels import fight_here
from harness.job.declaration import Job
from harness.job.engines import parse_backend

ENGINES = ("ddp", "horovod", "deepspeed:1", "deepspeed:2", "deepspeed:3", "fsdp2")
OFFLOADED = "deepspeed:2+offload_optimizer=cpu"
FITS, PERHAPS, TOO_LARGE, NOT_KNOWN = "yes", "maybe", "no", "not known"
_UNSCORED = 0.25  # half the interval of a memory (log scale) where no record says how far off the formula is
_FRAGMENTS = 0.97  # of a GPU's memory, what an allocator can give out
_PROCESS_MIB = 600.0  # of an interpreter with torch and an engine, which counts on a processor alone
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Question:
    """job: its global batch is that of all workers. engines: as the command line takes them; () = the usual ones and
    what the records hold for this job. budget_s: of duels on this machine, 0 = none."""

    job: Job
    machine: Machine
    engines: Sequence[str]
    budget_s: float


def recommend(
    question: Question, sizes: Sized, results: Path, folder: Path | None, *, say: Callable[[str], None]
) -> dict[str, Any]:
    """The answer, JSON-serializable.

    Args:
        sizes: of the question's job.
        results: whose records are the evidence.
        folder: where duels of now are recorded; None = none are fought.
        say: gets progress.
    """
    scores = read_scores(results)
    evidence = read_evidence(results)
    machine, job = question.machine, question.job
    engines = list(question.engines) or usual_engines(question, evidence)
    needs = {engine: _memory(engine, question, sizes, evidence, scores) for engine in engines}
    failed: dict[str, str] = {}
    if folder is not None and question.budget_s and machine.here:
        failed = _duels(question, needs, folder, say)
        evidence = read_evidence(results)
    asked = Asked(
        job=key_of(job.to_dict()), device=machine.device, micro=job.micro_batch, trained=sizes.trained,
        flops=sizes.flops_sample,
    )  # fmt: skip
    known = Known(evidence=evidence, flops=flops_in(scores, evidence))
    own = folder.name if folder is not None else ""
    settings = []
    for engine in engines:
        reason = next((text for name, text in failed.items() if _same_engine(name, engine)), "")
        speed = reason or speed_of(asked, engine, machine.workers, known)
        settings.append(
            {
                "engine": engine,
                "label": _label(engine),
                "memory": needs[engine],
                "speed": _speed(speed, scores, own),
            }
        )
    return {
        "schema": 1,
        "job": job.to_dict(),
        "machine": asdict(machine),
        "sizes": asdict(sizes),
        "settings": settings,
        "fastest": fastest(settings),
        "scores": scores.get("headline", ""),
        "duels": folder.name if folder is not None and (folder / "duel.json").exists() else "",
    }


def _duels(question: Question, needs: Mapping[str, Any], folder: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Fights with the settings that may fit and whose engine is here; which failed, with reasons."""
    able = [engine for engine, memory in needs.items() if memory["fits"] != TOO_LARGE]
    able = [engine for engine in able if backends.availability(parse_backend(engine)["backend"]).usable]
    if not able:
        return {}
    return fight_here(question.job, able, question.machine.here, folder, budget_s=question.budget_s, say=say)


def usual_engines(question: Question, evidence: Evidence) -> list[str]:
    """The engines as they come, and every other setting that the records hold for this very question."""
    workers = question.machine.workers
    engines = [*(("single",) if workers == 1 else ()), *ENGINES]
    if question.machine.on_gpu:
        engines.append(OFFLOADED)
    key = key_of(question.job.to_dict())
    same = [p for p in evidence.points if p.job == key and p.device == question.machine.device and p.rate]
    recorded = {p.engine for p in same if p.workers == workers and p.micro == question.job.micro_batch}
    return [*engines, *sorted(recorded - set(engines) - {"single"})]


def fastest(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The engines of the fastest settings that may fit, at most three."""
    able = [one for one in settings if one["speed"]["value"] and one["memory"]["fits"] in (FITS, PERHAPS, NOT_KNOWN)]
    able.sort(key=lambda one: -one["speed"]["value"])
    return [one["engine"] for one in able[:_SHOWN]]


def _memory(
    engine: str, question: Question, sizes: Sized, evidence: Evidence, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """MiB of one worker by part, its peak with its interval, and whether that fits."""
    machine, job = question.machine, question.job
    need = demand_of(
        Setting(**parse_backend(engine)),
        sizes.model_sizes(),
        machine.workers,
        training_of(job.to_dict(), machine.on_gpu),
    )
    measured = [
        p.peak_mib
        for p in evidence.points
        if p.peak_mib and p.device == machine.device and p.job == key_of(job.to_dict())
        and (p.engine, p.workers, p.micro) == (engine, machine.workers, job.micro_batch)
    ]  # fmt: skip
    peak = max(measured) if measured else need.device + (0.0 if machine.on_gpu else _PROCESS_MIB)
    width = 0.0 if measured else (scores.get("spreads") or {}).get(MEMORY) or _UNSCORED
    low, high = peak * math.exp(-width), peak * math.exp(width)
    if machine.on_gpu:
        limit = machine.memory_mib * _FRAGMENTS - OUTSIDE_MIB
    else:
        limit = machine.memory_mib / machine.workers
    fits = FITS if high <= limit else TOO_LARGE if low > limit else PERHAPS
    if sizes.kept_bytes is None and not measured and fits != TOO_LARGE:
        fits, high = NOT_KNOWN, math.inf
    return {
        **_parts(need, sizes),
        "peak_mib": peak,
        "low_mib": low,
        "high_mib": None if math.isinf(high) else high,
        "limit_mib": limit,
        "fits": fits,
        "way": MEASURED if measured else "predicted",
    }


def _parts(need: Demand, sizes: Sized) -> dict[str, Any]:
    activations = None if sizes.kept_bytes is None else sizes.kept_bytes / 2**20
    return {**{f"{name}_mib": value for name, value in need.held.items()}, "activations_mib": activations,
            "host_mib": need.host}  # fmt: skip


def _speed(speed: Speed | str, scores: Mapping[str, Any], own: str) -> dict[str, Any]:
    """value, low, high in samples/s, way and why; all but why None where it is not known."""
    if isinstance(speed, str):
        return {"value": None, "low": None, "high": None, "way": "not known", "why": speed}
    lows, highs = [speed.low], [speed.high]
    width = (scores.get("spreads") or {}).get(speed.way)
    if width is not None and speed.why != own:  # duels of now on this machine have an interval of their own
        lows.append(speed.value * math.exp(-width))
        highs.append(speed.value * math.exp(width))
    known = [value for value in lows if value is not None], [value for value in highs if value is not None]
    low, high = min(known[0], default=None), max(known[1], default=None)
    if low is None or high is None:
        low = high = None
    return {"value": speed.value, "low": low, "high": high, "way": speed.way, "why": speed.why}


def _same_engine(contender: str, engine: str) -> bool:
    """Whether a contender's name (``deepspeed ZeRO-2@2``) is of `engine`."""
    from harness.experiments.trainings.cells import Cell, parse_engine

    return contender.rpartition("@")[0] == Cell(**parse_engine(engine)).engine


def _label(engine: str) -> str:
    parsed = parse_backend(engine)
    return Setting(**parsed).label if parsed["backend"] != "single" else "plain torch"


def canonical(engine: str) -> str:
    """An engine as the user wrote it, in the records' form. Raises JobError, and what its settings are refused for."""
    parsed = parse_backend(engine)
    backends.settings_from(parsed["backend"], dict(parsed["engine"]))
    return engine_text(parsed["backend"], parsed["engine"])
