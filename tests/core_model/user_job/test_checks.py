"""Every way to break the contract of a user's job is one line that names the thing and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from core_model.errors import ModelError
from core_model.user_job.checks import check
from core_model.user_job.model import build_user_model

GOOD = """
import functools, os, time
import torch
from torch import nn
from torch.nn import functional as F
from core_model.user_job import TrainingJob

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
    def forward(self, batch):
        return F.cross_entropy(self.layer(batch["x"]), batch["y"])

class Data:
    def __init__(self, count=16):
        self.x, self.y = torch.randn(count, 4), torch.randint(3, (count,))
    def __len__(self):
        return len(self.x)
    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.y[index]}

def collate(samples):
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

def judge(module):
    return {"weight": module.layer.weight.abs().mean()}
"""
MAKE = """
def make_job(width=4):
    return TrainingJob(module=Net(), dataset=Data(), collate=collate, evaluate=judge)
"""


def model_of(folder: Path, text: str, seed: int = 0, **settings: object):
    file = folder / "my_job.py"
    file.write_text(GOOD + text)
    return build_user_model(f"{file}:make_job", settings, seed=seed)


def test_a_job_that_keeps_the_contract(tmp_path: Path) -> None:
    found = check(model_of(tmp_path, MAKE, width=3))
    assert (found.samples, found.noisy, found.notes) == (16, False, ())


def test_dropout_and_batch_normalization_keep_the_contract(tmp_path: Path) -> None:
    text = """
class Noisy(Net):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
    def forward(self, batch):
        return super().forward({**batch, "x": self.drop(self.norm(batch["x"]))})
def make_job():
    return TrainingJob(module=Noisy(), dataset=Data(), collate=collate)
