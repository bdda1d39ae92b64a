"""FLOPs of the timed steps: whose count, over which steps, and the same whoever trains the samples."""

from __future__ import annotations

import pytest
import torch

from core_model.build import build
from harness.instruments.step_work import WorkCounter, per_sample
from harness.job.declaration import Job
from harness.worker.model_and_data import build_dataset


def test_only_timed_steps_count_and_workers_do_not_change_what_is_useful() -> None:
    model = build("tiny", random_weights=True)
    dataset = build_dataset(Job(preset="tiny"), model, "train")
    steps = [[dataset.get(step * 8 + index, 0) for index in range(8)] for step in range(3)]
    alone = WorkCounter(model, first=1)
    for step, samples in enumerate(steps):
        model(model.collate(samples))
        alone.after_step(step)
    halves = [WorkCounter(model, first=1) for _ in range(2)]
    for rank, counter in enumerate(halves):
        for step, samples in enumerate(steps):
            model(model.collate(samples[rank::2]))
            counter.after_step(step)
    one, two = per_sample([alone.counted()]), per_sample([counter.counted() for counter in halves])
    assert one is not None
    assert two is not None
    assert one["samples"] == two["samples"] == 16
    assert two["useful"] == pytest.approx(one["useful"], rel=1e-12)
    assert two["done"] <= one["done"], "smaller batches hold less padding"
    assert one["useful"] < one["done"]


def test_a_model_that_cannot_be_counted_gives_no_figure() -> None:
    counter = WorkCounter(torch.nn.Linear(2, 2), first=0)
    counter.after_step(0)
    assert counter.counted() is None
    assert per_sample([counter.counted(), {"useful": 1.0, "done": 2.0, "samples": 1.0}]) is None
    assert per_sample([]) is None
