"""The sizes of a job's model, found without training it: ``python -m harness.experiments.recommend.sizing PACKED OUT``.

A process of its own, because the job may be a user's, and because the torch modules need not load where the rest of the
command answers. The model is made of fake tensors (shapes without memory), so a model of 8 B parameters needs no memory
either; one forward and one backward pass tell what lives at their highest moment and how many operations they are. What
fake tensors cannot follow (a branch on a value) is tried with real ones on the CPU, one sample and two, where the model
is small.

OUT is JSON: ``error``, or the fields of `Sized`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core_model.user_job.source import source_of
from harness.common.packed_json import pack, unpack
from harness.common.paths import PROJECT
from harness.experiments.max_model.model_sizes import ModelSizes
from harness.job.declaration import Job, JobError
from harness.records.record_files import write_text
from mpi.errors import UserError

MODULE = "harness.experiments.recommend.sizing"
_REAL_AT_MOST = 2e9  # bytes of a model that is tried with real tensors


@dataclass(frozen=True, kw_only=True)
class Sized:
    """trained, frozen_bytes, block, table: see `ModelSizes`. parameters: all, frozen ones too. kept_bytes: what
    lives at the highest moment of a micro-batch's forward and backward pass beside weights and their gradients, None
    where it could not be found. flops_sample: of a sample's forward and backward pass,
    None likewise. micro_batch: samples that it was found for. how: fake, real, or why not."""

    trained: int
    parameters: int
    frozen_bytes: float
    block: int
    table: int
    micro_batch: int
    kept_bytes: float | None = None
    flops_sample: float | None = None
    how: str = ""

    def model_sizes(self) -> ModelSizes:
        """As the memory formula takes them; what is not known counts as nothing."""
        return ModelSizes(
            trained=self.trained,
            frozen_bytes=self.frozen_bytes,
            block=self.block,
            table=self.table,
            forward_bytes=self.kept_bytes or 0.0,
        )


def sized(job: Job) -> Sized:
    """The sizes of `job`'s model with its micro-batch, by a process that is ended after the job's time limit.

    Raises JobError, one line, where the job cannot be built or takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="harness-sizing-") as scratch:
        out, log = Path(scratch) / "out.json", Path(scratch) / "log.txt"
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
        environ["CUDA_VISIBLE_DEVICES"] = ""
        argv = [sys.executable, "-m", MODULE, pack({"job": job.to_dict()}), str(out)]
        with log.open("w") as printed:
            process = subprocess.Popen(
                argv, cwd=PROJECT, env=environ, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed
            )
            try:
                process.wait(job.timeout_s)
            except subprocess.TimeoutExpired:
                raise JobError(
                    f"{job.preset}: its sizes were not found within {job.timeout_s:g} s: raise --timeout"
                ) from None
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
        if not out.is_file():
            lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise JobError(f"{job.preset}: its model could not be built ({lines[-1][:200]})")
        told = json.loads(out.read_text())
    if "error" in told:
        raise JobError(told["error"])
    return Sized(**told)


def main(packed: str, out: str) -> None:
    """Writes OUT, whatever comes of it but an error of ours."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        told: dict[str, Any] = asdict(_sized(Job.from_dict(unpack(packed)["job"])))
    except UserError as error:
        told = {"error": str(error)}
    write_text(Path(out), json.dumps(told))


def _end_with(parent: int) -> None:
    """Ends this process when the one that waits for it is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _sized(job: Job) -> Sized:
    import torch

    from harness.worker.model_and_data import build_dataset

    torch.set_num_threads(max(1, job.threads))
    began = time.monotonic()
    model = _model(job)
    facts = _counts(job, model)
    why = ""
    dataset = build_dataset(job, model, "train")
    for attempt in (_fake, _real):
        if attempt is _real and time.monotonic() - began > job.timeout_s / 3:
            break
        try:
            return Sized(**facts, **attempt(job, model, dataset))
        except Exception as error:  # whatever a model does that shapes alone do not decide
            text = str(error).strip() or "no message"
            why = why or f"{type(error).__name__}: {text.splitlines()[0][:160]}"
    return Sized(**facts, how=f"not found ({why})")


