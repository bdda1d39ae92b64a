"""Samples in one row: the losses and gradients of padded batches, whatever stands before them."""

from __future__ import annotations

import random

import pytest
import torch

from core_model.anomalygpt.losses import LossWeights
from core_model.build import build
from core_model.language.model import LENGTHS
from core_model.language.ragged import FINE, ROWS, Ragged, RaggedBatch, kernel_takes, longest_for, rows_for
from core_model.language.shapes_ahead import expected_lengths, expected_rows, step_for

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: attention over rows of samples")


def losses_and_gradients(model, batch) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    first = next(model.language.transformer.parameters())
    width, device = model.language.width, first.device
    picture = (torch.randn(len(batch), width, generator=generator) * 0.3).to(device).requires_grad_()
    prompts = (torch.randn(len(batch), 18, width, generator=generator) * 0.3).to(device).requires_grad_()
    losses = model.language.answer_loss(picture, prompts, batch, LossWeights())
    trained = [p for p in model.language.parameters() if p.requires_grad]
    return losses, *torch.autograd.grad(losses.sum(), [picture, prompts, *trained])


def spread(model) -> None:
    """Weights large enough that a token looks at what stands before it."""
    with torch.no_grad():
        for name, parameter in model.language.transformer.named_parameters():
            if parameter.dim() > 1:
                drawn = torch.empty(parameter.shape).normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
                parameter.copy_(drawn)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("overrides", [{}, {"prefix_on_gpu": True}, {"join_frozen": True}, {"lora": 2}], ids=str)
def test_losses_and_gradients_are_those_of_padded_batches(samples, overrides, checkpointing) -> None:
    model = build("tiny", seed=3, overrides=overrides)
    spread(model)
    model.set_activation_checkpointing(checkpointing)
    batch = model.collate(samples(5))
    model.language.form = "padded"
    wanted = losses_and_gradients(model, batch)
    model.language.form = "rows"
    if model.language.joined:
        assert model.language.transformer.join()
    for ours, theirs in zip(losses_and_gradients(model, batch), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.detach().abs().max()))


def test_a_row_and_its_places() -> None:
    lengths = torch.tensor([2, 4, 1])
    text = torch.tensor([0, 1, 4, 5, 6, 7, 8])  # of (3, 4) places
    form = RaggedBatch(lengths=lengths, frame=2, length=4, text=text)
    frames, texts = torch.arange(1.0, 7).view(3, 2, 1), torch.arange(11.0, 18)[:, None]
    row = form.row(frames, texts)[0, :, 0]
    assert row[:13].tolist() == [1, 2, 11, 12, 3, 4, 13, 14, 15, 16, 5, 6, 17]
    assert form.rows == ROWS
    assert not row[13:].any()
    assert form.starts.tolist() == [0, 4, 10, 13, ROWS]
    before = form.before(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 3, 0]))
    assert row[before].tolist() == [2, 11, 15, 6]


def test_positions_and_known_keys() -> None:
    ragged = Ragged(torch.tensor([0, 2, 5, 5], dtype=torch.int32), rows=5, longest=3, known=2)
    assert ragged.positions.tolist() == [2, 3, 2, 3, 4]
    keys = ragged.with_known(torch.arange(1.0, 6).view(5, 1, 1), torch.tensor([8.0, 9.0]).view(2, 1, 1))
    assert keys.flatten().tolist() == [8, 9, 1, 2, 8, 9, 3, 4, 5, 8, 9]  # the last sample is empty
    assert ragged._mask().int().tolist()[3] == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0]


