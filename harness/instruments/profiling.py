"""Profiles on demand, in a pass of its own: a profiled run is slower, so its times never stand in a comparison.

``--set profile=torch``: torch.profiler over a few steps of every rank, a Chrome trace that Perfetto opens and
profile.json, the table of where a step goes by kind of operation. ``--set profile=nvtx``: named ranges for Nsight
Systems (start the job under nsys). ``--set profile=engine``: the engine's own tools, HOROVOD_TIMELINE or DeepSpeed's
flops profiler and comms logger; what they print goes to log.txt.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.job.declaration import Job, JobError
from harness.records.record_files import write_json

MODES = ("torch", "nvtx", "engine")
FOLDER, TABLE = "profile", "profile.json"
ACTIVE_STEPS = 3
KINDS = (
    *("matrix products", "attention", "exchange", "update", "normalization and activation", "copies"),
    *("element-wise", "other"),
)
# First match counts. Names of ATen operations, CUDA kernels and collectives of both engines.
_PATTERNS: tuple[tuple[str, str], ...] = (
    ("exchange", r"nccl|gloo|allreduce|all_reduce|allgather|all_gather|reduce_scatter|broadcast|c10d|horovod"),
    ("update", r"adam|sgd|foreach|multi_tensor|lerp|addcdiv|Optimizer\.step"),
    ("attention", r"attention|flash|fmha|sdpa|softmax"),
    ("matrix products", r"gemm|nvjet|addmm|\bmm\b|::mm|bmm|matmul|linear\b|conv|mkldnn|cutlass|cublas|wgrad|dgrad"),
    ("normalization and activation", r"norm|gelu|relu|silu|sigmoid|tanh|dropout"),
    (
        "copies",
        r"copy|memcpy|memset|::to\b|_to_copy|contiguous|::cat|CatArray|stack|clone|fill|zero_|nchwToNhwc|nhwcToNchw",
    ),
    ("element-wise", r"elementwise|Functor|::(add|addcmul|sub|mul|div|where|pow|neg)"),
)


class Profiler:
    """Profiles `ACTIVE_STEPS` steps from `first` on in this process. Use `before_step` on every rank and `close` at the
    end, which writes into RUN/profile/ where `folder` is known (every rank of the first host, else rank 0 alone)."""

    def __init__(self, mode: str, *, rank: int, first: int, folder: Path | None, cuda: bool) -> None:
        if mode not in MODES:
            raise JobError(f"unknown profile '{mode}': choose one of {', '.join(MODES)}")
        self._mode, self._rank, self._first = mode, rank, first
        self._folder, self._cuda = folder, cuda
        self._profile: Any = None
        self._context: Any = None
        self._open_range = False
        self.summary: dict[str, Any] | None = None

    def before_step(self, step: int) -> None:
        """Begins and ends the window; marks the step as an NVTX range."""
        if self._mode == "torch":
            if step == self._first:
                self._start()
            elif step == self._first + ACTIVE_STEPS:
                self._stop()
        elif self._mode == "nvtx" and self._cuda:
            self._range(step)

    def close(self) -> None:
        """Ends an open window. Safe to call twice."""
        if self._profile is not None:
            self._stop()
        if self._context is not None:
            import torch

            if self._open_range:
                torch.cuda.nvtx.range_pop()
            self._context.__exit__(None, None, None)
            self._context = None

    def _start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._cuda else [])
        self._profile = profile(activities=activities)
        self._profile.__enter__()

    def _stop(self) -> None:
        profile, self._profile = self._profile, None
        profile.__exit__(None, None, None)
        with tempfile.TemporaryDirectory(prefix="harness-profile-") as scratch:
            trace = Path(scratch) / f"trace-rank{self._rank}.json.gz"
            profile.export_chrome_trace(str(trace))
            occupied: dict[str, float] = {}
            if self._cuda:
                events = device_events(trace)
                operations = operations_of(events)
                occupied = occupation(events, ACTIVE_STEPS)
            else:
                averages = profile.key_averages()
                operations = [(event.key, float(event.self_cpu_time_total), event.count) for event in averages]
            if self._folder is not None:
                place = self._folder / FOLDER
                place.mkdir(exist_ok=True)
                shutil.copyfile(trace, place / trace.name)
        self.summary = {"rank": self._rank, "steps": ACTIVE_STEPS, **summarize(operations, ACTIVE_STEPS), **occupied}

    def _range(self, step: int) -> None:
        import torch

        if self._context is None:
            self._context = torch.autograd.profiler.emit_nvtx()
            self._context.__enter__()
        elif self._open_range:
            torch.cuda.nvtx.range_pop()
        torch.cuda.nvtx.range_push(f"step {step}")
        self._open_range = True


def device_events(trace: Path) -> list[dict[str, Any]]:
    """What the GPU did in a Chrome trace of torch.profiler: kernels, copies and fills. The host's calls stay out: they
    hold the same time once more."""
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    return [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]


def operations_of(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, int]]:
    """(name, microseconds, calls) of a trace's `device_events`."""
    found: dict[str, list[float]] = {}
    for event in events:
        found.setdefault(event["name"], []).append(float(event["dur"]))
    return [(name, sum(times), len(times)) for name, times in found.items()]


