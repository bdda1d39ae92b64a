"""The counted FLOPs behind MFU against DeepSpeed's own flops profiler, on a whole model and a real batch."""

import importlib.util

import pytest

from harness.job.declaration import Job
from harness.worker.model_and_data import build_dataset, build_model


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed (make setup)")
def test_forward_flops_agree_with_deepspeeds_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    job = Job(preset="small", random_weights=True, image_size=112)
    model = build_model(job)
    dataset = build_dataset(job, model, "train")
    batch = model.collate([dataset.get(0, 0)])
    model(batch)  # what is computed once is not part of a step
    profiler = FlopsProfiler(model)
    profiler.start_profile()
    model(batch)
    profiler.stop_profile()
    theirs = profiler.get_total_flops()
    profiler.end_profile()
    model.work.take()
    model(batch)
    ours = model.flops(model.work.take().done)["forward"]
    # Theirs has elementwise work too.
    assert ours == pytest.approx(theirs, rel=0.04)
    assert ours < theirs
