"""Batches without padding: the same losses and gradients, and products over the tokens alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core_model.anomalygpt.losses import LossWeights
from core_model.build import build
from core_model.language.packing import Packing, text_places


def test_places_and_back() -> None:
    lengths = torch.tensor([2, 4, 1])
    text = text_places(lengths, 4)
    assert text.tolist() == [0, 1, 4, 5, 6, 7, 8]
    packing = Packing(batch=3, frame=2, length=4, text=text)
    padded = torch.arange(1.0, 19.0).view(3, 6, 1)
    packed = packing.pack(padded)
    assert packed.flatten().tolist() == [1, 2, 7, 8, 13, 14, 3, 4, 9, 10, 11, 12, 15]
    assert packing.unpack(packed)[..., 0].tolist() == [[1, 2, 3, 4, 0, 0], [7, 8, 9, 10, 11, 12], [13, 14, 15, 0, 0, 0]]
    rows, columns = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 3, 0])
    assert packed.flatten()[packing.before(rows, columns, lengths)].tolist() == [2, 3, 11, 14]


def losses_and_gradients(model, batch) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    width = model.language.width
    picture = (torch.randn(len(batch), width, generator=generator) * 0.3).requires_grad_()
    prompts = (torch.randn(len(batch), 18, width, generator=generator) * 0.3).requires_grad_()
    losses = model.language.answer_loss(picture, prompts, batch, LossWeights())
    trained = [p for p in model.language.parameters() if p.requires_grad]
    return losses, *torch.autograd.grad(losses.sum(), [picture, prompts, *trained])


def padded(model):
    """Leaves the padding in from now on."""
    model.language.transformer.packs = False
    return model


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_and_padded_batches_have_the_same_losses_and_gradients(samples, lora, checkpointing) -> None:
    model = build("tiny", seed=3, overrides={"lora": lora})
    model.language.transformer.model.layers.requires_grad_(False) if not lora else None
    with torch.no_grad():  # random tiny models hardly look at what stands before; LoRA's second factor starts at 0
        for name, parameter in model.language.transformer.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    model.set_activation_checkpointing(checkpointing)
    batch = model.collate(samples(5))
    assert len(batch.extras["text_places"]) < batch.token_ids.numel()
    packed = losses_and_gradients(model, batch)
    searched = losses_and_gradients(model, replace(batch, extras={}))
    for ours, theirs, plain in zip(packed, searched, losses_and_gradients(padded(model), batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5 * float(plain.detach().abs().max()))


def test_on_a_gpu_only_where_asked_for() -> None:
    """The option reaches the language model; records of runs without it stay what they were."""
    for asked in (False, True):
        model = build("tiny", seed=3, overrides={"pack_on_gpu": asked})
        assert model.language.packed_on_gpu is asked
        assert ("pack_on_gpu" in model.describe()["spec"]) is asked


def test_products_are_of_the_tokens_alone(tiny, samples) -> None:
    """Counted by torch: without the padding the matrix products shrink as the number of tokens does."""
    batch = tiny.collate(samples(6))
    generator = torch.Generator().manual_seed(1)
    width = tiny.language.width
    picture, prompts = torch.randn(6, width, generator=generator), torch.randn(6, 18, width, generator=generator)
    tiny.language.constant_prefix()

    def products() -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            tiny.language.answer_loss(picture, prompts, batch, LossWeights())
        return sum(count for name, count in counter.get_flop_counts()["Global"].items() if "mm" in str(name))

    answers = 2 * len(batch.extras["answer_rows"]) * width * tiny.language.transformer.config.vocab
    frame = 6 * (19 + len(tiny.language.after_ids))
    packed = products() - answers
    ratio = packed / (products() - answers) if padded(tiny) else 0
    assert ratio == pytest.approx((frame + int(batch.lengths.sum())) / (frame + batch.token_ids.numel()), rel=1e-6)
    assert ratio < 0.95
