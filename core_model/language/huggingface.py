"""Parts loaded through transformers, by local folder or hub name: any CLIP, any causal language model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core_model.errors import ModelError
from core_model.language.text_tokenizers import HashTokenizer, HubTokenizer, Tokenizer
from core_model.spec import FROZEN_SEED, ModelSpec
from core_model.vision.encoder import Features

if TYPE_CHECKING:
    from core_model.pretrained.placement import Placement

DEFAULT_CLIP = "openai/clip-vit-base-patch32"  # the shape of transformers' CLIPConfig()


def _load(what: str, name: str, load: Any) -> Any:
    try:
        return load(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        text = f"cannot load the {what} '{name}': {reason}; give a local folder, or --random-weights"
        raise ModelError(text) from error


def clip_config(name: str) -> Any:
    """Configuration of the CLIP called `name`; "" = CLIP's own default shape, without looking anywhere."""
    from transformers import AutoConfig, CLIPConfig

    return _load("CLIP", name, AutoConfig.from_pretrained) if name else CLIPConfig()


def clip_spec(name: str) -> ModelSpec:
    """Preset ``clip:NAME``: taps at the quarters of its depth, text features from its own tower, SmolLM2 as language
    model (``model.language=hub:NAME`` for another)."""
    config = clip_config(name)
    layers = config.vision_config.num_hidden_layers
    taps = tuple(sorted({max(0, layers * quarter // 4 - 1) for quarter in (1, 2, 3, 4)}))
    return ModelSpec(
        preset="clip" + (f":{name}" if name else ""),
        encoder=f"clip:{name}",
        language="smollm2-135m",
        image_size=config.vision_config.image_size,
        taps=taps,
        text="tower",
        text_width=config.projection_dim,
        joint=config.projection_dim,
        prompt_channels=(4, 16, 32, 64, 128),
    )


class ClipTrunk(nn.Module):
    """A CLIPModel as trunk of `core_model.vision.encoder.Encoder`: hidden states of the vision tower at the taps, the
    projected class token as embedding, and its text tower beside it."""

    def __init__(self, clip: Any, taps: tuple[int, ...], tokenizer: Tokenizer) -> None:
        super().__init__()
        vision = clip.config.vision_config
        if not taps or min(taps) < 0 or max(taps) >= vision.num_hidden_layers:
            raise ModelError(f"tapped blocks {list(taps)}: the encoder has blocks 0 to {vision.num_hidden_layers - 1}")
        self.clip: Any = clip
        self.tokenizer: Any = tokenizer
        self.taps = tuple(sorted(taps))
        self.channels = (vision.hidden_size,) * len(taps)
        self.embedding = clip.config.projection_dim
        self.multiple = vision.patch_size

    def forward(self, pixels: Tensor) -> Features:
        grid = (pixels.shape[-2] // self.multiple, pixels.shape[-1] // self.multiple)
        out = self.clip.vision_model(pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=True)
        return Features(
            tokens=tuple(out.hidden_states[tap + 1][:, 1:] for tap in self.taps),
            grids=(grid,) * len(self.taps),
            pooled=self.clip.visual_projection(out.pooler_output),
        )

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(len, projection_dim) embeddings of sentences."""
        limit = self.clip.config.text_config.max_position_embeddings
        tokenizer = self.tokenizer
        rows = [[tokenizer.bos_id, *tokenizer.encode(text)[: limit - 2], tokenizer.eos_id] for text in texts]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), tokenizer.eos_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        device = self.clip.text_projection.weight.device
        out = self.clip.text_model(input_ids=ids.to(device), attention_mask=mask.to(device))
        return self.clip.text_projection(out.pooler_output)


def load_clip(name: str, taps: tuple[int, ...], place: Placement) -> ClipTrunk:
    """The trunk with pretrained or random weights."""
    from transformers import AutoTokenizer, CLIPModel

    if not place.random:
        name = name or DEFAULT_CLIP
        options: dict[str, Any] = {"dtype": place.dtype, "attn_implementation": "sdpa"}
        clip = _load("CLIP", name, lambda n: CLIPModel.from_pretrained(n, **options))
        tokenizer: Tokenizer = HubTokenizer(_load("CLIP tokenizer", name, AutoTokenizer.from_pretrained))
        return ClipTrunk(clip.to(place.device), taps, tokenizer)
    config = clip_config(name)
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FROZEN_SEED)
        clip = place.put(CLIPModel(config))
    vocab = config.text_config.vocab_size
    return ClipTrunk(clip, taps, HashTokenizer(vocab - 2, bos=vocab - 2, eos=config.text_config.eos_token_id))


class HubCausalLM(nn.Module):
    """A causal language model of transformers behind the methods of `core_model.language.llama.Llama`.

    Families differ in what stands between token and transformer (Gemma scales its embeddings) and between transformer
    and logits (Granite divides them, Cohere scales them, Gemma-2 caps them). None of it is repeated here: embeddings
    come from the model's own embedding layer, logits from its own forward pass. `check` refuses a model whose logits
    are still not its own this way.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner: Any = model
        vocab, width = model.get_input_embeddings().weight.shape  # OPT-350m's embeddings are half as wide as its layers
        self.config = SimpleNamespace(width=width, vocab=vocab)
        parameters = inspect.signature(type(self.body).forward).parameters
        self._cache_name = "past_key_values" if "past_key_values" in parameters else "cache"

    @property
    def body(self) -> Any:
        """The transformer without its output layer."""
        return self.inner.get_decoder() if hasattr(self.inner, "get_decoder") else self.inner.base_model

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.inner.get_input_embeddings()(token_ids)

    def embedding_table(self) -> Tensor:
        """Input embeddings of the first tokens, as the transformer takes them: scaled where the model scales them."""
        weight = self.inner.get_input_embeddings().weight
        return weight if weight.is_meta else self.embed(torch.arange(min(4096, len(weight)), device=weight.device))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab) of hidden states (..., width), by the model's own forward pass behind its transformer."""
        body, given = self.body, hidden.reshape(1, -1, hidden.shape[-1])
        body.forward = lambda *_, **__: _Hidden(given)  # an attribute of the instance goes before the class's method
        try:
            made = self.inner(inputs_embeds=given, use_cache=False).logits
        finally:
            del body.forward
        return made.reshape(*hidden.shape[:-1], made.shape[-1])

    @torch.no_grad()
    def check(self) -> None:
        """Raises ModelError where logits made of embeddings, as here, are not those that the model makes of tokens."""
        weight, kind = self.inner.get_input_embeddings().weight, type(self.inner).__name__
        if weight.is_meta:
            return
        ids = torch.arange(1, 5, device=weight.device)[None] % len(weight)
        training = self.inner.training
        self.inner.eval()
        try:
            own = self.inner(input_ids=ids, use_cache=False).logits.float()
            ours = self.logits(self(self.embed(ids))).float()
        except Exception as error:  # whatever a forward pass of a family that does without embeddings raises
            reason = " ".join(str(error).split())[:160]
            raise ModelError(f"{kind} cannot be given embeddings ({reason}): use another language model") from error
        finally:
            self.inner.train(training)
        if own.shape != ours.shape or not torch.allclose(own, ours, rtol=2e-2, atol=2e-2 * float(own.abs().max())):
            raise ModelError(f"{kind} makes other logits of embeddings than of tokens: use another language model")

    def new_cache(self, batch: int, capacity: int) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.inner.config)

    def forward(
        self, embeddings: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Hidden states (B, T, width); see `core_model.language.llama.LlamaModel.forward`."""
        options: dict[str, Any] = {"inputs_embeds": embeddings, "use_cache": cache is not None}
        if positions is not None:
            options["position_ids"] = positions.expand(len(embeddings), -1)
        if mask is not None:
            floor = torch.finfo(embeddings.dtype).min
            open_ = torch.zeros((), dtype=embeddings.dtype, device=embeddings.device)
            options["attention_mask"] = torch.where(mask.expand(-1, -1, embeddings.shape[1], -1), open_, floor)
        if cache is not None:
            options[self._cache_name] = cache
        return self.body(**options).last_hidden_state

    def set_activation_checkpointing(self, on: bool) -> None:
        if on:
            self.inner.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.inner.gradient_checkpointing_disable()


class _Hidden:
    """What a transformer returns, with hidden states that were computed before and nothing else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def load_causal_lm(name: str, place: Placement) -> tuple[nn.Module, Tokenizer]:
    """The language model called `name` and its tokenizer. Raises ModelError where it cannot be loaded or used."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = _load("language model", name, AutoConfig.from_pretrained)
    # The attention is transformers' own choice: sdpa, but for families that it would compute wrongly (Gemma-2's cap).
    if place.random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(FROZEN_SEED)
            made = _load("language model", name, lambda _: AutoModelForCausalLM.from_config(config))
        model = HubCausalLM(place.put(made))
        model.check()
        return model, HashTokenizer(model.config.vocab)
    made = _load("language model", name, lambda n: AutoModelForCausalLM.from_pretrained(n, dtype=place.dtype))
    model = HubCausalLM(made.to(place.device))
    model.check()
    return model, HubTokenizer(_load("tokenizer", name, AutoTokenizer.from_pretrained))