def test_rows_are_of_few_lengths_and_hold_little_filling() -> None:
    for tokens in range(1, 20_000, 7):
        rows = rows_for(tokens)
        assert tokens <= rows <= tokens + max(ROWS, tokens / FINE)
        assert rows - tokens <= longest_for(1, rows)
    assert len({rows_for(tokens) for tokens in range(1000, 1500)}) <= 5


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
def test_the_shapes_to_come_are_foreseen(tiny, batch: int) -> None:
    """From 64 texts, those of 300 batches of others."""
    drawn = random.Random(batch)
    texts = [drawn.choice((21, 25, 33, 38, 52, 60)) + drawn.randrange(6) for _ in range(64)]
    rows, padded = (
        expected_rows(texts, batch=batch, frame=23),
        expected_lengths(texts, batch=batch, frame=30, step=LENGTHS),
    )
    assert len(rows) <= 16
    missed = 0
    for _ in range(300):
        lengths = [drawn.choice((21, 25, 33, 38, 52, 60)) + drawn.randrange(6) for _ in range(batch)]
        length = rows_for(sum(lengths) + 23 * batch)
        missed += (length, longest_for(23 + max(lengths), length)) not in rows
        missed += -(-(30 + max(lengths)) // LENGTHS) * LENGTHS not in padded
    assert missed <= 3


def test_padded_batches_of_any_texts_need_few_graphs() -> None:
    lengths = list(range(10, 500))
    step = step_for(lengths, batch=2, frame=30, least=LENGTHS, graphs=8)
    assert step == 64
    assert len(expected_lengths(lengths, batch=2, frame=30, step=step)) <= 8
    assert step_for([40, 50, 60], batch=2, frame=30, least=LENGTHS, graphs=8) == LENGTHS


def test_the_switches_reach_the_language_model() -> None:
    """Records of runs without them stay what they were."""
    names = {"pack_on_gpu": "packed_on_gpu", "prefix_on_gpu": "prefix_on_gpu", "join_frozen": "joined"}
    for name, attribute in names.items():
        for asked in (False, True):
            model = build("tiny", seed=3, overrides={name: asked})
            assert getattr(model.language, attribute) is asked
            assert (name in model.describe()["spec"]) is asked


def test_a_processor_has_no_such_kernel() -> None:
    assert not kernel_takes(64, torch.bfloat16, torch.device("cpu"))


@needs_gpu
@pytest.mark.parametrize("known", [0, 7])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_kernel_computes_what_the_mask_does(known: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    starts = torch.tensor([0, 40, 41, 150, 256, 256], dtype=torch.int32, device="cuda")
    assert kernel_takes(64, torch.bfloat16, starts.device)
    shape = {"device": "cuda", "dtype": torch.bfloat16}
    query = torch.randn(256, 4, 64, **shape, requires_grad=True)
    own = [torch.randn(256, kv_heads, 64, **shape, requires_grad=True) for _ in range(2)]
    before = [torch.randn(known, kv_heads, 64, **shape) for _ in range(2)]
    weights = torch.randn(256, 4, 64, **shape)

    def attended(by_kernel: bool) -> list[torch.Tensor]:
        ragged = Ragged(starts, rows=256, longest=128, known=known, by_kernel=by_kernel)
        whole = [ragged.with_known(part, first) for part, first in zip(own, before, strict=True)]
        out = ragged.attend(query, *whole)
        return [out, *torch.autograd.grad((out * weights).sum(), [query, *own])]

    for ours, theirs in zip(attended(True), attended(False), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=3e-2, atol=3e-2)


@needs_gpu
@pytest.mark.parametrize(
    "overrides", [{}, {"prefix_on_gpu": True}, {"prefix_on_gpu": True, "join_frozen": True}], ids=str
)
def test_rows_by_graphs_have_the_losses_of_padded_batches(samples, overrides) -> None:
    model = build("tiny", seed=3, overrides={"pack_on_gpu": True, **overrides})
    spread(model)
    model = model.to("cuda")
    model.set_frozen_dtype(torch.bfloat16)
    model.capture_ahead(samples(6), 4)
    ahead = model.language._graphed_rows.captures
    assert ahead
    assert model.describe()["graphs_captured_before"] == ahead + 1  # the encoder's
    batches = [model.collate(samples(8)[start : start + 4]).to("cuda") for start in (0, 4, 0)]
    model.language.form = "padded"
    wanted = [losses_and_gradients(model, batch) for batch in batches]
    model.language.form = ""
    replays = model.language._graphed_rows.replays
    for batch, theirs in zip(batches, wanted, strict=True):
        for ours, their in zip(losses_and_gradients(model, batch), theirs, strict=True):
            scale = float(their.detach().abs().max())
            torch.testing.assert_close(ours.float(), their.float(), rtol=5e-2, atol=5e-2 * scale)
    assert model.language._graphed_rows.replays == replays + 3
    assert model.language._graphed_rows.captures == ahead
