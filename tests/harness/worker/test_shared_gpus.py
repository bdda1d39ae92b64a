"""Ranks that share a GPU are named."""

from __future__ import annotations

import torch

from harness.instruments.gpus import uuid_of
from harness.worker.shared_gpus import sharing


def rank(number: int, gpu: str | None) -> dict[str, object]:
    return {"rank": number, "hostname": "a", "device": "cuda:0", "gpu": gpu}


def test_ranks_on_one_gpu_are_named() -> None:
    (told,) = sharing([rank(0, "u"), rank(1, "v"), rank(2, "u")])
    assert told.startswith("ranks 0 and 2 share one GPU (cuda:0 of a): give each its own")
    assert sharing([rank(0, "u"), rank(1, "v")]) == []


def test_a_cpu_is_shared_by_all() -> None:
    assert uuid_of(torch.device("cpu")) is None
    assert sharing([rank(0, None), rank(1, None)]) == []
