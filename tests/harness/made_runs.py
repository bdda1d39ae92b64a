"""Run folders as a real worker writes them, through the real records, summary and contract code; only the times, losses
and scores are drawn from a seeded generator, so that a test knows what the report must find in them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core_model.metrics import evaluate
from harness.job.declaration import Job
from harness.records.comparability import contract
from harness.records.environment import environment
from harness.records.record_files import (
    ENVIRONMENT,
    EVALUATION,
    JOB,
    LOG,
    RESOURCES,
    RESULT,
    SPLIT,
    STEPS,
    append_jsonl,
    finite,
    write_json,
)
from harness.records.step_metrics import summarize

KINDS = ("good", "good", "good", "blowhole", "crack", "uneven")


def write_run(
    study: Path,
    job: Job,
    *,
    step_s: float = 0.5,
    noise: float = 0.01,
    quality: float = 0.85,
    unusable: float = 0.0,
    own_s: Mapping[int, float] | None = None,
    busy_s: Mapping[int, float] | None = None,
    fail: str = "",
    weights: str = "",
    images: int = 60,
    examples: int = 0,
    environment_changes: Mapping[str, Any] | None = None,
    scores: Sequence[float] | None = None,
    memory_mib: float = 900.0,
    hosts: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes one run of `job` into `study` and returns its folder.

    step_s: median step; noise: its relative spread. quality: mean separation of defective from good scores. unusable:
    share of answers without Yes or No. own_s: rank -> seconds of its own work a step; busy_s: what its processor
    worked of them, where recorded. fail: reason of a failed run.
    """
    job = job.with_(study=study.name)
    job = job.with_(run=job.run or job.default_run_name())
    folder = study / job.run
    folder.mkdir(parents=True)
    rng = np.random.default_rng([job.seed, job.repeat, job.world_size, len(job.backend)])
    write_json(folder / JOB, job.to_dict())
    place = {**_environment(), **(environment_changes or {})}
    write_json(folder / ENVIRONMENT, place)
    (folder / LOG).write_text("the engine said something\n")
    rows = _steps(job, rng, step_s, noise, stop=job.steps // 2 if fail else job.steps)
    append_jsonl(folder / STEPS, rows)
    append_jsonl(folder / RESOURCES, _resources(rows, memory_mib))
    started = {
        "started": "2026-11-24T10:00:00+00:00",
        "ended": "2026-11-24T10:05:00+00:00",
        "world_size": job.world_size,
    }
    if fail:
        write_json(folder / RESULT, {"status": "failed", "reason": fail, "wall_s": 9.0, **started})
        return folder
    append_jsonl(folder / SPLIT, _split(job, rows, own_s or {}, busy_s or {}, rng))
    samples = _samples(rng, images, quality, unusable, scores)
    evaluation = evaluate(samples)
    kept = [{key: value for key, value in entry.items() if key not in ("map", "mask")} for entry in samples]
    write_json(folder / EVALUATION, finite({**evaluation, "samples": kept}))
    if examples:
        _pictures(folder / "examples", samples[:: max(1, images // examples)][:examples], rng)
    hashes = {
        "data": _hash("data", job.data),
        "sample_order": _hash("order", job.seed, job.global_batch),
        "init_weights": _hash("init", job.seed),
        "weights": weights or _hash("weights", job.to_dict()),
    }
    engine = {"engine": job.backend, "version": "1.0", "wire_dtype": "float32", **dict(job.engine)}
    result = {
        "status": "ok",
        "reason": "",
        "wall_s": rows[-1]["t"] + 40.0,
        "phases": {"setup_s": 12.0, "train_s": rows[-1]["t"], "eval_s": 25.0},
        "launcher": "local",
        "throughput": summarize(rows, job.timing_warmup),
        "memory": {
            "peak_rss_mib": [memory_mib + 3 * rank for rank in range(job.world_size)],
            "peak_device_mib": [None] * job.world_size,
        },
        "final": {"loss": rows[-1]["loss"], "losses": rows[-1]["losses"], "step": job.steps},
        "evaluation": evaluation["mean"],
        "hosts": list(hosts),
        "engine": engine,
        "data": {"hash": hashes["data"]},
        "model": {"trainable_parameters": 1_234_567, "parameters": 150_000_000},
        "hashes": hashes,
        "contract": contract(job.to_dict(), place, hashes, engine),
        "warnings": [],
        **started,
    }
    write_json(folder / RESULT, finite(result))
    return folder


def write_study(
    study: Path,
    *,
    speeds: Mapping[str, float] | None = None,
    workers: Sequence[int] = (1, 2),
    repeats: int = 3,
    drift: float = 0.02,
    examples: int = 0,
    **job: Any,
) -> Path:
    """engines x workers x repeats. speeds: backend -> seconds a step at one worker. drift: relative slowing of the
    whole machine from one repeat to the next, which interleaving must cancel."""
    for repeat in range(repeats):
        for count in workers:
            for backend, seconds in (speeds or {"deepspeed": 0.52, "horovod": 0.5}).items():
                engine = {"zero_stage": 1} if backend == "deepspeed" else {}
                one = Job(
                    backend=backend, slots=count, seed=repeat, repeat=repeat, engine=engine, preset="tiny", **job
                ).validate()
                slow = (1 + drift) ** repeat * (1.0 if count == 1 else 1.12 / count)
                memory = 900.0 - (80.0 if backend == "deepspeed" and count > 1 else 0.0)
                write_run(study, one, step_s=seconds * slow, examples=examples, memory_mib=memory)
    return study


def machine(**changes: Any) -> dict[str, Any]:
    """An entry of a result's ``hosts``: a quiet machine without sensors."""
    load = {"cores": 2.0, "foreign_cores": 0.01, "steal_cores": 0.0, "worst_cores": 0.02}
    quiet = {"host": "host-a", "machine": "m", "gpus": [], "gpu_j": None, "cpu_j": None, "lacks": [], "load": load}
    return {**quiet, "gpu_processes": [], **changes}


def _steps(job: Job, rng: np.random.Generator, step_s: float, noise: float, stop: int) -> list[dict[str, Any]]:
    rows, now = [], 0.0
    for step in range(stop):
        # The first steps are slow, as compilation and negotiation make them; the tail is long, as on a real machine.
        seconds = step_s * (3.0 if step < 2 else 1.0) * float(np.exp(rng.normal(0, noise)) + rng.exponential(noise / 4))
        now += seconds
        loss = 0.6 + 2.4 * math.exp(-4 * step / job.steps) + float(rng.normal(0, 0.03))
        rows.append(
            {
                "step": step,
                "epoch": step * job.global_batch / 240,
                "loss": loss,
                "losses": {"ce": loss * 0.6, "focal": loss * 0.1, "dice": loss * 0.3},
                "grad_norm": 1.0 + float(rng.random()),
                "loss_scale": 4096.0 if job.precision == "fp16" else 1.0,
                "skipped": False,
                "lr": job.lr,
                "step_s": seconds,
                "data_s": 0.01 * seconds,
                "t": now,
                "samples": job.global_batch,
                "rank_step_s": [seconds] * job.world_size,
            }
        )
    return rows


def _resources(rows: Sequence[Mapping[str, Any]], memory_mib: float) -> list[dict[str, Any]]:
    return [
        {
            "t": row["t"],
            "rank": 0,
            "host": "host-a",
            "cpu_percent": 98.0,
            "rss_mib": memory_mib,
            "net_sent_bytes": 1000 * index,
            "net_recv_bytes": 900 * index,
            "gpus": [],
        }
        for index, row in enumerate(rows)
    ]


def _split(
    job: Job,
    rows: Sequence[Mapping[str, Any]],
    own_s: Mapping[int, float],
    busy_s: Mapping[int, float],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    split = []
    for row in rows[job.timing_warmup :: 5]:
        whole = row["step_s"]
        for rank in range(job.world_size):
            own = own_s.get(rank, 0.8 * whole) * float(1 + rng.normal(0, 0.01))
            exchange = max(0.0, whole - own) if job.world_size > 1 else 0.0
            parts = {"data_s": 0.02, "forward_s": 0.35, "backward_s": 0.55, "optimizer_s": 0.08}
            shares = {name: part * (whole - exchange) for name, part in parts.items()}
            if rank in busy_s:
                shares |= {"forward_cpu_s": 0.4 * busy_s[rank], "backward_cpu_s": 0.6 * busy_s[rank]}
            split.append({"step": row["step"], "rank": rank, **shares, "exchange_s": exchange, "other_s": 0.0})
    return split


def _samples(
    rng: np.random.Generator, images: int, quality: float, unusable: float, scores: Sequence[float] | None
) -> list[dict[str, Any]]:
    samples = []
    for index in range(images):
        kind = KINDS[index % len(KINDS)]
        defective = kind != "good"
        score = float(1 / (1 + math.exp(-rng.normal((2 * quality if defective else -2 * quality), 1.5))))
        if scores is not None:
            score = scores[index]
        says = score > 0.5
        answer = "Yes, there is a defect at the top left." if says else "No, this is a good part."
        if rng.random() < unusable:
            answer = "The the the"
        mask = np.zeros((16, 16), dtype=bool)
        mask[2:6, 2:6] = defective
        grid = np.clip(rng.normal(0.3, 0.15, mask.shape) + 0.4 * mask * quality, 0, 1).astype(np.float16)
        samples.append(
            {
                "id": f"test/{kind}/{index:03d}",
                "category": ("brick", "grass")[index // len(KINDS) % 2],
                "kind": kind,
                "is_defective": defective,
                "place": "top left" if defective else "",
                "score": score,
                "question": "Is there a defect?",
                "expected": "Yes, there is a defect." if defective else "No.",
                "answer": answer,
                "map": grid,
                "mask": mask,
            }
        )
    return samples


def _pictures(folder: Path, samples: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> None:
    folder.mkdir()
    for sample in samples:
        name = sample["id"].replace("/", "_")
        grid = np.zeros((64, 64), dtype=np.uint8)
        if sample["is_defective"]:
            grid[20:34, 10:30] = 255
        picture = rng.integers(90, 140, (64, 64, 3)).astype(np.uint8)
        picture[grid > 0] = (40, 30, 20)
        Image.fromarray(picture).save(folder / f"{name}_input.png")
        Image.fromarray(np.maximum(grid // 2, rng.integers(0, 60, (64, 64)).astype(np.uint8))).save(
            folder / f"{name}_map.png"
        )
        Image.fromarray(grid).save(folder / f"{name}_mask.png")


@cache
def _environment() -> dict[str, Any]:
    """Of this machine, asked once: a study of 200 runs would ask git 400 times."""
    place = environment()
    return {**place, "git": {"commit": "0" * 40, "dirty": False}}


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
