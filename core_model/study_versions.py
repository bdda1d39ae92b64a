"""The study's Table 1: model versions V1 to V6, as data.

`version` gives a row; `StudyVersion.optimization` is the part that a job's fields take over; `StudyVersion.unmet` says
in words what a given machine and data cannot meet. A test holds the rows to the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core_model.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class StudyVersion:
    """One column of Table 1.

    Args:
        samples: training pictures, 0 = all.
        aebad, augmentation: data that the version adds.
        augmented_count: pictures of each MVTec category's train/good after augmentation (Table 3), 0 = none.
        scale_power, scale_window: of the fp16 loss scale, 0 = not given.
        share_done: per cent of the planned training that was done.
    """

    name: str
    nodes: tuple[str, ...]
    epochs: int
    lr: float = 1e-4
    samples: int
    global_batch: int
    micro_batch: int
    gpus: int
    accumulation: int = 8
    container: bool
    aebad: bool
    augmentation: bool
    augmented_count: int = 0
    dropout: bool = True
    normalization: bool
    residual: bool = True
    batch_normalization: bool
    scale_power: int = 12
    scale_window: int = 1000
    share_done: int = 100

    @property
    def decoder_layers(self) -> tuple[str, ...]:
        """The decoder's layers, in the order of `core_model.anomalygpt.decoder`."""
        layers = ["linear"]
        if self.normalization:
            layers.append("norm")
        if self.batch_normalization:
            layers.append("batchnorm")
        if self.dropout:
            layers.append("dropout")
        if self.residual:
            layers.append("residual")
        return tuple(layers)

    @property
    def optimization(self) -> dict[str, Any]:
        """Fields of a job that the version sets (its DeepSpeed file: AdamW, clip 1.0, WarmupDecayLR with 10 % warm-up,
        fp16). Steps follow from epochs and the data's size."""
        loss_scale = {"initial_power": self.scale_power, "window": self.scale_window} if self.scale_power else {}
        return {
            "optimizer": "adamw",
            "lr": self.lr,
            "betas": (0.9, 0.95),
            "eps": 1e-8,
            "weight_decay": 1e-3,
            "clip_norm": 1.0,
            "schedule": "warmup_linear",
            "global_batch": self.global_batch,
            "accumulation": self.accumulation,
            "precision": "fp16",
            "loss_scale": loss_scale,
        }

    def steps(self, pictures: int) -> int:
        """Optimizer steps of the whole training on `pictures` training pictures."""
        used = min(self.samples, pictures) if self.samples else pictures
        return max(1, self.epochs * used // self.global_batch)

    def warmup_steps(self, pictures: int) -> int:
        """10 % of the steps."""
        return max(1, self.steps(pictures) // 10)

    def unmet(self, *, world_size: int, nodes: int, cuda: bool, data: str, preset: str) -> list[str]:
        """What this run does not share with the study's, one sentence each."""
        said = []
        if preset != "anomalygpt-7b":
            said.append(f"the study trained ImageBind-Huge with Vicuna-7B; this is preset {preset}")
        if not cuda:
            said.append(f"the study ran on {self.gpus} A100; this machine has no GPU")
        if world_size != self.gpus:
            said.append(f"the study used {self.gpus} worker(s); this run has {world_size}")
        if len(self.nodes) != nodes:
            said.append(f"the study used {len(self.nodes)} node(s); this run has {nodes}")
        if world_size and self.global_batch % (world_size * self.accumulation):
            split = f"{world_size} worker(s) x {self.accumulation}"
            said.append(f"global batch {self.global_batch} does not split over {split}")
        if self.aebad and "aebad" not in data.lower():
            said.append("the study added AeBAD's pictures; this data has none")
        if self.augmentation and "mvtec" not in data.lower():
            said.append("the study augmented MVTec's categories by its Table 2; other categories have no row there")
        if self.container and nodes > 1:
            said.append("the study ran one container image on each node; this run uses the hosts' environment")
        return said


def _row(**values: Any) -> StudyVersion:
    return StudyVersion(**values)


VERSIONS: Mapping[str, StudyVersion] = {
    "v1": _row(
        name="v1",
        nodes=("89",),
        epochs=20,
        samples=10_000,
        global_batch=8,
        micro_batch=1,
        gpus=1,
        container=False,
        aebad=False,
        augmentation=False,
        normalization=True,
        batch_normalization=False,
        scale_power=0,
        scale_window=0,
        share_done=17,
    ),
    "v2": _row(
        name="v2",
        nodes=("89",),
        epochs=50,
        samples=0,
        global_batch=8,
        micro_batch=1,
        gpus=1,
        container=False,
        aebad=False,
        augmentation=False,
        normalization=False,
        batch_normalization=False,
    ),
    "v3": _row(
        name="v3",
        nodes=("91",),
        epochs=50,
        samples=0,
        global_batch=16,
        micro_batch=2,
        gpus=1,
        container=False,
        aebad=False,
        augmentation=False,
        normalization=False,
        batch_normalization=True,
    ),
    "v4": _row(
        name="v4",
        nodes=("91",),
        epochs=50,
        samples=0,
        global_batch=16,
        micro_batch=2,
        gpus=1,
        container=False,
        aebad=True,
        augmentation=False,
        normalization=False,
        batch_normalization=True,
    ),
    "v5": _row(
        name="v5",
        nodes=("91",),
        epochs=50,
        samples=0,
        global_batch=16,
        micro_batch=2,
        gpus=1,
        container=False,
        aebad=True,
        augmentation=True,
        augmented_count=1000,
        normalization=False,
        batch_normalization=True,
    ),
    "v6": _row(
        name="v6",
        nodes=("89", "91"),
        epochs=50,
        samples=0,
        global_batch=32,
        micro_batch=2,
        gpus=2,
        container=True,
        aebad=True,
        augmentation=True,
        augmented_count=400,
        normalization=False,
        batch_normalization=True,
    ),
}


def version(name: str) -> StudyVersion:
    """The row of a version, ModelError for an unknown name."""
    if name.lower() not in VERSIONS:
        raise ModelError(f"unknown version '{name}': choose one of {', '.join(VERSIONS)}")
    return VERSIONS[name.lower()]
