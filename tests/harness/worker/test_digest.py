"""The digest of weights: equal for equal weights in any order, another for any change."""

import torch

from harness.worker.model_and_data import weights_digest

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b.weight": torch.tensor(2.0), "c": torch.zeros(0)}


def test_equal_weights_have_equal_digests_in_any_order_and_precision() -> None:
    backwards = {name: STATE[name].to(torch.bfloat16) for name in reversed(STATE)}  # these values are exact in bf16
    assert weights_digest(backwards) == weights_digest(STATE)
    assert len(weights_digest(STATE)) == 64


def test_every_change_shows() -> None:
    flat = {**STATE, "a": STATE["a"].flatten()}
    moved = {**STATE, "b.weight": torch.tensor(2.0000002)}
    renamed = {"d" if name == "b.weight" else name: tensor for name, tensor in STATE.items()}
    shorter = {name: STATE[name] for name in ("a", "b.weight")}
    digests = {weights_digest(state) for state in (STATE, flat, moved, renamed, shorter)}
    assert len(digests) == 5
