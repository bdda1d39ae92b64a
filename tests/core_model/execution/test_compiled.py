"""Compiled blocks: one compilation for all of a kind, the same gradients, and none where shapes vary."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from core_model.execution.compile import compile_blocks, eager
from core_model.execution.cuda_graphs import GraphedPart
from core_model.execution.frozen import freeze
from core_model.language.llama import Llama, LlamaConfig
from core_model.language.ragged import Ragged
from core_model.transformer_lm import build_transformer

SMALL = {"width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "mlp": 48, "vocab": 64, "length": 8}
CONFIG = LlamaConfig(vocab=64, width=32, layers=3, heads=4, kv_heads=2, mlp=48)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: compiled kernels in CUDA graphs")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def llama() -> Llama:
    torch.manual_seed(0)
    model = Llama(CONFIG)
    model.initialize(torch.Generator().manual_seed(0))
    return model


@contextlib.contextmanager
def distributed(folder: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def compilations() -> int:
    return int(counters["stats"]["unique_graphs"])


def gradients(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.logits(model(model.embed(ids))).square().mean().backward()  # type: ignore[operator]
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_all_layers_share_one_compilation_and_their_gradients_are_the_same() -> None:
    plain, ids = llama(), torch.arange(12).view(2, 6)
    compiled = copy.deepcopy(plain)
    assert compile_blocks(compiled, "aot_eager") == 3
    assert list(compiled.state_dict()) == list(plain.state_dict())
    wanted, got = gradients(plain, ids), gradients(compiled, ids)
    assert compilations() == 1
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-5, atol=1e-7, msg=name)


def test_data_parallel_runs_the_same_kernels_as_one_process(tmp_path) -> None:
    """Dynamo would cut the graphs at DDP's buckets, which are smaller than a layer here."""
    alone, ids = llama(), torch.arange(12).view(2, 6)
    graphs: list[list[str]] = []

    def seen(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    with distributed(tmp_path):
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(alone), bucket_cap_mb=1e-3)
        compile_blocks(wrapped, seen)
        wrapped(wrapped.module.embed(ids))
    (of_many,) = graphs
    torch._dynamo.reset()
    compile_blocks(alone, seen)
    alone(alone.embed(ids))
    assert graphs[1:] == [of_many]


def test_layers_share_it_behind_a_prefix_too() -> None:
    model = freeze(llama())
    embeddings = model.embed(torch.arange(8).view(2, 4))
    prefix = model.prefix(torch.arange(3))
    wanted = model(embeddings, prefix=prefix)
    compile_blocks(model, "aot_eager")
    torch.testing.assert_close(model(embeddings, prefix=prefix), wanted, rtol=1e-5, atol=1e-6)
    assert compilations() == 1


def test_rows_of_samples_of_any_length_share_two() -> None:
    """One for the first length, one for all others; behind a prefix and with joined weights."""
    model = freeze(llama())
    model.join()
    prefix = model.prefix(torch.arange(3))
    compiled = copy.deepcopy(model)
    compiled.join()
    compile_blocks(compiled, "aot_eager")
    for rows in (12, 24, 36, 48):
        starts = torch.tensor([0, 5, 9, rows], dtype=torch.int32)
        x = torch.randn(1, rows, 32, requires_grad=True)
        outs = []
        for each in (model, compiled):
            ragged = Ragged(starts, rows=rows, longest=rows, known=3)
            out = each(x, prefix=prefix, packing=ragged)
            outs.append((out.detach(), *torch.autograd.grad(out.square().sum(), x)))
        torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-5)
    assert compilations() <= 2


def test_generation_runs_as_written(tiny, samples) -> None:
    pictures = samples(2)
    model, batch = copy.deepcopy(tiny), tiny.collate(pictures)
    questions = ["Is there any anomaly in the image?"] * len(pictures)
    wanted = tiny.answer(batch.images, list(batch.categories), questions, max_new_tokens=4)
    assert model.compile_blocks() > 0
    with eager():
        got = model.answer(batch.images, list(batch.categories), questions, max_new_tokens=4)
    assert got == wanted
    assert compilations() == 0


def test_a_model_of_other_blocks_has_none() -> None:
    assert compile_blocks(nn.Sequential(nn.Linear(2, 2))) == 0


def test_the_exchange_heavy_model_has_one_a_layer() -> None:
    assert build_transformer(SMALL, seed=0, device="cpu").compile_blocks() == 3


@needs_gpu
def test_compiled_kernels_can_be_captured() -> None:
    model = freeze(llama().to("cuda", torch.bfloat16))
    plain = copy.deepcopy(model)
    compile_blocks(model)
    graphed = GraphedPart(model, lambda x: (model(x),), gradient=True)
    for length in (16, 32, 16):
        x = torch.randn(2, length, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        out = graphed(x)[0]
        torch.testing.assert_close(out, plain(x), rtol=0.05, atol=0.05)
        (got,) = torch.autograd.grad(out.float().square().sum(), x)
        (wanted,) = torch.autograd.grad(plain(x).float().square().sum(), x)
        torch.testing.assert_close(got, wanted, rtol=0.1, atol=0.1)
    assert graphed.replays == 3
