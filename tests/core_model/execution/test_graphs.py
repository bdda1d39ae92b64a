"""CUDA graphs of frozen parts: where they may be used, and that they change nothing. The second half needs a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from core_model.execution.cuda_graphs import GraphedPart
from core_model.execution.frozen import freeze

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA graphs")


def part(gradient: bool, device: str = "cpu") -> tuple[nn.Module, GraphedPart]:
    torch.manual_seed(0)
    module = freeze(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).to(device))
    return module, GraphedPart(module, lambda x: (module(x),), gradient=gradient)


def test_on_the_cpu_the_part_runs_as_it_is() -> None:
    module, graphed = part(gradient=True)
    x = torch.randn(3, 8, requires_grad=True)
    torch.testing.assert_close(graphed(x)[0], module(x), rtol=0, atol=0)
    assert graphed.replays == 0


def test_the_switch_reaches_encoder_and_language_model(tiny) -> None:
    assert tiny.encoder.cuda_graphs
    assert tiny.language.cuda_graphs
    changed = copy.deepcopy(tiny)
    changed.set_cuda_graphs(False)
    assert not changed.encoder.cuda_graphs
    assert not changed.language.cuda_graphs
    assert not changed.describe()["cuda_graphs"]
    assert changed.language._graphed._owner is changed.language.transformer  # the copy's, not the original's


@needs_gpu
@pytest.mark.parametrize("gradient", [True, False])
def test_replays_equal_the_module_for_every_shape(gradient: bool) -> None:
    module, graphed = part(gradient, "cuda")
    for rows in (3, 5, 3, 3):
        x = torch.randn(rows, 8, device="cuda", requires_grad=gradient)
        out = graphed(x)[0]
        torch.testing.assert_close(out, module(x), rtol=0, atol=0)
        if gradient:
            (got,) = torch.autograd.grad(out.square().sum(), x)
            (wanted,) = torch.autograd.grad(module(x).square().sum(), x)
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert graphed.replays == 4
    assert len(graphed._captured) == 2


@needs_gpu
def test_new_weights_hooks_autocast_and_open_passes_are_noticed() -> None:
    module, graphed = part(gradient=True, device="cuda")
    x = torch.randn(3, 8, device="cuda", requires_grad=True)
    graphed(x)[0].sum().backward()
    with torch.no_grad():
        module[0].weight.mul_(2)
    out = graphed(x)[0]
    torch.testing.assert_close(out, module(x), rtol=0, atol=0)
    seen = graphed.replays
    graphed(x)  # the forward before it has had no backward
    with torch.autocast("cuda", torch.bfloat16):
        graphed(x)
    out.sum().backward()
    handle = module[0].register_forward_hook(lambda *_: None)
    graphed(x)
    assert graphed.replays == seen
    handle.remove()
    graphed(x)
    assert graphed.replays == seen + 1


@needs_gpu
def test_a_training_step_is_the_same_with_and_without_graphs(tiny, samples) -> None:
    model = tiny.to("cuda")
    model.set_frozen_dtype(torch.bfloat16)
    batch = model.collate(samples(4)).to("cuda")
    results = []
    for on in (False, True, True):
        model.set_cuda_graphs(on)
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            model(batch)["loss"].backward()
        results.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert model.language._graphed.replays == 2
    assert model.encoder._graphed.replays == 2
    for name, wanted in results[0].items():
        for other in results[1:]:
            torch.testing.assert_close(other[name], wanted, rtol=2e-2, atol=1e-4, msg=name)


@needs_gpu
def test_graphs_of_many_shapes_need_little_more_memory_than_one() -> None:
    """Activations are in one pool, and nothing is kept for a stream of each capture."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    module = freeze(nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(40))).to("cuda"))

    def kept(rows: list[int]) -> int:
        graphed = GraphedPart(module, lambda x: (module(x),), gradient=True)
        graphed.capture_all([(torch.zeros(each, 256, device="cuda", requires_grad=True),) for each in rows])
        torch.cuda.empty_cache()
        assert graphed.captures == len(rows)
        return torch.cuda.memory_reserved() - before

    one = kept([16384])
    torch.cuda.empty_cache()
    assert kept([16384, 15360, 14336, 13312]) < 1.6 * one
