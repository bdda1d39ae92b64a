"""Sizes of a job's model, found without training it: against the allocator's own count and known shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.experiments.recommend.live_bytes import live_bytes
from harness.experiments.recommend.sizing import Sized, sized
from harness.job.declaration import Job, JobError

JOB = """
import torch
from torch.utils.data import TensorDataset, default_collate
from core_model.user_job import TrainingJob


class Net(torch.nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.first, self.last, self.branch = torch.nn.Linear(64, 256), torch.nn.Linear(256, 2), branch
        self.frozen = torch.nn.Linear(64, 64).requires_grad_(False)

    def forward(self, batch):
        inputs, classes = batch
        hidden = self.first(self.frozen(inputs)).relu()
        if self.branch and hidden.mean().item() > 1e9:
            hidden = hidden * 2
        return torch.nn.functional.cross_entropy(self.last(hidden), classes)


def make_job(branch=False):
    if branch == "broken":
        raise ValueError("no such job")
    data = TensorDataset(torch.randn(64, 64), torch.randint(2, (64,)))
    return TrainingJob(module=Net(branch), dataset=data, collate=default_collate)
"""
TRAINED = 64 * 256 + 256 + 256 * 2 + 2
FLOPS = 2 * 64 * 64 + 2 * 2 * 64 * 256 + 3 * 2 * 256 * 2  # frozen: forward; first: no gradient of its input; last: all


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (path := tmp_path / "net.py").write_text(JOB)
    return path


def job_of(file: Path, **fields: object) -> Job:
    return Job.from_dict({"preset": str(file), "data": "own", "global_batch": 16, "timeout_s": 120.0, **fields})


@pytest.mark.parametrize("branch", [False, True])
def test_a_user_s_job_by_shapes_and_where_it_branches_by_real_samples(file: Path, branch: bool) -> None:
    found = sized(job_of(file, model={"branch": branch}))
    assert found.how == ("real, one sample and two" if branch else "fake")
    assert (found.trained, found.parameters - found.trained) == (TRAINED, 64 * 64 + 64)
    assert found.frozen_bytes == 4 * (64 * 64 + 64)
    assert (found.block, found.table) == (64 * 256 + 256, 64 * 256)
    assert found.flops_sample == pytest.approx(FLOPS, rel=0.01)
    assert found.kept_bytes is not None
    assert found.kept_bytes > 16 * 256 * 4  # what backward needs of the hidden layer alone


def test_what_the_job_raises_is_one_line(file: Path) -> None:
    with pytest.raises(JobError, match="no such job") as error:
        sized(job_of(file, model={"branch": "broken"}))
    assert "\n" not in str(error.value)


def test_a_job_that_hangs_ends_at_its_limit(tmp_path: Path) -> None:
    (file := tmp_path / "slow.py").write_text("import time\n\n\ndef make_job():\n    time.sleep(600)\n")
    with pytest.raises(JobError, match="not found within 3 s: raise --timeout"):
        sized(job_of(file, timeout_s=3.0))


def test_a_large_model_needs_no_memory() -> None:
    """8 B parameters with adapters, as fake tensors: the counts of LLaMA-3-8B."""
    job = Job.from_dict(
        {
            "preset": "hf:llama-3-8b", "random_weights": True, "model": {"lora": 16, "dropout": 0}, "global_batch": 1,
            "precision": "bf16", "data": "tokens:128", "timeout_s": 200.0,
        }
    )  # fmt: skip
    found = sized(job)
    assert found.how == "fake"
    assert found.parameters - found.trained == 8_030_261_248
    assert found.frozen_bytes == pytest.approx(2 * 8_030_261_248, rel=0.001)
    assert found.flops_sample is not None
    # forward and the inputs' gradients of every frozen weight but the embedding, 2 operations each
    assert found.flops_sample == pytest.approx(4 * 128 * (8.03e9 - 0.525e9), rel=0.05)


def test_live_bytes_are_those_of_the_highest_moment() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 1024, bias=False), torch.nn.Linear(1024, 8, bias=False))
    inputs = torch.randn(100, 8)
    trained = list(model.parameters())
    with live_bytes(model, trained) as real:
        model(inputs).sum().backward()
    hidden = 4 * 100 * 1024
    assert hidden <= real.peak <= 2.2 * hidden  # the hidden layer and, in backward, its gradient
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        shadow = torch.nn.Sequential(torch.nn.Linear(8, 1024, bias=False), torch.nn.Linear(1024, 8, bias=False))
        with live_bytes(shadow, list(shadow.parameters())) as fake:
            shadow(mode.from_tensor(inputs)).sum().backward()
    assert fake.peak == real.peak


def test_sizes_of_llama_agree_with_the_formula_s_own() -> None:
    """The fake pass against the bytes that `max-model`'s formula counts for a LLaMA: two ways to the same figure."""
    from core_model.transformer_lm import TransformerSpec
    from harness.experiments.max_model.memory_formula import Setting, Training, sizes_of_shape
    from harness.experiments.max_model.shapes import Shape

    job = Job.from_dict({"preset": "llama-600m", "global_batch": 4, "precision": "bf16", "timeout_s": 200.0})
    found: Sized = sized(job)
    shape = Shape(spec=TransformerSpec())
    assert found.trained == shape.parameters
    by_formula = sizes_of_shape(Setting(backend="ddp"), shape, Training(micro_batch=4)).forward_bytes
    assert found.kept_bytes == pytest.approx(by_formula, rel=0.25)
