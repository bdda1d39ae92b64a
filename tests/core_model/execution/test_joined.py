"""Frozen projections of one input as one product: the same results, no weight stored twice, no stale weight used."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from core_model.execution.frozen import freeze
from core_model.execution.joined import joined_weight
from core_model.language.llama import Llama, LlamaConfig

CONFIG = LlamaConfig(vocab=64, width=32, layers=2, heads=4, kv_heads=2, mlp=48)


@pytest.fixture
def llama() -> Llama:
    model = Llama(CONFIG)
    model.initialize(torch.Generator().manual_seed(0))
    return freeze(model)


def passed(model: Llama) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and the gradient of the input."""
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    out = model(x)
    return out.detach(), torch.autograd.grad(out.square().sum(), x)[0]


def test_the_same_results_and_names(llama: Llama) -> None:
    plain = copy.deepcopy(llama)
    wanted, names = passed(llama), list(llama.state_dict())
    assert llama.join()
    assert not llama.join()  # they lie together already
    for ours, theirs in zip(passed(llama), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert list(llama.state_dict()) == names
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(llama.get_parameter(name), parameter, rtol=0, atol=0)


def test_no_weight_is_stored_twice(llama: Llama) -> None:
    before = sum(parameter.numel() for parameter in llama.parameters())
    llama.join()
    storages = {parameter.untyped_storage().data_ptr(): parameter.untyped_storage() for parameter in llama.parameters()}
    assert sum(storage.nbytes() for storage in storages.values()) == 4 * before
    attention = llama.model.layers[0].self_attn
    assert attention.joined.data_ptr() == attention.q_proj.weight.data_ptr()


def test_weights_put_into_place_are_seen_and_replaced_ones_take_over(llama: Llama) -> None:
    llama.join()
    layer = llama.model.layers[0]
    with torch.no_grad():
        layer.self_attn.v_proj.weight.mul_(3)
    changed = copy.deepcopy(llama)  # parameters of its own, and no joined ones that are used
    torch.testing.assert_close(passed(changed), passed(llama), rtol=1e-5, atol=1e-6)
    for name in ("gate_proj", "up_proj"):
        weight = getattr(layer.mlp, name).weight
        weight.data = weight.data * 2  # as an engine or a change of type does
    plain = Llama(CONFIG)
    plain.load_state_dict(llama.state_dict())
    torch.testing.assert_close(passed(llama), passed(freeze(plain)), rtol=1e-5, atol=1e-6)
    assert layer.mlp.joined is None
    assert layer.self_attn.joined is not None


def test_what_cannot_be_joined_is_left_alone(llama: Llama) -> None:
    frozen = [freeze(nn.Linear(4, 4, bias=False)) for _ in range(2)]
    assert joined_weight(frozen) is not None
    hooked = freeze(nn.Linear(4, 4, bias=False))
    hooked.register_forward_hook(lambda *_: None)
    sharded = freeze(nn.Linear(4, 4, bias=False))
    sharded.weight.data = torch.empty(0)
    for odd in (nn.Linear(4, 4, bias=False), freeze(nn.Linear(4, 4)), freeze(nn.Identity()), hooked, sharded):
        assert joined_weight([frozen[0], odd]) is None
    llama.requires_grad_(True)
    assert not llama.join()
