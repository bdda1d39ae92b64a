"""How a conversation about a picture becomes tokens (PandaGPT's format), and samples become a `Batch`.

The model's input is::

    BOS "### Human: <Img>" IMAGE "</Img> " 9+9 PROMPT VECTORS | question " ### Assistant:" answer "\\n###" ...

Everything left of the bar is put in front by `core_model.language.model`; everything right of it is made here, once a
sample, in the data-loading worker. Segments are tokenized one by one, so that training and generation see the same
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from core_model.batch import Batch, Sample
from core_model.errors import ModelError
from core_model.language.packing import text_places
from core_model.language.text_tokenizers import Tokenizer

IGNORED = -100  # label of a token without loss
INSTRUCTION = "instruction"  # Sample.kind of a general conversation: it has no defect mask, so no loss on the map


@dataclass(frozen=True, kw_only=True)
class DialogueFormat:
    """The fixed texts around picture, questions and answers. stop ends an answer and is learned with it."""

    before_image: str = "### Human: <Img>"
    after_image: str = "</Img> "
    before_answer: str = "\n### Assistant:"
    before_next_question: str = " Human: "
    stop: str = "\n###"

    def question_text(self, question: str, *, first: bool) -> str:
        return ("" if first else self.before_next_question) + question + self.before_answer

    def answer_text(self, answer: str) -> str:
        return f" {answer}{self.stop}"


@dataclass(kw_only=True)
class Collator:
    """Samples to a `Batch`. Callable, picklable, free of the model: it works in data-loading workers.

    The batch does not carry the samples along (their pictures would travel twice). extras: ``answer_rows`` and
    ``answer_columns``, the places of answer tokens, found on the host so that a training step needs no synchronization
    with the device; ``text_places``, those of all tokens (`core_model.language.packing`);
    ``has_mask`` (B,) where some samples are general conversations.

    max_tokens: longest conversation; longer ones are cut on the right (a turn's answer may lose its end).
    """

    tokenizer: Tokenizer
    template: DialogueFormat = field(default_factory=DialogueFormat)
    max_tokens: int = 512
    _known: dict[tuple[tuple[str, str], ...], tuple[list[int], list[int]]] = field(default_factory=dict, repr=False)

    def encode_turns(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Token ids and labels of a whole conversation; the labels are IGNORED outside the answers."""
        key = tuple(turns)
        if key in self._known:
            return self._known[key]
        ids: list[int] = []
        labels: list[int] = []
        for index, (question, answer) in enumerate(turns):
            asked = self.tokenizer.encode(self.template.question_text(question, first=index == 0))
            answered = self.tokenizer.encode(self.template.answer_text(answer))
            ids += asked + answered
            labels += [IGNORED] * len(asked) + answered
        result = ids[: self.max_tokens], labels[: self.max_tokens]
        if len(self._known) < 10_000:  # conversations come from few templates; keep them, but not without limit
            self._known[key] = result
        return result

    def encode_question(self, question: str, history: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Token ids up to the place where the answer to `question` starts."""
        ids, _ = self.encode_turns(history)
        return list(ids) + self.tokenizer.encode(self.template.question_text(question, first=not history))

    def encode_opening(self, text: str) -> list[int]:
        """Token ids of an answer's beginning, to follow those of its question."""
        return self.tokenizer.encode(self.template.answer_text(text).removesuffix(self.template.stop))

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        if not samples:
            raise ModelError("a batch of no samples: use a smaller world size or more data")
        encoded = [self.encode_turns(sample.turns) for sample in samples]
        longest = max(len(ids) for ids, _ in encoded)
        token_ids = torch.full((len(samples), longest), self.tokenizer.pad_id, dtype=torch.int64)
        labels = torch.full((len(samples), longest), IGNORED, dtype=torch.int64)
        for row, (ids, wanted) in enumerate(encoded):
            token_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.tensor(wanted)
        rows, columns = torch.nonzero(labels != IGNORED, as_tuple=True)
        lengths = [len(ids) for ids, _ in encoded]
        # host_lengths: for counting FLOPs, without asking the device
        extras: dict[str, Any] = {"answer_rows": rows, "answer_columns": columns, "host_lengths": lengths}
        extras["text_places"] = text_places(torch.tensor(lengths), longest)
        if any(sample.kind == INSTRUCTION for sample in samples):
            extras["has_mask"] = torch.tensor([float(sample.kind != INSTRUCTION) for sample in samples])
        return Batch(
            ids=tuple(sample.id for sample in samples),
            categories=tuple(sample.category for sample in samples),
            images=torch.stack([sample.image for sample in samples]),
            masks=torch.stack([sample.mask for sample in samples]),
            is_defective=torch.tensor([sample.is_defective for sample in samples]),
            token_ids=token_ids,
            labels=labels,
            lengths=torch.tensor(lengths),
            extras=extras,
        )


def continued(opening: str, rest: str) -> str:
    """An answer from its opening and what was generated behind it, whose leading space is lost."""
    return opening + ("" if not rest or rest[0] in ".,;:!?" else " ") + rest
