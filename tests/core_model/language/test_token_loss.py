"""The loss without logits in fp32: the same figures, in fp32 to the last bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core_model.language.token_loss import TokenLoss
from core_model.transformer_lm import build_transformer

SMALL = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 48, "vocab": 64, "length": 8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_the_cross_entropy_of_fp32_logits(dtype: torch.dtype, compiled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 5, 50, generator=generator) * 4).to(dtype).requires_grad_()
    labels = torch.randint(50, (3, 5), generator=generator)
    loss = TokenLoss()
    if compiled:
        loss.compile(backend="aot_eager")
    got = loss(logits, labels)
    wanted = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
    (ours,), (theirs,) = torch.autograd.grad(got, logits), torch.autograd.grad(wanted, logits)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-7)


@pytest.mark.parametrize("overrides", [{"loss": "fused"}, {"residual": "autocast"}], ids=str)
def test_in_fp32_training_is_the_same(samples, overrides) -> None:
    plain = build_transformer(SMALL, seed=0, device="cpu")
    other = build_transformer({**SMALL, **overrides}, seed=0, device="cpu")
    batch = plain.collate(samples(3))
    gradients = []
    for model in (plain, other):
        model(batch)["loss"].backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-6, atol=1e-8, msg=name)


def test_records_without_them_stay_what_they_were() -> None:
    assert not {"loss", "residual"} & set(build_transformer(SMALL, seed=0, device="cpu").describe()["spec"])
    chosen = build_transformer({**SMALL, "loss": "fused", "residual": "autocast"}, seed=0, device="cpu")
    assert chosen.describe()["spec"]["loss"] == "fused"
    assert chosen.describe()["spec"]["residual"] == "autocast"
    assert chosen.compile_blocks() == SMALL["layers"] + 1


def test_the_stream_is_of_the_products_type_where_asked(samples) -> None:
    for residual, dtype in (("fp32", torch.float32), ("autocast", torch.bfloat16)):
        model = build_transformer({**SMALL, "residual": residual}, seed=0, device="cpu")
        seen = []
        model.llama.model.layers[1].register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            model(model.collate(samples(2)))["loss"].backward()
        assert seen == [dtype]
