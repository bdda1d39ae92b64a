from __future__ import annotations

import pickle

import pytest
import torch

from core_model.errors import ModelError
from core_model.language.dialogue_format import IGNORED, Collator, DialogueFormat
from core_model.language.text_tokenizers import ByteTokenizer, HashTokenizer

TURNS = (("Is it damaged?", "Yes, at the top."), ("Where?", "At the top."))


@pytest.fixture
def collator() -> Collator:
    return Collator(tokenizer=ByteTokenizer())


def test_loss_is_on_answers_and_their_stop_only(collator: Collator) -> None:
    ids, labels = collator.encode_turns(TURNS)
    text = ByteTokenizer().decode(ids)
    assert text == (
        "Is it damaged?\n### Assistant: Yes, at the top.\n### Human: Where?\n### Assistant: At the top.\n###"
    )
    learned = ByteTokenizer().decode([label for label in labels if label != IGNORED])
    assert learned == " Yes, at the top.\n### At the top.\n###"
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))


def test_generation_starts_from_the_tokens_of_training(collator: Collator) -> None:
    trained, _ = collator.encode_turns(TURNS)
    asked = collator.encode_question("Where?", history=TURNS[:1])
    assert trained[: len(asked)] == asked


def test_batch_is_padded_on_the_right_and_knows_the_answer_places(collator: Collator, samples) -> None:
    batch = collator(samples(4))
    assert batch.token_ids.shape == batch.labels.shape
    for row, length in enumerate(batch.lengths.tolist()):
        assert (batch.token_ids[row, length:] == ByteTokenizer.pad_id).all()
        assert (batch.labels[row, length:] == IGNORED).all()
    rows, columns = batch.extras["answer_rows"], batch.extras["answer_columns"]
    assert (batch.labels[rows, columns] != IGNORED).all()
    assert len(rows) == (batch.labels != IGNORED).sum()
    assert "has_mask" not in batch.extras


def test_instructions_are_marked_as_without_mask(collator: Collator, samples) -> None:
    batch = collator([*samples(1), *samples(1, kind="instruction")])
    assert batch.extras["has_mask"].tolist() == [1.0, 0.0]


def test_long_conversations_are_cut(samples) -> None:
    batch = Collator(tokenizer=ByteTokenizer(), max_tokens=20)(samples(2))
    assert batch.token_ids.shape[1] == 20


def test_batches_move_with_their_places(collator: Collator, samples) -> None:
    moved = collator(samples(2)).to("meta")
    assert moved.images.is_meta
    assert moved.extras["answer_rows"].is_meta


def test_collator_travels_to_loader_workers(collator: Collator, samples) -> None:
    again = pickle.loads(pickle.dumps(collator))
    assert torch.equal(again(samples(2)).token_ids, collator(samples(2)).token_ids)


def test_no_samples_is_an_error(collator: Collator) -> None:
    with pytest.raises(ModelError, match="no samples"):
        collator([])


def test_bytes_and_hashes_round_trip() -> None:
    text = "Yes, Größe 12 ok.\n###"
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text
    hashed = HashTokenizer(5000)
    ids = hashed.encode(text)
    assert hashed.decode(ids) == text
    assert all(3 <= token < 5000 for token in ids)
    assert len(hashed.encode("Is there any defect in this picture?")) < 15


def test_template_may_change() -> None:
    collator = Collator(tokenizer=ByteTokenizer(), template=DialogueFormat(stop="<end>", before_answer=" A:"))
    assert ByteTokenizer().decode(collator.encode_turns(TURNS[:1])[0]) == "Is it damaged? A: Yes, at the top.<end>"
