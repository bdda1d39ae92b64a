"""A run that is cut and resumed in new processes ends bit-equal to an unbroken one; damaged checkpoints are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import HERE, run

pytestmark = pytest.mark.timeout(300)

SCALE = {"initial_power": 8, "window": 3}
CELLS = [
    {"label": "ddp", "engine": "ddp"},
    {"label": "ddp fp16", "engine": "ddp", "optimization": {"precision": "fp16", "loss_scale": SCALE}},
    {"label": "fsdp2", "engine": "fsdp2", "settings": {"wrap_min_parameters": 500}},
    {"label": "horovod", "engine": "horovod", "optimization": {"accumulation": 2}},
    {"label": "zero0", "engine": "deepspeed", "settings": {"zero_stage": 0}},
    {"label": "zero1", "engine": "deepspeed", "settings": {"zero_stage": 1}},
    {"label": "zero2", "engine": "deepspeed", "settings": {"zero_stage": 2}, "optimization": {"accumulation": 2}},
    {
        "label": "zero2 fp16",
        "engine": "deepspeed",
        "settings": {"zero_stage": 2},
        "optimization": {"precision": "fp16", "loss_scale": SCALE},
    },
    {"label": "zero3", "engine": "deepspeed", "settings": {"zero_stage": 3, "stage3_param_persistence_threshold": 0}},
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    spec = folder / "spec.json"
    spec.write_text(json.dumps({"cells": [cell | {"steps": 10} for cell in CELLS], "output": str(folder)}))
    for phase in ("first", "second"):
        ended = run("mpirun", 2, HERE / "resume.py", [str(spec), phase], folder / f"{phase}.txt", limit_s=140)
        assert ended.code == 0, ended.output[-3000:]
    return folder


@pytest.mark.parametrize("name", [cell["label"] for cell in CELLS])
def test_resume_is_bit_equal(finished: Path, name: str) -> None:
    assert json.loads((finished / "differing.json").read_text())[name] == []


def test_sharded_files_are_one_a_rank_and_never_hold_frozen_weights(finished: Path) -> None:
    zero2 = finished / "checkpoint-6" / "engine"
    assert len(list(zero2.glob("*optim_states.pt"))) == 2
    fsdp2 = finished / "checkpoint-2"
    assert {path.name for path in fsdp2.iterdir()} == {"state-0-of-2.pt", "state-1-of-2.pt"}
