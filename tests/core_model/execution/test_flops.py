"""The counted FLOPs against torch's own counter on a real forward and backward pass."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core_model.build import build
from core_model.execution.flops import llama_flops, vit_flops
from core_model.language.llama import Llama, LlamaConfig
from core_model.vision.vit import VisionTransformer, ViTConfig


def counted(run) -> float:
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        run()
    return float(counter.get_total_flops())


def test_vit() -> None:
    config = ViTConfig(width=48, layers=3, heads=4, patch=7, grid=8)
    with torch.device("meta"):
        vit = VisionTransformer(config)
    pixels = torch.zeros(1, 3, 56, 56, device="meta")
    assert counted(lambda: vit(pixels, (0,))) == pytest.approx(vit_flops(config, 56), rel=1e-6)


def test_llama_without_the_masked_half() -> None:
    config = LlamaConfig(vocab=100, width=64, layers=2, heads=4, kv_heads=4, mlp=96)
    llama = Llama(config)
    embeddings = torch.zeros(1, 40, 64)
    whole = counted(lambda: llama.logits(llama(embeddings)[:, -5:]))
    masked_half = 2 * (4 * 40 * 40 - 2 * 40 * 41) * 64  # the counter takes all of the score matrix
    assert whole - masked_half == pytest.approx(llama_flops(config, 40, 5), rel=1e-6)


@pytest.mark.slow
def test_a_training_step(samples) -> None:
    """Wider than tiny, so that attention's masked half and the answers' share of the logits do not matter much."""
    model = build("small", random_weights=True, image_size=112)
    batch = model.collate(samples(1, side=112))
    model(batch)  # the text features and the constant prefix are computed once, not in every step
    estimated = model.flops_per_sample(batch.token_ids.shape[1])
    total = counted(lambda: model(batch)["loss"].backward())
    assert estimated["total"] == pytest.approx(total, rel=0.06)
    assert estimated["total"] == pytest.approx(estimated["forward"] + estimated["backward"])


def test_the_seven_billion_step_is_mostly_the_language_model() -> None:
    model = build("anomalygpt-7b", random_weights=True, device="meta")
    flops = model.flops_per_sample(64)
    places = 64 + 18 + 1 + len(model.language.after_ids)
    assert flops["language"] == pytest.approx(4 * 6.6e9 * places, rel=0.05)  # 2 x forward: no weights' gradient
    assert flops["encoder"] == pytest.approx(2 * 630e6 * 257, rel=0.1)
