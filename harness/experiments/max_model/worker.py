"""One try of `harness experiment max-model`: ``python -m harness.experiments.max_model.worker PACKED OUT`` under the
engine's launcher.

Each worker is a fresh process. It draws the weights where they will live, trains a few steps on random tokens, says how
it went, and leaves.

No data set, no tokenizer, no evaluation and no weights gathered at the end: what is left is the start of the engine.
Each rank writes OUT/rank-R.json: ``status`` ok, oom or failed, ``phase`` build, prepare or train, and the peaks.
"""

from __future__ import annotations

import json
import math
import re
import resource
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.process.exit import leave
from backends.process.rank import ProcessFacts, detect
from harness.common.packed_json import unpack
from harness.instruments import process_memory
from mpi import private

MODULE = "harness.experiments.max_model.worker"
# How the libraries say that memory is used up. Wide enough for all engines, narrow enough for no other error.
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|Cannot allocate memory|std::bad_alloc|CUBLAS_STATUS_ALLOC_FAILED|"
    r"CUDNN_STATUS_ALLOC_FAILED|MemoryError|failed to allocate|cudaErrorMemoryAllocation|can't start new thread|"
    r"Resource temporarily unavailable",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or what it was raised from, says that memory is used up."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or OUT_OF_MEMORY.search(f"{type(seen).__name__}: {seen}"):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def main(packed: str, out: str) -> int:
    """Runs the try; returns the exit code: 0 trained, 3 out of memory, 1 anything else."""
    private.take()
    facts = detect()
    task = unpack(packed)
    file = Path(out) / f"rank-{facts.rank}.json"
    told: dict[str, Any] = {"status": "failed", "phase": "start", "seconds": {}}
    # Made now, so that the way out needs no memory.
    reserve: list[bytearray] = [bytearray(1 << 20)]
    try:
        _train(task, facts, told)
        told["status"] = "ok"
        code = 0
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        reserve.clear()
        oom = is_out_of_memory(error)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        told |= {"status": "oom" if oom else "failed", "reason": f"{type(error).__name__}: {lines[0][:300]}"}
        if not oom:
            traceback.print_exc()
        code = 3 if oom else 1
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(told))
    temporary.replace(file)
    return code


def _train(task: Mapping[str, Any], facts: ProcessFacts, told: dict[str, Any]) -> None:
    """Builds, prepares and trains; fills `told` as it goes."""
    began = time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal began
        now = time.perf_counter()
        told["seconds"][told["phase"]] = now - began
        told["phase"], began = phase, now

    import torch

    import backends
    from harness.job.declaration import Job
    from harness.worker.model_and_data import prepare

    job = Job.from_dict(task["job"])
    torch.set_num_threads(job.threads)
    engine = backends.load(job.backend)
    settings = backends.settings_from(job.backend, dict(job.engine))
    backend = engine(settings, facts, device=job.device, timeout_s=job.timeout_s)
    backend.barrier()
    device = backend.device
    _warm_up(device)
    meter = Meter(torch, device, task.get("memory_gib"))
    told["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    try:
        lap("build")
        model = _model(job, device)
        told["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        batch = _batch(job, model, facts.rank, device)
        lap("prepare")
        prepare(backend, model, job)
        lap("train")
        losses = []
        for _ in range(job.steps):
            losses.append(float(backend.train_step([batch]).losses["loss"]))
            meter.read()
        backend.barrier()
        lap("end")
        told["losses"] = [loss if math.isfinite(loss) else None for loss in losses]
    finally:
        told |= meter.figures()


def _warm_up(device: Any) -> None:
    """Loads what the first model of any size would load (kernels, their workspaces, the compiler's modules that an
    optimizer imports), so that it does not count as the model's memory."""
    import torch

    import core_model.execution.frozen
    import core_model.transformer_lm  # noqa: F401

    layer = torch.nn.Linear(256, 256, device=device)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    for _ in range(2):
        layer(torch.randn(64, 256, device=device)).square().sum().backward()
        optimizer.step()


class Meter:
    """Sets the limit and reads the peaks of one rank, in MiB above what the process needs without a model."""

    def __init__(self, torch: Any, device: Any, limit_gib: float | None) -> None:
        self._torch, self._device = torch, device
        self._rss = 0.0
        self._base = process_memory.mib("VmRSS")
        process_memory.reset_peak()
        self.limit = None if limit_gib is None else limit_gib * 1024
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            if limit_gib is not None:
                torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gib * 2**30 / total), device)
        elif limit_gib is not None:
            # Private memory, mapped or from the heap. What the interpreter and the engine took so far does not count.
            allowed = int(process_memory.mib("VmData") * 2**20 + limit_gib * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (allowed, resource.getrlimit(resource.RLIMIT_DATA)[1]))

    def read(self) -> None:
        self._rss = max(self._rss, process_memory.mib("VmHWM") - self._base)

    def figures(self) -> dict[str, Any]:
        """peak_mib: of the device (on a CPU, of the process); host_mib: of the process beside a GPU; outside_mib: GPU
        memory that is not this process's allocator's (driver context, NCCL, other processes)."""
        self.read()
        if self._device.type != "cuda":
            return {"peak_mib": self._rss, "host_mib": 0.0, "outside_mib": None, "limit_mib": self.limit}
        cuda = self._torch.cuda
        free, total = cuda.mem_get_info(self._device)
        return {
            "peak_mib": cuda.max_memory_allocated(self._device) / 2**20,
            "reserved_mib": cuda.max_memory_reserved(self._device) / 2**20,
            "host_mib": self._rss,
            "outside_mib": (total - free - cuda.memory_reserved(self._device)) / 2**20,
            "limit_mib": self.limit or total / 2**20,
        }


def _model(job: Any, device: Any) -> Any:
    """The transformer with weights drawn on `device`: what a CPU draws in minutes, a GPU draws in a second."""
    import torch

    from core_model.execution.frozen import materialize
    from core_model.language.llama import Llama
    from core_model.transformer_lm import TrainedTransformer, TransformerSpec

    spec = TransformerSpec(**dict(job.model))
    with torch.device("meta"):
        llama = Llama(spec.config())
    llama = materialize(llama, device=device, dtype=torch.float32, seed=job.seed)
    return TrainedTransformer(spec, llama.requires_grad_(True).train())


def _batch(job: Any, model: Any, rank: int, device: Any) -> Any:
    """Random tokens, others on every rank."""
    import torch

    from core_model.batch import Batch

    count, spec = job.micro_batch, model.spec
    generator = torch.Generator().manual_seed(job.seed * 1000 + rank)
    ids = torch.randint(0, spec.vocab, (count, spec.length + 1), generator=generator)
    return Batch(
        ids=tuple(f"random-{rank}-{number}" for number in range(count)),
        categories=("random",) * count,
        images=torch.zeros(count, 3, 1, 1),
        masks=torch.zeros(count, 1, 1, 1),
        is_defective=torch.zeros(count, dtype=torch.bool),
        token_ids=ids[:, :-1].contiguous(),
        labels=ids[:, 1:].contiguous(),
        lengths=torch.full((count,), spec.length),
    ).to(device)


if __name__ == "__main__":
    leave(main(sys.argv[1], sys.argv[2]))
