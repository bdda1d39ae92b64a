"""The all-trained transformer: its weights are the same however they come to a device."""

from __future__ import annotations

import torch

from core_model.transformer_lm import TransformerSpec, _copy, _draw, _kept, build_transformer

SMALL = {"width": 32, "layers": 2, "heads": 2, "kv_heads": 2, "mlp": 48, "vocab": 64, "length": 8}


def test_weights_that_are_kept_for_a_gpu_are_those_drawn_for_a_cpu() -> None:
    spec = TransformerSpec(**SMALL)
    drawn = build_transformer(SMALL, seed=3, device="cpu").llama.state_dict()
    copied = _copy(_kept(spec, 3), "cpu").state_dict()
    assert drawn.keys() == copied.keys()
    assert all(torch.equal(drawn[name], copied[name]) for name in drawn)


def test_training_one_copy_leaves_the_kept_weights_alone() -> None:
    spec = TransformerSpec(**SMALL)
    first = _copy(_kept(spec, 3), "cpu")
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    again, fresh = _copy(_kept(spec, 3), "cpu").state_dict(), _draw(spec, 3).state_dict()
    assert all(torch.equal(again[name], fresh[name]) for name in fresh)


def test_another_seed_gives_other_weights() -> None:
    spec = TransformerSpec(**SMALL)
    assert not torch.equal(_kept(spec, 3).lm_head.weight, _kept(spec, 4).lm_head.weight)
