"""The version rows against the study's Table 1, as printed there."""

from __future__ import annotations

import pytest

from core_model import presets
from core_model.build import build
from core_model.errors import ModelError
from core_model.study_versions import VERSIONS, version

TABLE_1 = """
| | V1 | V2 | V3 | V4 | V5 | V6 |
| node(s) | 89 | 89 | 91 | 91 | 91 | 89 and 91 |
| epochs | 20 | 50 | 50 | 50 | 50 | 50 |
| learning rate | 1e-4 | 1e-4 | 1e-4 | 1e-4 | 1e-4 | 1e-4 |
| samples | 10k | all | all | all | all | all |
| global batch | 8 | 8 | 16 | 16 | 16 | 32 |
| micro batch per GPU | 1 | 1 | 2 | 2 | 2 | 2 |
| GPUs | 1 | 1 | 1 | 1 | 1 | 2 |
| gradient accumulation | 8 | 8 | 8 | 8 | 8 | 8 |
| container | no | no | no | no | no | yes |
| AeBAD | no | no | no | yes | yes | yes |
| data augmentation | no | no | no | no | yes | yes |
| dropout layer | yes | yes | yes | yes | yes | yes |
| normalization layer | yes | no | no | no | no | no |
| residual layer | yes | yes | yes | yes | yes | yes |
| batch normalization | no | no | yes | yes | yes | yes |
| FP16 initial scale power | - | 12 | 12 | 12 | 12 | 12 |
| FP16 loss scale window | - | 1000 | 1000 | 1000 | 1000 | 1000 |
| share of training done | 17 % | 100 % | 100 % | 100 % | 100 % | 100 % |
"""
READERS = {
    "node(s)": lambda v: " and ".join(v.nodes),
    "epochs": lambda v: str(v.epochs),
    "learning rate": lambda v: {1e-4: "1e-4"}[v.lr],
    "samples": lambda v: {0: "all", 10_000: "10k"}[v.samples],
    "global batch": lambda v: str(v.global_batch),
    "micro batch per GPU": lambda v: str(v.micro_batch),
    "GPUs": lambda v: str(v.gpus),
    "gradient accumulation": lambda v: str(v.accumulation),
    "container": lambda v: "yes" if v.container else "no",
    "AeBAD": lambda v: "yes" if v.aebad else "no",
    "data augmentation": lambda v: "yes" if v.augmentation else "no",
    "dropout layer": lambda v: "yes" if v.dropout else "no",
    "normalization layer": lambda v: "yes" if v.normalization else "no",
    "residual layer": lambda v: "yes" if v.residual else "no",
    "batch normalization": lambda v: "yes" if v.batch_normalization else "no",
    "FP16 initial scale power": lambda v: str(v.scale_power or "-"),
    "FP16 loss scale window": lambda v: str(v.scale_window or "-"),
    "share of training done": lambda v: f"{v.share_done} %",
}


def table() -> dict[str, list[str]]:
    lines = [line.strip().strip("|").split("|") for line in TABLE_1.strip().splitlines()]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_every_cell() -> None:
    rows = table()
    assert [name.lower() for name in rows.pop("")] == list(VERSIONS)
    assert set(rows) == set(READERS)
    for name, cells in rows.items():
        assert [READERS[name](row) for row in VERSIONS.values()] == cells, name


def test_batches_multiply_out() -> None:
    for row in VERSIONS.values():
        assert row.global_batch == row.micro_batch * row.gpus * row.accumulation, row.name


def test_optimization_fields_are_those_of_a_job() -> None:
    from dataclasses import fields

    from backends.base import LossScale, Optimization
    from harness.job.declaration import Job

    known = {f.name for f in fields(Job)}
    for row in VERSIONS.values():
        assert set(row.optimization) <= known
        values = {k: v for k, v in row.optimization.items() if k not in ("global_batch", "loss_scale")}
        Optimization(**values, loss_scale=LossScale(**row.optimization["loss_scale"]))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("v1", ("linear", "norm", "dropout", "residual")),
        ("v2", ("linear", "dropout", "residual")),
        ("v6", ("linear", "batchnorm", "dropout", "residual")),
    ],
)
def test_version_sets_the_decoder(name: str, layers: tuple[str, ...], samples) -> None:
    model = build("tiny", version=name)
    assert model.describe()["spec"]["decoder_layers"] == list(layers)
    assert model.describe()["spec"]["version"] == name
    model(model.collate(samples(2)))["loss"].backward()


def test_steps_follow_from_epochs() -> None:
    assert version("v2").steps(240) == 50 * 240 // 8
    assert version("v1").steps(50_000) == 20 * 10_000 // 8
    assert version("V6").warmup_steps(240) == 50 * 240 // 32 // 10


def test_what_is_not_met_is_said() -> None:
    said = " ".join(version("v6").unmet(world_size=1, nodes=1, cuda=False, data="mvtec:x", preset="small"))
    for word in ("Vicuna-7B", "no GPU", "2 worker(s)", "2 node(s)", "AeBAD"):
        assert word in said
    assert version("v2").unmet(world_size=1, nodes=1, cuda=True, data="mvtec:x", preset="anomalygpt-7b") == []


def test_unknown_version_is_refused() -> None:
    with pytest.raises(ModelError, match="v1, v2"):
        presets.spec("tiny", version="v7")
