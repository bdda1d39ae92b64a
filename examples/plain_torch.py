"""A plain torch training loop as a job: ``harness compare --model examples/plain_torch.py:make_job``.

Everything above `make_job` is what such a script has already.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset, default_collate

from core_model.user_job import TrainingJob


class Classifier(nn.Module):
    """Small pictures to one of ten classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(width * 16, 10),
        )

    def forward(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """The loss, the mean over the samples."""
        pictures, classes = batch
        return F.cross_entropy(self.layers(pictures), classes)


def pictures(count: int) -> TensorDataset:
    """`count` pictures whose brightest channel says something about their class."""
    classes = torch.randint(10, (count,))
    return TensorDataset(torch.randn(count, 3, 16, 16) + classes.view(-1, 1, 1, 1) / 10, classes)


class Accuracy:
    """The share of held-out pictures whose class is found."""

    def __init__(self, held_out: TensorDataset) -> None:
        self.held_out = held_out

    def __call__(self, module: Classifier) -> dict[str, float]:
        """Figures by name."""
        device = next(module.parameters()).device
        inputs, classes = (tensor.to(device) for tensor in self.held_out.tensors)
        return {"accuracy": (module.layers(inputs).argmax(1) == classes).float().mean().item()}


def make_job(width: int = 16, samples: int = 256) -> TrainingJob:
    """The ten lines: what the loop trained, on what, and how a batch is made. No optimizer, no loop, no device."""
    return TrainingJob(
        module=Classifier(width),
        dataset=pictures(samples),
        collate=default_collate,
        evaluate=Accuracy(pictures(64)),
        optimizer={"lr": 1e-3},
    )
