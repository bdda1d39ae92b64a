"""Parity's rule for elements whose gradient is zero but for rounding: found by measuring, never by name; a fault in a
tensor with a real gradient is found as before, and so is one that rounding cannot make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.experiments.parity.cause import Alone, Control
from harness.experiments.parity.judge import FP32_BOUND, cause_of, judge
from harness.experiments.parity.rounding import RoundingOnly, looked_at, reach, rounding_only
from harness.experiments.parity.run import _without_rounding
from harness.experiments.trainings.cells import Cell
from harness.job.declaration import Job
from harness.worker.model_and_data import trainable_weights

ATTENTION = """
import torch
from torch import nn
from core_model.user_job import TrainingJob

class Attention(nn.Module):
    def __init__(self, gate, cast):
        super().__init__()
        self.gate, self.cast = gate, cast
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.last = nn.Linear(8, 1)
        self.unused = nn.Embedding(4, 8)
    def forward(self, batch):
        x, y = batch
        if self.cast:
            x = x.to(torch.float32)
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        weights = scores.softmax(-1) if self.gate == "softmax" else scores.sigmoid()
        found = self.last(weights @ self.value(x)).mean((1, 2)) + self.unused.weight[0].sum()
        return ((found - y) ** 2).mean()

def make_job(gate="softmax", cast=False):
    x = torch.randn(16, 5, 8)
    data = torch.utils.data.TensorDataset(x, x.square().mean((1, 2)))
    return TrainingJob(module=Attention(gate, cast), dataset=data, collate=torch.utils.data.default_collate)
"""
CELL = Cell(backend="ddp", workers=2)
KEY = "module.key.bias"


def job_of(folder: Path, **settings: object) -> Job:
    file = folder / "attention.py"
    file.write_text(ATTENTION)
    return Job.from_dict({"preset": str(file), "model": settings, "steps": 3, "global_batch": 8, "warmup_steps": 0})


def start_of(job: Job) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainable_weights(Alone(job, double=False).model).items()}


def moved(weights: dict[str, torch.Tensor], by: float, only: str = "") -> dict[str, torch.Tensor]:
    return {name: value + by if name.startswith(only) else value.clone() for name, value in weights.items()}


def test_softmax_takes_out_the_keys_bias_and_nothing_else(tmp_path: Path) -> None:
    job = job_of(tmp_path, gate="softmax")
    start = start_of(job)
    found = rounding_only(job, [start, moved(start, 0.01)])
    assert set(found.elements) == {KEY}
    assert found.elements[KEY].all()
    assert found.reach == reach(job, 0.0)


def test_the_same_tensor_with_a_real_gradient_stays_under_the_bound(tmp_path: Path) -> None:
    job = job_of(tmp_path, gate="sigmoid")
    assert not rounding_only(job, [start_of(job)]).elements


def test_one_real_gradient_anywhere_keeps_the_element(tmp_path: Path) -> None:
    """Where queries are zero, the keys' gradient is exactly zero: not a rounding error, and not so at the other end."""
    job = job_of(tmp_path, gate="sigmoid")
    start = start_of(job)
    still = {name: torch.zeros_like(value) if "query" in name else value for name, value in start.items()}
    assert not rounding_only(job, [still]).elements
    assert not rounding_only(job, [still, start]).elements


def test_a_module_that_knows_no_fp64_is_judged_as_it_is(tmp_path: Path) -> None:
    job = job_of(tmp_path, cast=True)
    found, trouble = looked_at(job, [start_of(job)])
    assert found is None
    assert "dtype" in trouble
    assert "\n" not in trouble


def trained(out: Path, job: Job, changed: dict[str, torch.Tensor]) -> None:
    """Files of a reference that moved everything by 0.01, and of a cell with `changed`."""
    start = start_of(job)
    save_file(start, out / "start.safetensors")
    rows = [{"step": step, "loss": 1.0, "skipped": False} for step in range(job.steps)]
    for cell, weights in ((CELL.reference(), moved(start, 0.01)), (CELL, changed)):
        save_file(weights, out / f"{cell.name}.safetensors")
        (out / f"{cell.name}.json").write_text(json.dumps({"rows": rows, "engine": {}}))


@pytest.mark.parametrize(("gate", "tensor", "by", "status"), [
    ("softmax", KEY, 2e-3, "equal"),           # a few whole steps of Adam, lr 1e-3, made of rounding
    ("softmax", KEY, 1.0, "differs"),          # more than the optimizer can make of it
    ("softmax", "module.value", 2e-3, "differs"),  # a fault beside it
    ("softmax", "module.key.weight", 2e-3, "differs"),
    ("sigmoid", KEY, 2e-3, "differs"),         # a fault in the same tensor where its gradient is real
])  # fmt: skip
def test_judged_both_ways(gate: str, tensor: str, by: float, status: str, tmp_path: Path) -> None:
    job = job_of(tmp_path, gate=gate)
    trained(tmp_path, job, moved(moved(start_of(job), 0.01), by, only=tensor))
    assert judge(CELL, tmp_path, job.steps, {}).status == "differs", "the bound alone finds each of them"
    (verdict,) = _without_rounding([judge(CELL, tmp_path, job.steps, {})], job, tmp_path, None)
    assert verdict.status == status, verdict
    text, shown = cause_of(verdict, tmp_path, left_out=verdict.cause)
    assert shown is (status == "equal")
    if status == "equal":
        assert (verdict.rounding_only, verdict.difference) == (8, 0.0)
        assert verdict.rounding_apart == pytest.approx(by, rel=1e-3)
        assert "8 elements of 'module.key.bias' have a gradient that is zero but for rounding" in text
    elif by == 1.0:
        assert "1.0e+00 apart, which rounding moves " in text


def test_no_control_excuses_what_is_much_further_off_than_it(tmp_path: Path) -> None:
    job = job_of(tmp_path, gate="sigmoid")
    rounding = Control(parts=2, fp32=1.1e-5, fp64=3e-15, kink_step=-1, kinks=0, before=0.0, after=1.1e-5)
    for by, excused in ((3e-6, True), (1e-2, False)):
        trained(tmp_path, job, moved(moved(start_of(job), 0.01), by, only="module.value"))
        verdict = judge(CELL, tmp_path, job.steps, {})
        assert verdict.status == "differs"
        text, shown = cause_of(verdict, tmp_path, rounding)
        assert shown is excused, verdict
        assert ("more than 10 times as far off" in text) is not excused


def test_what_is_no_number_is_a_fault_there_too() -> None:
    found = RoundingOnly(elements={"b": torch.tensor([True, False])}, reach=1e-9)
    good = {"b": torch.tensor([1.0, 2.0])}
    assert found.without(good)["b"].tolist() == [2.0]
    assert found.apart({"b": torch.tensor([float("nan"), 2.0])}, good) == float("inf")
    assert RoundingOnly(elements={}, reach=0.0).apart(good, good) == 0.0


def test_what_optimizers_make_of_rounding() -> None:
    job = Job(preset="tiny", steps=10, schedule="constant", warmup_steps=0, lr=1e-3)
    assert reach(job, 1e-9) == pytest.approx(2e-2)
    assert reach(job.with_(betas=(0.9, 0.999)), 1e-9) == pytest.approx(2e-2 * 0.1 / 0.001**0.5)
    assert reach(job.with_(optimizer="sgd"), 1e-9) == pytest.approx(2e-10)
    assert reach(job, 1e-9) > FP32_BOUND
