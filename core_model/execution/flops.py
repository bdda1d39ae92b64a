"""Matrix FLOPs that a training step needs, from shapes (a multiply-add counts 2); elementwise work is left out.

"Needed" means: frozen parts forward only, where no gradient passes through them; forward and the input's gradient
where one does (the language model); trained parts forward, input's gradient (if asked for) and weights' gradient. A
test holds this to torch's own counter on a real step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core_model.language.llama import LlamaConfig
from core_model.vision.vit import ViTConfig

if TYPE_CHECKING:
    from core_model.anomalygpt.model import AnomalyGPT


def vit_flops(config: ViTConfig, side: int) -> float:
    """One picture of `side` pixels through a vision transformer."""
    patches = (side // config.patch) ** 2
    tokens = patches + 1
    block = 2.0 * tokens * config.width**2 * (4 + 2 * config.mlp_ratio) + 4.0 * tokens**2 * config.width
    return config.layers * block + 2.0 * patches * config.width * 3 * config.patch**2


def llama_flops(config: LlamaConfig, tokens: int, logits: int, known: int = 0) -> float:
    """`tokens` positions through a LLaMA forward, `logits` of them through the output layer. The causal half of the
    attention matrix counts. known: positions before them whose keys and values are at hand."""
    kv_width = config.kv_heads * config.head_width
    weights = 2 * config.width**2 + 2 * config.width * kv_width + 3 * config.width * config.mlp
    attention = 4.0 * (tokens * known + tokens * (tokens + 1) / 2) * config.width
    return config.layers * (2.0 * tokens * weights + attention) + 2.0 * logits * config.width * config.vocab


def anomalygpt_flops(model: AnomalyGPT, tokens: int) -> dict[str, float]:
    """FLOPs of one sample by part, and ``forward``, ``backward`` and ``total``.

    tokens: text tokens a sample (question and answer); the picture, its frame and the prompts are added. A fifth of
    them is taken to be answer.
    """
    forward, backward = {}, {}
    encoder = _encoder_forward(model)
    forward["encoder"], backward["encoder"] = encoder, 0.0
    decoder = 0.0
    for adapter, patches in zip(model.decoder.adapters, _patches(model), strict=True):
        for parameter in adapter.parameters():
            if parameter.dim() > 1:
                decoder += 2.0 * patches * parameter.numel()
    forward["decoder"], backward["decoder"] = decoder, decoder  # weights' gradient; the tokens are frozen
    side, learner = model.prompt_learner.input_side, 0.0
    for weight in (p for p in model.prompt_learner.stages.parameters() if p.dim() > 1):
        learner += 2.0 * side**2 * weight.numel()
        side //= 2
    learner += 2.0 * 9 * model.prompt_learner.to_prompts.weight.numel()
    forward["prompt_learner"], backward["prompt_learner"] = learner, 2 * learner
    projection = sum(2.0 * p.numel() for p in model.projection.parameters() if p.dim() > 1)
    trained = any(p.requires_grad for p in model.projection.parameters())
    forward["projection"], backward["projection"] = projection, projection if trained else 0.0
    known = len(model.language.before_ids)
    frame = len(model.language.after_ids) + 1 + model.prompt_learner.prompts
    config = model.language.transformer.config
    language = llama_flops(config, frame + tokens, max(1, tokens // 5), known)
    forward["language"], backward["language"] = language, language  # the input's gradient, no weights' gradient
    result = {name: forward[name] + backward[name] for name in forward}
    result["forward"], result["backward"] = sum(forward.values()), sum(backward.values())
    result["total"] = result["forward"] + result["backward"]
    return result


def _encoder_forward(model: AnomalyGPT) -> float:
    trunk = model.encoder.trunk
    vit = getattr(trunk, "vit", getattr(trunk, "vision", None))
    if vit is not None:
        return vit_flops(vit.config, model.image_size)
    if hasattr(trunk, "flops"):
        return trunk.flops(model.image_size)
    patches = max(_patches(model))
    return 2.0 * patches * sum(p.numel() for p in trunk.parameters() if p.dim() > 1)


def _patches(model: AnomalyGPT) -> list[int]:
    """Places of each tapped block's grid."""
    trunk = model.encoder.trunk
    strides = getattr(trunk, "strides", None) or (trunk.multiple,) * len(trunk.channels)
    return [(model.image_size // stride) ** 2 for stride in strides]
