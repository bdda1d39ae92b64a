"""The counted FLOPs against torch's own counter, on real forward and backward passes of several text lengths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core_model.build import build
from core_model.execution.flops import Shape, llama_flops, useful_shape, vit_flops
from core_model.language.llama import Llama, LlamaConfig
from core_model.transformer_lm import TrainedTransformer, TransformerSpec
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
    assert counted(lambda: vit(pixels, (0,))) == pytest.approx(vit_flops(config, 56), rel=1e-9)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_llama_forward_and_backward(trained: bool, recompute: bool) -> None:
    config = LlamaConfig(vocab=100, width=64, layers=2, heads=4, kv_heads=2, mlp=96)
    llama = Llama(config).requires_grad_(trained)
    llama.set_activation_checkpointing(recompute)
    shape = Shape(samples=3, rows=3 * 40, pairs=3 * 40**2, logits=3 * 5)

    def passes() -> None:
        embeddings = torch.zeros(3, 40, 64, requires_grad=True)
        llama.logits(llama(embeddings)[:, -5:]).sum().backward()

    assert counted(passes) == pytest.approx(sum(llama_flops(config, shape, trained=trained, recompute=recompute)))


@pytest.fixture(scope="module", params=["tiny", "tiny:mlp", "tiny:conv", "tiny:detached", "small"])
def model(request: pytest.FixtureRequest):
    preset, _, variant = request.param.partition(":")
    overrides = {
        "": {},
        "mlp": {"decoder_layers": "mlp,norm,residual"},
        "conv": {"decoder_layers": "conv3x3"},
        "detached": {"detach_map": "true"},
    }[variant]
    side = 112 if preset == "small" else 56
    return build(preset, random_weights=True, image_size=side, overrides=overrides)


@pytest.mark.parametrize(("count", "words"), [(1, 0), (3, 0), (2, 25)])
def test_a_training_step_is_counted_to_the_last_product(model, samples, count: int, words: int) -> None:
    """What is done: torch's counter on the whole step, padding included. words: more in the first text than in the
    others."""
    longer = [
        replace(
            sample, turns=((sample.turns[0][0] + " very" * words, sample.turns[0][1]),) if not number else sample.turns
        )
        for number, sample in enumerate(samples(count, side=model.image_size))
    ]
    batch = model.collate(longer)
    model(batch)  # the text features and the constant prefix are computed once, not in every step
    model.work.take()
    total = counted(lambda: model(batch)["loss"].backward())
    work = model.work.take()
    done = model.flops(work.done)
    assert done["total"] == pytest.approx(total, rel=1e-6)
    assert done["total"] == pytest.approx(done["forward"] + done["backward"])
    useful = model.flops(work.useful)
    assert useful["total"] < done["total"]  # the causal half, at least
    assert work.useful.rows <= work.done.rows
    assert work.useful.samples == work.done.samples == count
    padding = batch.token_ids.numel() - int(batch.lengths.sum())
    assert 0 <= work.done.rows - work.useful.rows <= padding
    assert work.useful.logits == work.done.logits == int((batch.labels != -100).sum())


def test_useful_is_the_sum_of_samples_that_train_alone(samples) -> None:
    """A batch's useful work does not depend on what its samples are padded to."""
    model = build("tiny", random_weights=True)
    several = samples(4)
    model(model.collate(several))
    together = model.work.take().useful
    for sample in several:
        model(model.collate([sample]))
    assert model.work.take().useful == together


def test_a_trained_transformers_step() -> None:
    spec = TransformerSpec(width=64, layers=2, heads=4, kv_heads=4, mlp=96, vocab=120, length=24)
    model = TrainedTransformer(spec, Llama(spec.config()))
    from core_model.batch import Batch

    ids = torch.randint(0, 120, (3, 24))
    batch = Batch(
        ids=("a", "b", "c"), categories=("x",) * 3, images=torch.zeros(3, 3, 1, 1), masks=torch.zeros(3, 1, 1, 1),
        is_defective=torch.zeros(3, dtype=torch.bool), token_ids=ids, labels=ids, lengths=torch.full((3,), 24),
    )  # fmt: skip
    total = counted(lambda: model(batch)["loss"].backward())
    work = model.work.take()
    assert model.flops(work.done)["total"] == pytest.approx(total)
    assert model.flops(work.useful)["total"] < total


def test_the_seven_billion_step_is_mostly_the_language_model() -> None:
    model = build("anomalygpt-7b", random_weights=True, device="meta")
    frame = 18 + 1 + len(model.language.after_ids)
    flops = model.flops(useful_shape([64], 12, frame=frame, known=len(model.language.before_ids)))
    assert flops["language"] == pytest.approx(4 * 6.6e9 * (frame + 64), rel=0.05)  # 2 x forward: no weights' gradient
    assert flops["encoder"] == pytest.approx(2 * 630e6 * 257, rel=0.1)


def test_models_with_parts_that_are_not_counted_have_no_flops() -> None:
    model = build("lite", random_weights=True, image_size=128)
    assert model.flops(Shape(samples=1, rows=10, pairs=100, logits=1)) is None
