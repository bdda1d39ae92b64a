"""Losses, each ONE VALUE A SAMPLE in fp32; the model takes the mean over samples.

That makes the gradient of a global batch independent of how it is split over ranks and micro-batches. Sources: focal
loss, Lin et al. 2017; dice, Milletari et al. 2016 (V-Net); their sum with cross-entropy, AnomalyGPT, section 3.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from backends.declared import declared
from core_model.errors import ModelError

_Weight = Annotated[float, Field(ge=0)]


@declared(ModelError, "model.losses: ")
class LossWeights:
    """Weights of the parts of the loss.

    The first four fields are the paper's (all 1, gamma 2); the others are named as future work by the NCHC study.

    Args:
        verdict_weight: weight of an answer's first token (Yes or No) against its other tokens (weighted cross-entropy).
        defective_weight: weight of a defective sample's cross-entropy against a good one's.
        map_loss: ``focal`` or ``combined_focal``, which balances defect and background and adapts its gamma.
    """

    cross_entropy: _Weight = 1.0
    focal: _Weight = 1.0
    dice: _Weight = 1.0
    gamma: _Weight = 2.0
    verdict_weight: _Weight = 1.0
    defective_weight: _Weight = 1.0
    map_loss: Literal["focal", "combined_focal"] = "focal"


def token_cross_entropy(
    logits: Tensor, labels: Tensor, rows: Tensor, samples: int, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy (samples,): the (weighted) mean over each sample's own answer tokens.

    Args:
        logits: (M, vocab) at the M places whose next token is learned.
        labels: (M,).
        rows: (M,) sample index of each place.
        weights: (M,) or None = 1.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    weights = torch.ones_like(losses) if weights is None else weights.to(losses.dtype)
    total = losses.new_zeros(samples).index_add(0, rows, losses * weights)
    return total / losses.new_zeros(samples).index_add(0, rows, weights).clamp_min(1e-6)


def focal(logits: Tensor, masks: Tensor, gamma: float | Tensor = 2.0) -> Tensor:
    """Mean over pixels of -(1 - p)^gamma log p, p the probability given to the true class; shape (B, ...).

    Args:
        logits: (B, ..., H, W), log odds of "defect".
        masks: broadcastable, 1 = defect.
        gamma: number or (B, ...).
    """
    return _focal_pixels(logits.float(), masks.float(), gamma).mean(dim=(-2, -1))


def combined_focal(logits: Tensor, masks: Tensor, gamma_low: float = 1.0, gamma_high: float = 3.0) -> Tensor:
    """Half the focal mean over defect pixels + half that over background; gamma adapts to each part; shape (B, ...).

    A fixed gamma mutes a class that is still learned badly (small p) no less than one that is learned well. Here gamma
    is gamma_low where the class's mean p is 0 and gamma_high where it is 1 (from the detached probabilities of the same
    sample, so that the loss stays a per-sample one). A sample without defect has the background part alone.
    """
    logits, masks = logits.float(), masks.float().expand_as(logits)
    probability = torch.sigmoid(logits.detach())
    parts = []
    for inside, right in ((masks, probability), (1.0 - masks, 1.0 - probability)):
        count = inside.sum(dim=(-2, -1))
        mean_p = (right * inside).sum(dim=(-2, -1)) / count.clamp_min(1.0)
        gamma = gamma_low + (gamma_high - gamma_low) * mean_p
        pixels = _focal_pixels(logits, masks, gamma) * inside
        parts.append((pixels.sum(dim=(-2, -1)) / count.clamp_min(1.0), (count > 0).float()))
    (defect, has_defect), (background, has_background) = parts
    return (defect + background) / (has_defect + has_background)


def _focal_pixels(logits: Tensor, masks: Tensor, gamma: float | Tensor) -> Tensor:
    signed = torch.where(masks > 0.5, logits, -logits)
    log_p = F.logsigmoid(signed)
    missing = torch.sigmoid(-signed)  # 1 - p without cancellation
    if isinstance(gamma, Tensor):
        # gamma >= 1 and missing may be 0: clamp keeps the power's gradient finite
        return -missing.clamp_min(1e-12).pow(gamma[..., None, None]) * log_p
    return -missing.pow(gamma) * log_p


def dice(logits: Tensor, masks: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - (2 |p m| + smooth) / (|p| + |m| + smooth), p = sigmoid(logits), sums over pixels; shape (B, ...)."""
    probability, masks = torch.sigmoid(logits.float()), masks.float()
    overlap = (probability * masks).sum(dim=(-2, -1))
    total = probability.sum(dim=(-2, -1)) + masks.sum(dim=(-2, -1))
    return 1.0 - (2.0 * overlap + smooth) / (total + smooth)
