"""The language model's loss and generation against the plain way, sample by sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core_model.anomalygpt.losses import LossWeights
from core_model.language.dialogue_format import IGNORED

QUESTIONS = ["Is there any defect in this picture?", "Where?", "Say what you see here, in a few words.", "A defect?"]


def inputs(model, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    width = model.language.width
    return (
        torch.randn(count, width, generator=generator) * 0.3,
        torch.randn(count, 18, width, generator=generator) * 0.3,
    )


def test_assembled_in_the_papers_order(tiny) -> None:
    language, tokenizer = tiny.language, tiny.tokenizer
    picture, prompts = inputs(tiny, 1)
    ids = torch.tensor([tokenizer.encode("Where?")])
    row = language.assemble(picture, prompts, ids)[0]
    before = [tokenizer.bos_id, *tokenizer.encode("### Human: <Img>")]
    after = tokenizer.encode("</Img> ")
    table = language.transformer.embedding_table()
    expected = torch.cat((table[before], picture, table[after], prompts[0], table[ids[0]]))
    assert torch.equal(row, expected)


def test_answer_loss_equals_full_logits_sample_by_sample(tiny, samples) -> None:
    batch = tiny.collate(samples(5))
    picture, prompts = inputs(tiny, 5)
    losses = tiny.language.answer_loss(picture, prompts, batch, LossWeights())
    for row in range(5):
        length = int(batch.lengths[row])
        ids, labels = batch.token_ids[row : row + 1, :length], batch.labels[row, :length]
        embeddings = tiny.language.assemble(picture[row : row + 1], prompts[row : row + 1], ids)
        logits = tiny.language.transformer.logits(tiny.language.transformer(embeddings))[0]
        shifted = logits[embeddings.shape[1] - length - 1 : -1]
        expected = F.cross_entropy(shifted, labels, ignore_index=IGNORED)
        assert losses[row].item() == pytest.approx(expected.item(), rel=1e-5)


def test_constant_prefix_follows_the_weights(tiny, samples) -> None:
    batch = tiny.collate(samples(2))
    picture, prompts = inputs(tiny, 2)

    def loss() -> torch.Tensor:
        return tiny.language.answer_loss(picture, prompts, batch, LossWeights()).detach()

    first, prefix = loss(), tiny.language.constant_prefix()
    assert tiny.language.constant_prefix() is prefix
    sharpen(tiny)
    assert tiny.language.constant_prefix() is not prefix
    assert not torch.allclose(first, loss())
    tiny.language.transformer.to(torch.bfloat16)
    assert tiny.language.constant_prefix().keys[0].dtype == torch.bfloat16
    next(tiny.language.transformer.parameters()).requires_grad_(True)
    assert tiny.language.constant_prefix() is None


def test_gradient_behind_the_constant_prefix_is_that_of_the_whole_input(tiny, samples, monkeypatch) -> None:
    batch = tiny.collate(samples(3))
    sharpen(tiny)
    results = []
    for known in (True, False):
        if not known:
            monkeypatch.setattr(type(tiny.language), "constant_prefix", lambda self: None)
        picture, prompts = (t.requires_grad_() for t in inputs(tiny, 3))
        losses = tiny.language.answer_loss(picture, prompts, batch, LossWeights())
        losses.sum().backward()
        results.append((losses.detach(), picture.grad, prompts.grad))
    for with_prefix, whole in zip(*results, strict=True):
        torch.testing.assert_close(with_prefix, whole, rtol=1e-4, atol=1e-6)


def test_found_places_and_searched_places_agree(tiny, samples) -> None:
    from dataclasses import replace

    batch = tiny.collate(samples(3))
    picture, prompts = inputs(tiny, 3)
    given = tiny.language.answer_loss(picture, prompts, batch, LossWeights())
    searched = tiny.language.answer_loss(picture, prompts, replace(batch, extras={}), LossWeights())
    assert torch.equal(given, searched)


def test_verdict_and_class_weights(tiny, samples) -> None:
    batch = tiny.collate(samples(2))
    picture, prompts = inputs(tiny, 2)
    plain = tiny.language.answer_loss(picture, prompts, batch, LossWeights())
    doubled = tiny.language.answer_loss(picture, prompts, batch, LossWeights(defective_weight=2.0))
    torch.testing.assert_close(doubled / plain, torch.tensor([1.0, 2.0]))
    heavy = tiny.language.answer_loss(picture, prompts, batch, LossWeights(verdict_weight=1e6))
    first = [row.nonzero()[0].item() for row in (batch.labels != IGNORED)]
    embeddings = tiny.language.assemble(picture, prompts, batch.token_ids)
    logits = tiny.language.transformer.logits(tiny.language.transformer(embeddings))
    offset = embeddings.shape[1] - batch.token_ids.shape[1]
    for row, column in enumerate(first):
        expected = F.cross_entropy(logits[row, offset + column - 1], batch.labels[row, column])
        assert heavy[row].item() == pytest.approx(expected.item(), rel=1e-3)


def generate(model, questions: list[str], **options) -> list[str]:
    picture, prompts = inputs(model, len(questions))
    asked = [model.collator.encode_question(q) for q in questions]
    return model.language.generate(picture, prompts, asked, max_new_tokens=12, **options)


def sharpen(model) -> None:
    """Random tiny models repeat one byte; larger weights make the answers depend on everything before them."""
    model.language.transformer.initialize(torch.Generator().manual_seed(9), std=0.4)


def test_cache_changes_no_answer(tiny) -> None:
    sharpen(tiny)
    with_cache = generate(tiny, QUESTIONS)
    assert with_cache == generate(tiny, QUESTIONS, use_cache=False)
    assert len(set(with_cache)) == len(QUESTIONS)


def test_a_question_is_answered_alike_alone_and_in_a_batch(tiny) -> None:
    sharpen(tiny)
    together = generate(tiny, QUESTIONS)
    picture, prompts = inputs(tiny, len(QUESTIONS))
    for row, question in enumerate(QUESTIONS):
        asked = [tiny.collator.encode_question(question)]
        alone = tiny.language.generate(picture[row : row + 1], prompts[row : row + 1], asked, max_new_tokens=12)
        assert alone == [together[row]]


def test_sampling_is_reproducible_and_varied(tiny) -> None:
    first = generate(tiny, QUESTIONS, temperature=1.0, seed=1)
    assert first == generate(tiny, QUESTIONS, temperature=1.0, seed=1)
    assert first != generate(tiny, QUESTIONS, temperature=1.0, seed=2)
    sharpen(tiny)
    nucleus = generate(tiny, QUESTIONS, temperature=1.0, top_p=1e-6, seed=1)
    assert nucleus == generate(tiny, QUESTIONS)  # a nucleus of the likeliest token is greedy


def test_generation_stops_at_the_stop_text(tiny, monkeypatch) -> None:
    script = iter([tiny.tokenizer.encode(text) for text in ("No.\n###xx", "Yes!!\n###")])
    scripts = [list(next(script)) for _ in range(2)]
    steps = []

    def scripted(hidden):
        position = len(steps)
        steps.append(1)
        logits = torch.zeros(2, tiny.tokenizer.vocab)
        for row in range(2):
            logits[row, scripts[row][position]] = 1.0
        return logits

    monkeypatch.setattr(tiny.language.transformer, "logits", scripted)
    assert generate(tiny, QUESTIONS[:2]) == ["No.", "Yes!!"]
    assert len(steps) == 9  # up to the end of the longer answer, and no further


def test_sentence_vectors_ignore_padding(tiny) -> None:
    both = tiny.language.sentence_vectors(["a photo of a tile.", "x"])
    torch.testing.assert_close(tiny.language.sentence_vectors(["x"])[0], both[1], rtol=1e-5, atol=1e-6)
