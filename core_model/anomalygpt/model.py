"""AnomalyGPT: picture -> frozen encoder -> image decoder -> anomaly map -> prompt learner -> frozen language model.

Reads top to bottom as the model works; each part has its own file. The engines see an ordinary module:
``forward(batch)`` returns the losses, the trainable parameters are those that require a gradient.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core_model.anomalygpt.decoder import ImageDecoder, mean_map, to_image
from core_model.anomalygpt.losses import LossWeights, combined_focal, dice, focal
from core_model.anomalygpt.memory_bank import MemoryBank
from core_model.anomalygpt.prompt_learner import PromptLearner
from core_model.anomalygpt.scoring import score
from core_model.anomalygpt.text_features import TextFeatures
from core_model.batch import Batch, Sample
from core_model.errors import ModelError
from core_model.execution.compile import compile_blocks
from core_model.execution.flops import Shape, Work, anomalygpt_flops
from core_model.language.dialogue_format import continued
from core_model.language.model import LanguageModel
from core_model.vision.encoder import Encoder, Features

TRAINED_PARTS = ("decoder", "prompt_learner", "projection")


class AnomalyGPT(nn.Module):
    """The whole model. Built by `core_model.build.build`.

    Args:
        encoder, language: frozen (but for LoRA, if any).
        decoder, prompt_learner, projection: trained.
        text: features of "normal" and "abnormal" a category, None where the decoder learns its own.
        image_size: side of the pictures, pixels.
        detach_map: the answer's loss does not reach the decoder through the map.
    """

    supports_maps = True

    def __init__(
        self,
        *,
        encoder: Encoder,
        decoder: ImageDecoder,
        prompt_learner: PromptLearner,
        projection: nn.Module,
        language: LanguageModel,
        text: TextFeatures | None,
        image_size: int,
        loss_weights: LossWeights | None = None,
        detach_map: bool = False,
        scoring: str = "top1",
        description: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prompt_learner = prompt_learner
        self.projection = projection
        self.language = language
        self.text = text
        self.image_size = image_size
        self.loss_weights = loss_weights or LossWeights()
        self.detach_map = detach_map
        self.scoring = scoring
        self.description = description or {}
        self._last: tuple[Any, int, Features] | None = None
        self._graphs_mib = 0  # device memory that graphs captured ahead keep

    # -- data ----------------------------------------------------------------------------------------------------------
    @property
    def tokenizer(self) -> Any:
        return self.language.tokenizer

    @property
    def collator(self) -> Any:
        """Samples to a batch, without a reference to the model: give it to data-loading workers."""
        return self.language.collator

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return self.language.collator(samples)

    # -- training ------------------------------------------------------------------------------------------------------
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """loss, ce, focal, dice: 0-dim fp32, each the mean over the batch's samples of a per-sample loss.

        Map losses are summed over the tapped blocks (the paper's sum); a sample of kind "instruction" (a general
        conversation without a defect mask) has only the answer's loss.
        """
        features = self.encoder(batch.images, one_at_a_time=True)
        odds = to_image(self._odds(features, batch.categories), batch.images.shape[-1])
        weights = self.loss_weights
        map_loss = combined_focal if weights.map_loss == "combined_focal" else _plain_focal(weights.gamma)
        focal_losses = map_loss(odds, batch.masks).sum(dim=1)
        dice_losses = dice(odds, batch.masks).sum(dim=1)
        has_mask = batch.extras.get("has_mask")
        if has_mask is not None:
            focal_losses, dice_losses = focal_losses * has_mask, dice_losses * has_mask
        maps = mean_map(odds)
        picture, prompts = self._prompts(features, maps.detach() if self.detach_map else maps)
        answer_losses = self.language.answer_loss(picture, prompts, batch, weights)
        parts = {"ce": answer_losses.mean(), "focal": focal_losses.mean(), "dice": dice_losses.mean()}
        total = weights.cross_entropy * parts["ce"] + weights.focal * parts["focal"] + weights.dice * parts["dice"]
        return {"loss": total, **{name: value.detach() for name, value in parts.items()}}

    def _odds(self, features: Features, categories: Sequence[str]) -> list[Tensor]:
        text = self.text(categories, features.pooled.device) if self.text is not None else None
        return self.decoder(features.tokens, features.grids, text)

    def _prompts(self, features: Features, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Picture vector (B, width) and prompt vectors (B, 18, width); features may be in lower precision than the
        trained parts, autocast or this cast brings them together."""
        pooled = features.pooled.to(next(self.projection.parameters()).dtype)
        return self.projection(pooled), self.prompt_learner(maps.to(self.prompt_learner.base_prompts.dtype))

    def prepare_text(self, categories: Iterable[str]) -> None:
        """Encodes the prompt ensembles of these categories now. Needed before training where the engine shards the
        frozen weights (ZeRO-3, FSDP): there all ranks must encode the same categories at the same time."""
        if self.text is not None:
            self.text(sorted(set(categories)), self.encoder.mean.device)

    def capture_ahead(self, samples: Sequence[Sample], batch: int) -> None:
        """Captures the CUDA graphs that training will need, before its first step. Nothing on a CPU.

        Args:
            samples: some of those to come: their pictures' size and their texts' lengths count.
            batch: samples of a forward pass.
        """
        device = self.encoder.mean.device
        if device.type != "cuda":
            return
        before = torch.cuda.memory_reserved(device)
        self.encoder.capture_ahead(samples[0].image.to(device).expand(batch, -1, -1, -1))
        lengths = self.collate(samples).extras["host_lengths"]
        self.language.capture_ahead(lengths, batch=batch, prompts=self.prompt_learner.prompts)
        torch.cuda.empty_cache()
        if self.captures:
            self._graphs_mib = round((torch.cuda.memory_reserved(device) - before) / 2**20)

    # -- detecting -----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """The frozen encoder's look at pictures (B, 3, S, S), uint8 or in [0, 1]. The last ones are kept: asking for
        maps and answers of the same tensor runs the encoder once."""
        if self._last is not None:
            known, version, features = self._last
            if known() is images and version == images._version:
                return features
        features = self.encoder(images)
        self._last = (weakref.ref(images), images._version, features)
        return features

    @torch.no_grad()
    def anomaly_maps(
        self,
        images: Tensor,
        categories: Sequence[str],
        memory: MemoryBank | None = None,
        *,
        features: Features | None = None,
    ) -> Tensor:
        """(B, S, S) fp32, larger = more anomalous. Without memory: the decoder's, in [0, 1].

        Args:
            memory: good pictures; its own options say whether its map stands alone or is added to the decoder's.
        """
        side = images.shape[-1]
        features = features if features is not None else self.features(images)
        if memory is not None and not memory.uses_decoder:
            return memory.maps(features, categories, side)
        maps = self._decoder_maps(features, categories, side)
        if memory is None:
            return maps
        return memory.combine(memory.maps(features, categories, side), maps, categories)

    def _decoder_maps(self, features: Features, categories: Sequence[str], side: int) -> Tensor:
        """The decoder's maps (B, side, side) in [0, 1], in evaluation mode (dropout off, batch statistics not used).
        The mode is left as it was found."""
        was_training = self.decoder.training
        self.decoder.eval()
        try:
            return mean_map(to_image(self._odds(features, categories), side))
        finally:
            self.decoder.train(was_training)

    def scores(self, maps: Tensor, rule: str = "") -> Tensor:
        """(B,) one score a picture from (B, S, S) maps; rules in `core_model.anomalygpt.scoring`."""
        return score(maps, rule or self.scoring)

    # -- talking -------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def answer(
        self,
        images: Tensor,
        categories: Sequence[str],
        questions: Sequence[str],
        *,
        histories: Sequence[Sequence[tuple[str, str]]] = (),
        maps: Tensor | None = None,
        features: Features | None = None,
        openings: Sequence[str] = (),
        max_new_tokens: int = 48,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        use_cache: bool = True,
    ) -> list[str]:
        """Answers to one question a picture.

        Args:
            histories: earlier (question, answer) turns a picture.
            maps: (B, S, S) probabilities that the prompt learner reads instead of the decoder's (few-shot use).
            temperature: 0 = greedy.
            features: of these pictures, if they are known already.
            openings: the beginning of each answer, such as "No, there is no defect"; the language model goes on from
                there.
        """
        if not len(images) == len(categories) == len(questions):
            counts = f"{len(images)} pictures, {len(categories)} categories, {len(questions)} questions"
            raise ModelError(f"{counts}: give one of each")
        features = features if features is not None else self.features(images)
        if maps is None:
            maps = self._decoder_maps(features, categories, images.shape[-1])
        picture, prompts = self._prompts(features, maps)
        histories = histories or [()] * len(questions)
        asked = [self.collator.encode_question(q, h) for q, h in zip(questions, histories, strict=True)]
        if openings:
            begun = [self.collator.encode_opening(text) for text in openings]
            asked = [ids + start for ids, start in zip(asked, begun, strict=True)]
        answers = self.language.generate(
            picture,
            prompts,
            asked,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            use_cache=use_cache,
        )
        return [continued(*pair) for pair in zip(openings, answers, strict=True)] if openings else answers

    @torch.no_grad()
    def yes_probability(
        self,
        images: Tensor,
        categories: Sequence[str],
        questions: Sequence[str],
        *,
        maps: Tensor | None = None,
        features: Features | None = None,
    ) -> Tensor:
        """(B,) in [0, 1]: the probability of Yes beside No in the answer to one question a picture; options as those
        of `answer`."""
        features = features if features is not None else self.features(images)
        if maps is None:
            maps = self._decoder_maps(features, categories, images.shape[-1])
        picture, prompts = self._prompts(features, maps)
        return self.language.yes_probability(picture, prompts, [self.collator.encode_question(q) for q in questions])

    def chat(self, image: Tensor, category: str, **options: Any) -> Conversation:
        """A conversation about one picture (3, S, S); options are those of `answer`."""
        return Conversation(self, image, category, options)

    # -- facts ---------------------------------------------------------------------------------------------------------
    def trainable_state(self) -> dict[str, Tensor]:
        """Everything that training changes, by name: trainable parameters, and the running statistics that the
        BatchNorm variant keeps."""
        state = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        for part in TRAINED_PARTS:
            for name, buffer in getattr(self, part).named_buffers(prefix=part):
                state[name] = buffer.detach()
        return state

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """The reverse of `trainable_state`; ModelError where names or shapes differ."""
        own = self.trainable_state()
        for name in sorted(set(own) | set(state)):
            if name not in own or name not in state or own[name].shape != state[name].shape:
                here = tuple(own[name].shape) if name in own else "absent"
                there = tuple(state[name].shape) if name in state else "absent"
                raise ModelError(
                    f"weights do not fit: {name} is {there} in the file and {here} in the model; use the preset it was "
                    "trained with"
                )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def frozen_parameters(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.named_parameters() if not p.requires_grad}

    def set_frozen_dtype(self, dtype: torch.dtype) -> None:
        """Stores the frozen parameters in `dtype` (bf16 or fp16: half the memory, and no cast in every step)."""
        for module in (self.encoder.trunk, self.language.transformer):
            for parameter in module.parameters():
                if not parameter.requires_grad and parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtype)
        self._last = None
        if self.text is not None:
            self.text.clear()

    def compile_blocks(self) -> int:
        """`core_model.execution.compile.compile_blocks`."""
        return compile_blocks(self)

    def set_activation_checkpointing(self, on: bool) -> None:
        """Recompute the language model's layers in the backward pass instead of keeping their activations."""
        self.language.transformer.set_activation_checkpointing(on)

    def set_cuda_graphs(self, on: bool) -> None:
        """Whether the frozen parts are replayed as CUDA graphs in training where that can be done; on at first."""
        self.encoder.cuda_graphs = self.language.cuda_graphs = on

    def describe(self) -> dict[str, Any]:
        """What was built, for the records; JSON-serializable."""
        counts = {"trainable": 0, "frozen": 0}
        for parameter in self.parameters():
            counts["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
        frozen = next(self.language.transformer.parameters())
        return {
            **self.description,
            "image_size": self.image_size,
            "trainable_parameters": counts["trainable"],
            "frozen_parameters": counts["frozen"],
            "frozen_dtype": str(frozen.dtype).removeprefix("torch."),
            "cuda_graphs": self.language.cuda_graphs,
            **({"graphs_captured_before": self.captures} if self.captures else {}),
            **({"graphs_mib": self._graphs_mib} if self._graphs_mib else {}),
        }

    @property
    def captures(self) -> int:
        """CUDA graphs captured so far."""
        return self.encoder.captures + self.language.captures

    @property
    def work(self) -> Work:
        """What was trained on since it was last taken."""
        return self.language.work

    def flops(self, shape: Shape, *, recompute: bool = False) -> dict[str, float] | None:
        """`core_model.execution.flops.anomalygpt_flops`."""
        return anomalygpt_flops(self, shape, recompute=recompute)


def _plain_focal(gamma: float) -> Any:
    # masks (B, 1, S, S) broadcast over the blocks of (B, K, S, S)
    return lambda odds, masks: focal(odds, masks, gamma)


class Conversation:
    """Several turns about one picture. The encoder looks once; each turn sees the turns before it."""

    def __init__(self, model: AnomalyGPT, image: Tensor, category: str, options: dict[str, Any]) -> None:
        self.model = model
        self.image = image[None]
        self.category = category
        self.options = options
        self.features = model.features(self.image)
        self.turns: list[tuple[str, str]] = []

    def ask(self, question: str) -> str:
        (reply,) = self.model.answer(
            self.image,
            [self.category],
            [question],
            histories=[tuple(self.turns)],
            features=self.features,
            **self.options,
        )
        self.turns.append((question, reply))
        return reply