"""
    found = check(model_of(tmp_path, text))
    assert found.noisy
    assert "batch normalization" in found.notes[0]


# What is wrong, the file's last part, the settings, and what the line says of it.
FORM = {
    "no function": ("def other(): ...", {}, "no function 'make_job': it has collate, judge, other"),
    "not callable": ("make_job = 3", {}, "is an int, no function"),
    "unknown setting": (MAKE, {"widht": 3}, "takes no setting 'widht' (model.widht): did you mean 'width'?"),
    "missing setting": ("def make_job(width): ...", {}, "add --set model.width=VALUE"),
    "raises": (
        "def make_job():\n    raise RuntimeError('no disk')",
        {},
        "RuntimeError: no disk (my_job.py, line",
    ),
    "wrong type": ("def make_job(): return Net()", {}, "returned a Net: return core_model.user_job.TrainingJob("),
    "syntax": ("def make_job(:", {}, "cannot be imported: SyntaxError"),
    "import fails": ("import no_such_module_here", {}, "cannot be imported: ModuleNotFoundError"),
    "exits": ("raise SystemExit(3)", {}, "cannot be imported: SystemExit: 3"),
}
# ... by the arguments of TrainingJob.
PARTS = {
    "module": ("module=Net", "module is a type, no torch.nn.Module"),
    "iterable": ("dataset=iter(Data())", "must be map-style"),
    "empty": ("dataset=Data(0)", "the dataset is empty"),
    "collate is none": ("collate=None", "collate is None, no function"),
    "evaluate": ("evaluate=3", "evaluate is an int"),
    "optimizer": ("optimizer='adam'", "optimizer is a str, no dict"),
    "frozen": ("module=Net().requires_grad_(False)", "no trainable parameter"),
    "half": ("module=Net().half()", "trainable parameter 'layer.weight' is float16: make it float32"),
    "elsewhere": ("module=Net().to('meta')", "is on meta: leave it on the CPU"),
}
# ... found by trying the job: (class body or function, arguments, text).
TRIED = {
    "sum": (
        "class Odd(Net):\n    def forward(self, batch): return 4 * len(batch['y']) * super().forward(batch)",
        "module=Odd()",
        "not the mean over the samples: 4 samples give",
    ),
    "plain sum": (
        (
            "class Odd(Net):\n    def forward(self, b):\n"
            "        return F.cross_entropy(self.layer(b['x']), b['y'], reduction='sum')"
        ),
        "module=Odd()",
        "looks like a sum: divide it by the number of samples",
    ),
    "not scalar": (
        (
            "class Odd(Net):\n    def forward(self, b):\n"
            "        return F.cross_entropy(self.layer(b['x']), b['y'], reduction='none')"
        ),
        "module=Odd()",
        "reduce it to one number",
    ),
    "no loss": ("class Odd(Net):\n    def forward(self, b): return None", "module=Odd()", "NoneType without a loss"),
    "not finite": (
        "class Odd(Net):\n    def forward(self, b): return super().forward(b) * float('nan')",
        "module=Odd()",
        "loss of the first batch is nan: it must be finite",
    ),
    "no gradient": (
        "class Odd(Net):\n    def forward(self, b): return super().forward(b).detach()",
        "module=Odd()",
        "the loss has no gradient",
    ),
    "unused parameter": (
        "class Odd(Net):\n    def __init__(self):\n        super().__init__()\n        self.spare = nn.Linear(2, 2)",
        "module=Odd()",
        "parameter 'spare.weight' and 1 more never gets a gradient",
    ),
    "forward raises": (
        "class Odd(Net):\n    def forward(self, b): return self.layer(b['z'])",
        "module=Odd()",
        "module(batch) raised KeyError: 'z' (my_job.py, line",
    ),
    "state in forward": (
        (
            "class Odd(Net):\n    calls = 0\n    def forward(self, b):\n        Odd.calls += 1\n"
            "        return super().forward(b) * Odd.calls"
        ),
        "module=Odd()",
        "the same batch with the same seed gives the losses",
    ),
    "sample raises": (
        "class Odd(Data):\n    def __getitem__(self, i): return self.x[i + 99]",
        "dataset=Odd()",
        "dataset[0] raised IndexError",
    ),
    "sample differs": (
        "class Odd(Data):\n    def __getitem__(self, i):\n        self.x += 1\n        return {'x': self.x[i].clone()}",
        "dataset=Odd()",
        "dataset[0] differs when it is read again",
    ),
    "sample draws": (
        "class Odd(Data):\n    def __getitem__(self, i):\n        torch.rand(1)\n        return super().__getitem__(i)",
        "dataset=Odd()",
        "draws from torch's global generator",
    ),
    "unpicklable dataset": (
        "class Odd(Data):\n    def __init__(self):\n        super().__init__()\n        self.make = lambda: 3",
        "dataset=Odd()",
        "dataset cannot be pickled",
    ),
    "unpicklable collate": ("", "collate=lambda samples: collate(samples)", "collate cannot be pickled"),
    "collate of one": (
        "def odd(samples):\n    assert len(samples) > 1, 'too few'\n    return collate(samples)",
        "collate=odd",
        "collate raised AssertionError: too few (my_job.py, line",
    ),
    "collate draws": (
        "def odd(samples):\n    return {**collate(samples), 'mask': torch.rand(len(samples))}",
        "collate=odd",
        "collate draws random numbers",
    ),
    "evaluate raises": ("def odd(module): return 1 / 0", "evaluate=odd", "evaluate raised ZeroDivisionError"),
    "evaluate text": ("def odd(module): return {'a': 'good'}", "evaluate=odd", "a='good': figures are numbers"),
    "evaluate no dict": ("def odd(module): return 3.0", "evaluate=odd", "evaluate returned a float: return a dict"),
}


def with_arguments(definition: str, changed: str) -> str:
    parts = {"module": "Net()", "dataset": "Data()", "collate": "collate"}
    name, _, value = changed.partition("=")
    parts[name] = value
    arguments = ", ".join(f"{key}={text}" for key, text in parts.items())
    return f"{definition}\ndef make_job(): return TrainingJob({arguments})"


@pytest.mark.parametrize("kind", FORM)
def test_a_file_or_function_that_cannot_work(kind: str, tmp_path: Path) -> None:
    text, settings, said = FORM[kind]
    refused(tmp_path, text, said, settings)


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_that_is_not_what_it_must_be(kind: str, tmp_path: Path) -> None:
    changed, said = PARTS[kind]
    refused(tmp_path, with_arguments("", changed), said)


@pytest.mark.parametrize("kind", TRIED)
def test_a_job_that_breaks_the_contract_when_it_is_tried(kind: str, tmp_path: Path) -> None:
    definition, changed, said = TRIED[kind]
    refused(tmp_path, with_arguments(definition, changed), said)


def refused(folder: Path, text: str, said: str, settings: dict | None = None) -> None:
    with pytest.raises(ModelError) as error:
        check(model_of(folder, text, **(settings or {})))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        build_user_model(f"{tmp_path}/none.py:make_job", {}, seed=0)


def test_the_seed_decides_the_weights_and_leaves_the_generators_alone(tmp_path: Path) -> None:
    import torch

    before = torch.get_rng_state()
    a, b, c = (model_of(tmp_path, MAKE, seed=seed).module.layer.weight for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())
