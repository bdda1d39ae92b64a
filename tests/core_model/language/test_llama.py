"""Our LLaMA against transformers', with and without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core_model.errors import ModelError
from core_model.execution.frozen import materialize
from core_model.language.llama import Llama, LlamaConfig, parameter_count, rotary_table, rotate
from core_model.pretrained.wheels import assign

CONFIG = LlamaConfig(vocab=50, width=32, layers=3, heads=4, kv_heads=2, mlp=48, rope_theta=5e4, norm_eps=1e-6)


@pytest.fixture
def llama() -> Llama:
    model = Llama(CONFIG)
    model.initialize(torch.Generator().manual_seed(0), std=0.2)
    return model.eval()


def test_equals_transformers_llama(llama: Llama) -> None:
    from transformers import LlamaConfig as Reference
    from transformers import LlamaForCausalLM

    values = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
        "tie_word_embeddings": False,
    }
    reference = LlamaForCausalLM(Reference(**values)).eval()
    reference.load_state_dict(llama.state_dict())
    ids = torch.randint(0, 50, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(llama.logits(llama(llama.embed(ids))), reference(ids).logits, rtol=1e-5, atol=1e-5)
    assert LlamaConfig.from_transformers({**reference.config.to_dict()}) == CONFIG


def test_cache_continues_where_the_whole_pass_would_be(llama: Llama) -> None:
    ids = torch.randint(0, 50, (2, 12))
    with torch.no_grad():
        whole = llama(llama.embed(ids))
        cache = llama.new_cache(2, 12)
        parts = [llama(llama.embed(ids[:, :7]), cache=cache)]
        parts += [llama(llama.embed(ids[:, i : i + 1]), cache=cache) for i in range(7, 12)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_padding_on_the_right_does_not_reach_earlier_places(llama: Llama) -> None:
    ids = torch.randint(0, 50, (1, 10), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        short = llama(llama.embed(ids[:, :6]))
        padded = llama(llama.embed(ids))
    torch.testing.assert_close(padded[:, :6], short, rtol=1e-4, atol=1e-5)


def test_activation_checkpointing_changes_no_gradient(llama: Llama) -> None:
    embeddings = llama.embed(torch.randint(0, 50, (2, 9))).detach().requires_grad_()
    (plain,) = torch.autograd.grad(llama(embeddings).square().sum(), embeddings)
    llama.set_activation_checkpointing(True)
    (again,) = torch.autograd.grad(llama(embeddings).square().sum(), embeddings)
    assert torch.equal(plain, again)


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_count(tied: bool) -> None:
    config = LlamaConfig(vocab=50, width=32, layers=3, heads=4, kv_heads=2, mlp=48, tied=tied)
    with torch.device("meta"):
        model = Llama(config)
    assert sum(p.numel() for p in model.parameters()) == parameter_count(config)


def test_tied_output_layer_survives_assignment() -> None:
    config = LlamaConfig(vocab=50, width=32, layers=1, heads=4, kv_heads=4, mlp=48, tied=True)
    source = Llama(config)
    tensors = {name: t for name, t in source.state_dict().items() if name != "lm_head.weight"}
    with torch.device("meta"):
        model = Llama(config)
    assign(model, tensors, "test")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.lm_head.weight.is_meta


@pytest.mark.parametrize("tied", [False, True])
def test_random_weights_tie_the_output_layer_only_where_the_configuration_does(tied: bool) -> None:
    """A tied twin of an untied model would have fewer weights than its name says, and FSDP2 refuses it."""
    config = LlamaConfig(vocab=100, width=64, layers=2, heads=2, kv_heads=2, mlp=96, tied=tied)
    with torch.device("meta"):
        llama = Llama(config)
    llama = materialize(llama, device="cpu", dtype=torch.float32, seed=0)
    assert (llama.lm_head.weight is llama.model.embed_tokens.weight) == tied
    assert sum(parameter.numel() for parameter in llama.parameters()) == parameter_count(config)
    assert llama.lm_head.weight.std() > 0.01


def test_rotation_is_the_formula_and_its_gradient_the_rotation_back() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    cos, sin = (table.double() for table in rotary_table(torch.arange(5), 8, 10_000.0))
    first, second = x.chunk(2, dim=-1)
    torch.testing.assert_close(rotate(x, cos, sin), x * cos + torch.cat((-second, first), dim=-1) * sin)
    assert torch.autograd.gradcheck(lambda given: rotate(given, cos, sin), (x,))
    strided = x.detach().transpose(1, 2).contiguous().transpose(1, 2)  # as the attention's heads lie
    torch.testing.assert_close(rotate(strided, cos, sin), rotate(x, cos, sin))


def test_under_autocast_the_input_of_several_products_is_kept_once(llama: Llama) -> None:
    """Queries, keys and values share one cast of the normed input, gate and up another."""
    layer, width = llama.model.layers[0], llama.config.width
    cos, sin = rotary_table(torch.arange(5), llama.config.head_width, llama.config.rope_theta)
    weights = {weight.untyped_storage().data_ptr() for weight in llama.parameters()}
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(2, 5, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        layer(x, cos.bfloat16(), sin.bfloat16(), None, None)
    inputs = {
        tensor.untyped_storage().data_ptr()
        for tensor in kept
        if tensor.dtype == torch.bfloat16 and tensor.numel() == x.numel() and tensor.shape[-1] == width
    } - weights
    assert len(inputs) == 3  # of q, k, v; of gate, up; of o


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rope_type", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("rope_type", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}),
        ("hidden_act", {"hidden_act": "gelu"}),
        ("head_dim", {"head_dim": 4}),
        ("attention_bias", {"attention_bias": True}),
        ("mlp_bias", {"mlp_bias": True}),
    ],
)
def test_a_llama_that_computes_otherwise_is_refused_by_name(name: str, change: dict[str, Any]) -> None:
    from transformers import LlamaConfig as Reference

    values = Reference(hidden_size=32, num_attention_heads=4).to_dict()
    LlamaConfig.from_transformers(values)
    with pytest.raises(ModelError, match=f"config.json has {name} "):
        LlamaConfig.from_transformers({**values, "rope_parameters": None, **change})
