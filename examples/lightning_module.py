"""A Lightning module as a job: ``harness compare --model examples/lightning_module.py:make_job``.

Lightning is not needed: what counts is `training_step`. With it installed, the class below is a real LightningModule.
Its Trainer, its loggers and `configure_optimizers` are replaced by the harness and the options of the job.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset, default_collate

from core_model.user_job import TrainingJob

try:
    from lightning import LightningModule
except ImportError:
    LightningModule = nn.Module


class AutoEncoder(LightningModule):
    """Points of a plane in 16 dimensions, squeezed through two numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 2))
        self.decoder = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 16))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The loss, the mean over the samples."""
        (points,) = batch
        return F.mse_loss(self.decoder(self.encoder(points)), points)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Not called by the harness: its options name optimizer and learning rate."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


# -- the ten lines -----------------------------------------------------------------------------------------------------
class Step(nn.Module):
    """``module(batch)`` by the training step of any Lightning module."""

    def __init__(self, lightning: nn.Module) -> None:
        super().__init__()
        self.lightning = lightning

    def forward(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """The loss."""
        return self.lightning.training_step(batch, 0)


def make_job(width: int = 32) -> TrainingJob:
    """What `Trainer.fit(AutoEncoder(width), DataLoader(points))` trained."""
    points = TensorDataset(torch.randn(256, 2) @ torch.randn(2, 16))
    hints = {"optimizer": "adam", "lr": 2e-3}
    return TrainingJob(module=Step(AutoEncoder(width)), dataset=points, collate=default_collate, optimizer=hints)