def _model(job: Job) -> Any:
    """The job's model: without a weight (meta device) where it can be, else as it is built on the CPU."""
    from core_model.build import outline
    from harness.worker.model_and_data import build_model

    source = source_of(job.preset)
    if source is not None:
        return build_model(job, device="cpu" if source.file is not None else "meta")
    made: Any = outline(job.preset, image_size=job.image_size, overrides=dict(job.model), version=job.version)
    model: Any = build_model(job) if made is None else made
    if job.activation_checkpointing:
        model.set_activation_checkpointing(True)
    return model


def _counts(job: Job, model: Any) -> dict[str, Any]:
    """Fields of `Sized` that need no pass."""
    own = source_of(job.preset)
    keeps = own is not None and own.file is not None  # a user's frozen weights stay as they are
    half = 2 if job.precision != "fp32" and not keeps else 0
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    stored = sum(p.numel() * (half if half and p.is_floating_point() else p.element_size()) for p in frozen)
    from backends.torch.fsdp2 import _groups

    buffers: list[Any] = list(model.buffers())
    blocks = [sum(p.numel() for p in module.parameters() if p.requires_grad) for _, module in _groups(model, 1)]
    return {
        "trained": sum(p.numel() for p in trained),
        "parameters": sum(p.numel() for p in [*trained, *frozen]),
        "frozen_bytes": float(stored + sum(b.numel() * b.element_size() for b in buffers)),
        "block": max(blocks, default=0),
        "table": max((p.numel() for p in trained), default=0),
        "micro_batch": job.micro_batch,
    }


def _batch(job: Job, dataset: Any, model: Any, count: int) -> Any:
    """The first samples of the job's own data as a batch, on the CPU."""
    samples = [dataset.get(index, 0) if hasattr(dataset, "get") else dataset[index] for index in range(count)]
    return model.collator(samples)


def _fake(job: Job, model: Any, dataset: Any) -> dict[str, Any]:
    """kept_bytes and flops_sample by fake tensors, with the whole micro-batch."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    count = min(job.micro_batch, len(dataset))
    batch = _batch(job, dataset, model, count)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model._apply(lambda tensor: _shadow(tensor, job))
            live, flops = _passes(job, model, batch._map(mode.from_tensor))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
    return {"kept_bytes": live * job.micro_batch / count, "flops_sample": flops / count, "how": "fake"}


def _shadow(tensor: Any, job: Job) -> Any:
    """A tensor of the model without its values; frozen weights of this project's presets as a run stores them."""
    import torch

    stored = tensor.dtype
    frozen = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad and tensor.dtype == torch.float32
    if frozen and job.precision != "fp32" and source_of(job.preset) is None:
        stored = torch.bfloat16
    return torch.empty_like(tensor, device="cpu", dtype=stored)


def _real(job: Job, model: Any, dataset: Any) -> dict[str, Any]:
    """kept_bytes and flops_sample by real passes with one sample and with two, drawn out to the micro-batch."""
    from harness.worker.model_and_data import build_model

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size > _REAL_AT_MOST:
        raise RuntimeError(f"{size / 1e9:.1f} GB of weights are too many to try on a processor")
    model = build_model(job)
    model.prepare_text(dataset.categories)
    _passes(job, model, _batch(job, dataset, model, 1))  # what is made once and kept does not count
    (one, flops), (two, _) = (_passes(job, model, _batch(job, dataset, model, count)) for count in (1, 2))
    live = one + max(0.0, two - one) * (job.micro_batch - 1)
    return {"kept_bytes": live, "flops_sample": flops, "how": "real, one sample and two"}


def _passes(job: Job, model: Any, batch: Any) -> tuple[float, float]:
    """One forward and backward pass: bytes at its highest moment (`Live`), and its FLOPs."""
    from torch.utils.flop_counter import FlopCounterMode

    from harness.experiments.recommend.live_bytes import live_bytes

    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with FlopCounterMode(display=False) as counter, live_bytes(model, trained) as live:
        with _autocast(job):
            loss = model(batch)["loss"]
        loss.backward()
    for parameter in trained:
        parameter.grad = None
    return float(live.peak), float(counter.get_total_flops())


@contextlib.contextmanager
def _autocast(job: Job) -> Iterator[None]:
    import torch

    if job.precision == "fp32":
        yield
        return
    # fp16 keeps as many bytes as bf16, and a processor's autocast knows bf16 everywhere
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
