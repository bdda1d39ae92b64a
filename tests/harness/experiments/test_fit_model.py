"""The grid of sizes and the memory model of `harness experiment max-model`."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from harness.experiments.max_model.memory_formula import Setting, Training, demand, largest
from harness.experiments.max_model.shapes import Grid

GPU = Training()
ENGINES = {
    "ddp": Setting(backend="ddp"),
    "horovod": Setting(backend="horovod"),
    "fsdp2": Setting(backend="fsdp2"),
    **{f"zero{stage}": Setting(backend="deepspeed", engine={"zero_stage": stage}) for stage in range(4)},
    "offload": Setting(backend="deepspeed", engine={"zero_stage": 2, "offload_optimizer": "cpu"}),
}


@pytest.mark.parametrize(("vocab", "first"), [(32_000, 60), (512, -15)])
def test_shapes_grow_with_the_grid_and_meet_its_aims(vocab: int, first: int) -> None:
    grid = Grid(vocab=vocab)
    counts = [grid.shape(point).parameters for point in range(first, 220)]
    assert all(small < large for small, large in itertools.pairwise(counts))
    for point, count in zip(range(first, 220), counts, strict=True):
        assert math.isclose(count, grid.aim(point), rel_tol=0.005)
    for point in range(first, 220, 7):
        spec = grid.shape(point).spec
        assert spec.width % spec.heads == 0
        assert (spec.width // spec.heads) % 2 == 0


def test_the_grid_has_llamas_own_proportions() -> None:
    grid = Grid()
    near = grid.shape(grid.point(6.74e9)).spec
    assert (near.width, near.heads) == (4096, 32)
    assert near.layers in (31, 32, 33)


def test_a_shape_is_what_the_worker_builds() -> None:
    from core_model.language.llama import Llama
    from core_model.transformer_lm import TransformerSpec

    shape = Grid(vocab=512, length=32).shape(5)
    spec = TransformerSpec(**shape.overrides())
    with torch.device("meta"):
        llama = Llama(spec.config())
    assert sum(p.numel() for p in llama.parameters()) == shape.parameters
    linear = sum(m.weight.numel() for m in llama.modules() if isinstance(m, torch.nn.Linear))
    assert linear == shape.linear
    assert sum(p.numel() for p in llama.model.layers[0].parameters()) == shape.layer


@pytest.mark.parametrize("name", ENGINES)
def test_demand_grows_with_the_model_and_never_with_the_workers(name: str) -> None:
    grid = Grid()
    needs = [demand(ENGINES[name], grid.shape(point), 2, GPU).device for point in range(100, 200, 5)]
    assert needs == sorted(needs)
    shape = grid.shape(180)
    alone, eight = (demand(ENGINES[name], shape, count, GPU) for count in (1, 8))
    assert eight.device <= alone.device * 1.1  # Horovod's fusion buffer and ZeRO-0's flat bucket come with peers
    assert eight.host <= alone.host


def test_every_worker_holds_at_least_what_theory_says() -> None:
    shape = Grid().shape(170)
    for name, setting in ENGINES.items():
        if name == "offload":
            continue
        need = demand(setting, shape, 2, GPU)
        assert need.device >= sum(need.held.values()), name


def test_sharding_and_offloading_make_room_in_the_known_order() -> None:
    grid = Grid()
    room = {
        name: largest(setting, grid, 8, GPU, device_mib=80_000, host_mib=800_000) for name, setting in ENGINES.items()
    }
    assert room["ddp"] <= room["horovod"] < room["zero1"] < room["zero2"] < room["zero3"]
    assert room["ddp"] < room["fsdp2"]
    small_host = largest(ENGINES["offload"], grid, 8, GPU, device_mib=80_000, host_mib=50_000)
    assert small_host < room["offload"]


def test_recomputing_activations_makes_room() -> None:
    grid, setting = Grid(length=2048), ENGINES["ddp"]
    plain = largest(setting, grid, 1, Training(micro_batch=4), device_mib=80_000, host_mib=0)
    saving = largest(
        setting, grid, 1, Training(micro_batch=4, activation_checkpointing=True), device_mib=80_000, host_mib=0
    )
    assert saving > plain + 5
