"""The language model with a picture in its input: assembly, loss on answers, generation with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core_model.anomalygpt.losses import LossWeights, token_cross_entropy
from core_model.batch import Batch
from core_model.execution.cuda_graphs import GraphedPart
from core_model.execution.flops import Shape, Work, useful_shape
from core_model.execution.frozen import own_precision
from core_model.language.answering import Padded, choose
from core_model.language.dialogue_format import IGNORED, Collator
from core_model.language.keys_and_values import Prefix
from core_model.language.packing import Packing, text_places
from core_model.language.ragged import Ragged, RaggedBatch
from core_model.language.shapes_ahead import expected_lengths, expected_rows, step_for
from core_model.language.text_tokenizers import Tokenizer

LENGTHS = 16  # input lengths are rounded up to a multiple of this at least where each needs a CUDA graph of its own
PADDED_GRAPHS = 8  # and so far up that the lengths to come are no more than so many


class LanguageModel(nn.Module):
    """Wraps a causal transformer (`core_model.language.llama.Llama` or `core_model.language.huggingface.HubCausalLM`)
    and its tokenizer."""

    before_ids: Tensor
    after_ids: Tensor

    def __init__(self, transformer: Any, tokenizer: Tokenizer, collator: Collator) -> None:
        super().__init__()
        self.transformer: Any = transformer
        self.tokenizer = tokenizer
        self.collator = collator
        template = collator.template
        before = [tokenizer.bos_id, *tokenizer.encode(template.before_image)]
        self.register_buffer("before_ids", torch.tensor(before), persistent=False)
        self.register_buffer("after_ids", torch.tensor(tokenizer.encode(template.after_image)), persistent=False)
        self.stop_text = template.stop.strip()
        self._prefix: tuple[object, Prefix] | None = None
        self.cuda_graphs = True
        self.work = Work()
        self.packed_on_gpu = self.prefix_on_gpu = self.joined = False
        self.form = ""  # a form of `_form` that all batches are given, whatever the device (for tests)
        self.length_step = LENGTHS
        self._joined_at: tuple[object, ...] = ()
        self._graphed = GraphedPart(transformer, self._whole, gradient=True)
        self._graphed_rows = GraphedPart(transformer, self._row, gradient=True)

    @property
    def width(self) -> int:
        return self.transformer.config.width

    def assemble(self, picture: Tensor, prompts: Tensor, token_ids: Tensor, *, from_picture: bool = False) -> Tensor:
        """(B, L, width) input embeddings: the `frame`, then token_ids (B, T). from_picture: as in `frame`."""
        text = self.transformer.embed(token_ids)
        return torch.cat((self.frame(picture, prompts, from_picture=from_picture), text), dim=1)

    def frame(self, picture: Tensor, prompts: Tensor, *, from_picture: bool = False) -> Tensor:
        """(B, F, width) embeddings of what stands before the text: BOS, the text before the picture, the picture, the
        text after it, the prompt vectors.

        Args:
            picture: (B, width). prompts: (B, P, width).
            from_picture: leave out what stands before the picture: its keys and values are known (`constant_prefix`).
        """
        batch = len(picture)
        after = self.transformer.embed(self.after_ids).expand(batch, -1, -1)
        parts = [picture[:, None], after, prompts]
        if not from_picture:
            parts.insert(0, self.transformer.embed(self.before_ids).expand(batch, -1, -1))
        return torch.cat([part.to(after.dtype) for part in parts], dim=1)

    def constant_prefix(self) -> Prefix | None:
        """Keys and values of BOS and the text before the picture: the same for every sample and step as long as the
        transformer is frozen. None where it is trained (LoRA) or cannot use them."""
        if not hasattr(self.transformer, "prefix"):
            return None
        weights = tuple(self.transformer.parameters())
        if any(weight.requires_grad for weight in weights):
            return None
        # a moved, recast or newly loaded transformer has other tensors, or the same with a higher version
        first = weights[0]
        state = (id(first), first.device, first.dtype, sum(weight._version for weight in weights))
        if self._prefix is None or self._prefix[0] != state:
            self._prefix = (state, self.transformer.prefix(self.before_ids))
        return self._prefix[1]

    def answer_loss(self, picture: Tensor, prompts: Tensor, batch: Batch, weights: LossWeights) -> Tensor:
        """Cross-entropy (B,): the mean over each sample's answer tokens. Logits are computed at answer places only."""
        rows, columns = answer_places(batch)
        with own_precision(self.transformer):
            wanted = self._before_answers(picture, prompts, batch, rows, columns)
            logits = self.transformer.logits(wanted)
        labels = batch.labels[rows, columns]
        token_weights = None
        if weights.verdict_weight != 1.0:
            starts = (columns == 0) | (batch.labels[rows, (columns - 1).clamp_min(0)] == IGNORED)
            token_weights = torch.where(starts, weights.verdict_weight, 1.0)
        losses = token_cross_entropy(logits, labels, rows, len(batch), token_weights)
        if weights.defective_weight != 1.0:
            losses = losses * torch.where(batch.is_defective, weights.defective_weight, 1.0)
        return losses

    def _before_answers(self, picture: Tensor, prompts: Tensor, batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
        """Last hidden states (A, width) of the tokens directly before the answer tokens at `rows`, `columns` (A,).

        Attention is causal, so padding on the right needs no mask, and no computing where the batch has another form
        (`_form`); what stands before the picture is computed once and for all where the form allows it.
        """
        if picture.is_cuda:
            self._join()
        form = self._form(batch)
        if form == "rows":
            return self._in_one_row(picture, prompts, batch, rows, columns)
        # On a GPU, attention with a prefix would need a mask, which the fused kernels want to do without.
        prefix = None if picture.is_cuda else self.constant_prefix()
        answers = len(rows)
        if form == "padded":
            embeddings = self.assemble(picture, prompts, batch.token_ids, from_picture=prefix is not None)
            hidden = self._hidden(embeddings, prefix)
            self._count_padded(batch, prompts, hidden.shape[0] * hidden.shape[1], hidden.shape[1], prefix, answers)
            offset = embeddings.shape[1] - batch.token_ids.shape[1]
            return hidden[rows, offset + columns - 1]
        places = self._text_places(batch)
        frame = self.frame(picture, prompts, from_picture=prefix is not None)
        count, longest = batch.token_ids.shape
        packing = Packing(batch=count, frame=frame.shape[1], length=longest, text=places)
        text = self.transformer.embed(batch.token_ids.flatten()[places])
        embeddings = torch.cat((frame.flatten(0, 1), text))[None]
        hidden = self.transformer(embeddings, prefix=prefix, packing=packing)
        self._count_padded(batch, prompts, hidden.shape[1], packing.length, prefix, answers)
        return hidden[0, packing.before(rows, columns, batch.lengths)]

    def _in_one_row(self, picture: Tensor, prompts: Tensor, batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
        """`_before_answers` of a batch as one row of samples (`core_model.language.ragged`)."""
        known = self.constant_prefix() if self.prefix_on_gpu else None
        frame = self.frame(picture, prompts, from_picture=known is not None)
        places = self._text_places(batch)
        form = RaggedBatch(lengths=batch.lengths, frame=frame.shape[1], length=batch.token_ids.shape[1], text=places)
        row = form.row(frame, self.transformer.embed(batch.token_ids.flatten()[places]))
        graphed = self.cuda_graphs and row.is_cuda and self.transformer.graphable
        run = self._graphed_rows if graphed else self._row
        hidden = run(row, form.starts, form.longest, known is not None)[0]
        lengths = [frame.shape[1] + length for length in _host_lengths(batch)]
        lengths.append(form.rows - form.tokens)  # the filling
        before = known.length if known is not None else 0
        pairs = sum(length * (before + length) for length in lengths)
        self._count(batch, prompts, Shape(samples=len(batch), rows=form.rows, pairs=pairs, logits=len(rows)))
        return hidden[0, form.before(rows, columns)]

    def _join(self) -> None:
        """Joins the transformer's frozen projections where that is asked for, anew where its weights were replaced."""
        if not (self.joined and hasattr(self.transformer, "join")):
            return
        first = next(self.transformer.parameters())
        state = (first.data_ptr(), first.dtype)
        if state != self._joined_at:
            self._joined_at = state
            if self.transformer.join():
                self._graphed.clear()
                self._graphed_rows.clear()

    @property
    def captures(self) -> int:
        """CUDA graphs captured so far."""
        return self._graphed.captures + self._graphed_rows.captures

    def capture_ahead(self, lengths: Sequence[int], *, batch: int, prompts: int) -> None:
        """Captures the CUDA graphs that batches will need, so that no training step has to wait for it.

        Args:
            lengths: of texts like those to come.
            batch: samples of a forward pass. prompts: vectors of the prompt learner for each.
        """
        first = next(self.transformer.parameters())
        if not (self.cuda_graphs and first.is_cuda and getattr(self.transformer, "graphable", False)):
            return
        self._join()
        with own_precision(self.transformer):
            in_rows = self.packed_on_gpu and self.transformer.takes_rows
            known = self.constant_prefix() if in_rows and self.prefix_on_gpu else None
            frame = 1 + len(self.after_ids) + prompts + (0 if known is not None else len(self.before_ids))
            shape: dict[str, Any] = {"dtype": first.dtype, "device": first.device, "requires_grad": True}
            if not in_rows:
                self.length_step = step_for(lengths, batch=batch, frame=frame, least=LENGTHS, graphs=PADDED_GRAPHS)
                padded = expected_lengths(lengths, batch=batch, frame=frame, step=self.length_step)
                self._graphed.capture_all([(torch.zeros(batch, length, self.width, **shape),) for length in padded])
                return
            calls: list[tuple[Any, ...]] = []
            for rows, longest in expected_rows(lengths, batch=batch, frame=frame):
                starts = torch.arange(batch + 2, dtype=torch.int32, device=first.device) * (rows // (batch + 1))
                starts[-1] = rows
                row = torch.zeros(1, rows, self.width, **shape)
                calls.append((row, starts, longest, known is not None))
            self._graphed_rows.capture_all(calls)

    def _row(self, embeddings: Tensor, starts: Tensor, longest: int, behind_prefix: bool) -> tuple[Tensor, ...]:
        prefix = self.constant_prefix() if behind_prefix else None
        known = prefix.length if prefix is not None else 0
        by_kernel = self.transformer.takes_rows
        ragged = Ragged(starts, rows=embeddings.shape[1], longest=longest, known=known, by_kernel=by_kernel)
        return (self.transformer(embeddings, prefix=prefix, packing=ragged),)

    def _count_padded(
        self, batch: Batch, prompts: Tensor, computed: int, length: int, prefix: Prefix | None, logits: int
    ) -> None:
        """Counts a batch whose attention is padded. computed: positions that ran through the layers. length: of a
        sample in attention, with its padding."""
        count = len(batch)
        seen = length + (prefix.length if prefix is not None else 0)
        self._count(batch, prompts, Shape(samples=count, rows=computed, pairs=count * length * seen, logits=logits))

    def _count(self, batch: Batch, prompts: Tensor, done: Shape) -> None:
        """Adds a batch to `work`. prompts: (B, P, width)."""
        self.work.done.add(done)
        frame = 1 + len(self.after_ids) + prompts.shape[1]
        known = len(self.before_ids)
        self.work.useful.add(useful_shape(_host_lengths(batch), done.logits, frame=frame, known=known))

    def _form(self, batch: Batch) -> str:
        """How the batch is computed: ``rows`` (`core_model.language.ragged`), ``packed``
        (`core_model.language.packing`) or ``padded``: it has no padding, or the transformer, compiled blocks or CUDA
        graphs want one shape for many batches."""
        if self.form:
            return self.form
        if not getattr(self.transformer, "packs", False):
            return "padded"
        if batch.token_ids.is_cuda:
            return "rows" if self.packed_on_gpu and self.transformer.takes_rows else "padded"
        if self.transformer.compiled:
            return "padded"
        return "packed" if len(self._text_places(batch)) < batch.token_ids.numel() else "padded"

    def _text_places(self, batch: Batch) -> Tensor:
        """Places of the true text tokens (`core_model.language.packing`)."""
        places = batch.extras.get("text_places")
        return text_places(batch.lengths, batch.token_ids.shape[1]) if places is None else places

    def _whole(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        return (self.transformer(embeddings),)

    def _hidden(self, embeddings: Tensor, prefix: Prefix | None) -> Tensor:
        """Last hidden states of (B, L, width) embeddings, by CUDA graphs where they can be used. There the length is
        padded to a multiple of `length_step`, so that few graphs serve all batches; causal places do not see that."""
        if prefix is not None:
            return self.transformer(embeddings, prefix=prefix)
        if not (self.cuda_graphs and embeddings.is_cuda and getattr(self.transformer, "graphable", False)):
            return self.transformer(embeddings)
        padded = nn.functional.pad(embeddings, (0, 0, 0, -embeddings.shape[1] % self.length_step))
        return self._graphed(padded)[0]

    @torch.no_grad()
    def sentence_vectors(self, texts: list[str]) -> Tensor:
        """(len, width): mean of the last hidden states over each text's tokens (BOS left out)."""
        device = self.before_ids.device
        encoded = [self.tokenizer.encode(text) for text in texts]
        longest = max(len(ids) for ids in encoded)
        ids = torch.full((len(texts), 1 + longest), self.tokenizer.pad_id, dtype=torch.int64)
        ids[:, 0] = self.tokenizer.bos_id
        for row, tokens in enumerate(encoded):
            ids[row, 1 : 1 + len(tokens)] = torch.tensor(tokens)
        lengths = torch.tensor([len(tokens) for tokens in encoded])
        inside = (torch.arange(longest)[None] < lengths[:, None]).to(device)[..., None]
        with own_precision(self.transformer):
            hidden = self.transformer(self.transformer.embed(ids.to(device)))[:, 1:].float()
        return (hidden * inside).sum(dim=1) / lengths.to(device)[:, None]

    def _asked(self, picture: Tensor, prompts: Tensor, questions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Input embeddings (B, L, width) of B questions, padded on the right, and each question's length (B,) on the
        host."""
        lengths = torch.tensor([len(ids) for ids in questions])
        ids = torch.full((len(questions), int(lengths.max())), self.tokenizer.pad_id, dtype=torch.int64)
        for row, tokens in enumerate(questions):
            ids[row, : len(tokens)] = torch.tensor(list(tokens))
        return self.assemble(picture, prompts, ids.to(picture.device)), lengths

    @torch.no_grad()
    def yes_probability(self, picture: Tensor, prompts: Tensor, questions: Sequence[Sequence[int]]) -> Tensor:
        """(B,) fp32 in [0, 1]: how probable "Yes" is beside "No" as the answer's first word.

        The greedy answer says Yes where this is above one half (unless another word beats both); the number behind the
        word makes a ranking of it, and a threshold that can be moved.
        """
        yes, no = (self.tokenizer.encode(self.collator.template.answer_text(word)) for word in ("Yes", "No"))
        shared = next((place for place, pair in enumerate(zip(yes, no, strict=False)) if pair[0] != pair[1]), 0)
        questions = [[*ids, *yes[:shared]] for ids in questions]  # e.g. a token for the space before either word
        embeddings, lengths = self._asked(picture, prompts, questions)
        ends = (embeddings.shape[1] - int(lengths.max()) + lengths).to(picture.device)
        with own_precision(self.transformer):
            hidden = self.transformer(embeddings)
            logits = self.transformer.logits(hidden[torch.arange(len(ends), device=picture.device), ends - 1]).float()
        return torch.sigmoid(logits[:, yes[shared]] - logits[:, no[shared]])

    @torch.no_grad()
    def generate(
        self,
        picture: Tensor,
        prompts: Tensor,
        questions: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        use_cache: bool = True,
    ) -> list[str]:
        """Answers to B questions (token ids up to the answer's place), greedy where temperature is 0.

        Questions of different lengths share the batch: they are padded on the right, the padding is hidden from later
        tokens by a mask, and positions continue behind each question's own end. use_cache=False recomputes everything
        at each token (for tests).
        """
        device = picture.device
        embeddings, lengths = self._asked(picture, prompts, questions)
        padded = Padded.of(embeddings.shape[1], lengths, device)
        draw = torch.Generator(device="cpu").manual_seed(seed)
        cache = None
        if use_cache:
            cache = self.transformer.new_cache(len(questions), padded.length + max_new_tokens)
        answers: list[list[int]] = [[] for _ in questions]
        open_rows = set(range(len(questions)))
        with own_precision(self.transformer):
            hidden = self.transformer(embeddings, cache=cache)
            last = hidden[torch.arange(len(questions), device=device), padded.ends - 1]
            for step in range(max_new_tokens):
                chosen = choose(self.transformer.logits(last).float(), temperature, top_p, draw)
                for row, token in enumerate(chosen.tolist()):
                    if row in open_rows:
                        answers[row].append(token)
                        if token == self.tokenizer.eos_id or self._ended(answers[row]):
                            open_rows.discard(row)
                if not open_rows or step + 1 == max_new_tokens:
                    break
                new = self.transformer.embed(chosen.to(device))[:, None]
                if cache is not None:
                    last = self.transformer(new, cache=cache, **padded.next(step))[:, -1]
                else:
                    embeddings = torch.cat((embeddings, new), dim=1)
                    last = self.transformer(embeddings, **padded.all(step))[:, -1]
        return [self._text(ids) for ids in answers]

    def _ended(self, ids: list[int]) -> bool:
        return bool(self.stop_text) and self.stop_text in self.tokenizer.decode(ids[-8:])

    def _text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids)
        return (text.split(self.stop_text)[0] if self.stop_text else text).strip()


def answer_places(batch: Batch) -> tuple[Tensor, Tensor]:
    """Rows and columns (M,) of the answer tokens. The collator has found them on the host, so that a training step
    needs no synchronization with the device; other batches are searched here."""
    if "answer_rows" in batch.extras:
        return batch.extras["answer_rows"], batch.extras["answer_columns"]
    rows, columns = torch.nonzero(batch.labels != IGNORED, as_tuple=True)
    return rows, columns


def _host_lengths(batch: Batch) -> Sequence[int]:
    """Lengths of the texts, without asking the device where the collator has noted them."""
    lengths = batch.extras.get("host_lengths")
    return batch.lengths.tolist() if lengths is None else lengths