def occupation(events: Sequence[Mapping[str, Any]], steps: int) -> dict[str, float]:
    """How long the GPU was at work, ms a step: ``span_ms`` from its first to its last operation, ``busy_ms`` with
    anything, ``computing_ms`` with anything but an exchange (whose kernels also wait for the other ranks). What is
    missing from busy to span, the GPU waited for its host to launch something. events: a trace's `device_events`."""
    if not events:
        return {}
    times = [(float(event["ts"]), float(event["dur"]), event["name"]) for event in events]
    span = max(start + length for start, length, _ in times) - min(start for start, _, _ in times)
    own = [time for time in times if kind_of(time[2]) != "exchange"]
    found = {"span_ms": span, "busy_ms": _covered(times), "computing_ms": _covered(own)}
    return {name: micros / 1000 / steps for name, micros in found.items()}


def _covered(events: Sequence[tuple[float, float, str]]) -> float:
    """Microseconds that at least one of the events covers."""
    covered, until = 0.0, float("-inf")
    for start, length, _ in sorted(events):
        covered += max(0.0, start + length - max(start, until))
        until = max(until, start + length)
    return covered


def summarize(operations: Sequence[tuple[str, float, int]], steps: int) -> dict[str, Any]:
    """``kinds_ms``: own time per step by kind of operation; ``top``: the twelve most expensive operations.

    operations: (name, own time in microseconds, calls) over `steps` steps, on the device that computes."""
    kinds = dict.fromkeys(KINDS, 0.0)
    for name, micros, _ in operations:
        kinds[kind_of(name)] += micros / 1000 / steps
    top = sorted(operations, key=lambda item: -item[1])[:12]
    return {
        "kinds_ms": kinds,
        "top": [{"name": name[:100], "ms": us / 1000 / steps, "calls": calls / steps} for name, us, calls in top],
    }


def kind_of(name: str) -> str:
    """The kind of an operation or kernel by its name."""
    return next((kind for kind, pattern in _PATTERNS if re.search(pattern, name, re.IGNORECASE)), "other")


def write_table(folder: Path, summaries: Sequence[Mapping[str, Any] | None]) -> None:
    """RUN/profile.json from the ranks' summaries; nothing where none has one."""
    found = [dict(summary) for summary in summaries if summary]
    if found:
        write_json(folder / TABLE, {"ranks": found})


def engine_job(job: Job, folder: Path | None) -> Job:
    """`job` with its engine's own profiling tools on, writing into RUN/profile/, which is made. Raises JobError for an
    engine that has none, and where the run's folder is not known before the engine starts."""
    if folder is None:
        raise JobError(
            "profile=engine needs the run's folder from the start: use `harness run`, not a launcher by hand"
        )
    place = Path(os.path.relpath(folder / FOLDER))  # relative: the engine records the path
    place.mkdir(parents=True, exist_ok=True)
    if job.backend == "horovod":
        return job.with_(engine={**job.engine, "timeline": str(place / "horovod-timeline.json")})
    if job.backend == "deepspeed":
        extra = dict(job.engine.get("extra") or {})
        extra["flops_profiler"] = {
            "enabled": True,
            "profile_step": job.timing_warmup + 1,
            "module_depth": -1,
            "top_modules": 3,
            "detailed": True,
            "output_file": str(place / "deepspeed-flops.txt"),
        }
        extra["comms_logger"] = {"enabled": True, "verbose": False, "prof_all": True, "debug": False}
        return job.with_(engine={**job.engine, "extra": extra})
    raise JobError(f"engine '{job.backend}' has no profiler of its own: use --set profile=torch")
