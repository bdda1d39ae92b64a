"""Every training of the harness sees the samples in the one order that `order_of` makes, and by one loader."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

from backends.process.rank import ProcessFacts
from harness.experiments.parity.worker import _Remembered
from harness.job.declaration import Job
from harness.worker.model_and_data import build_loader, order_of

ROOT = Path(__file__).resolve().parents[3]


def test_the_order_and_the_loader_are_made_in_one_place() -> None:
    """Parity once left the groups of a mixed data set out, and compared another training than the one that runs."""
    makers = {"GlobalBatches", "BatchLoader"}
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "harness").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in makers
    }
    assert found == {"harness/worker/model_and_data.py"}


def test_a_remembered_data_set_keeps_its_groups() -> None:
    """Pictures and conversations take turns, step by step, also in parity's cells."""
    data = SimpleNamespace(ids=tuple("abcdefgh"), categories=("x",), groups=(5, 3), get=lambda index, epoch: index)
    model = SimpleNamespace(collator=list)
    job = Job(backend="ddp", slots=2, global_batch=2, steps=6).validate()

    def batches(dataset: object) -> list[list[list[int]]]:
        return [
            [
                micro
                for step in build_loader(job, ProcessFacts(rank=rank, world_size=2), model, dataset)
                for micro in step
            ]
            for rank in range(2)
        ]

    seen = batches(_Remembered(data))
    assert seen == batches(data)
    steps = [[seen[rank][step][0] for rank in range(2)] for step in range(6)]
    assert all(index < 5 for step in steps[::2] for index in step)
    assert all(index >= 5 for step in steps[1::2] for index in step)
    assert order_of(job, _Remembered(data)).fingerprint(6) == order_of(job, data).fingerprint(6)
