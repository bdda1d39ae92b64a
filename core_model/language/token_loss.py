"""The loss of a token, without logits in fp32 where they are computed in half precision.

A batch of 32 x 256 tokens over 32,000 words has 1 GB of fp32 logits. Cast first and then taken the logarithm of, they
are written and read once more than needed, forward and backward; compiled (`core_model.execution.compile`) they are
never written: the kernel reads half-precision logits and keeps one number a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenLoss(nn.Module):
    """Mean cross-entropy over all tokens, its arithmetic in fp32 whatever the logits' type."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """0-dim fp32. logits: (..., vocab). labels: int64 (...), the right words."""
        logarithms = F.log_softmax(logits, dim=-1, dtype=torch.float32)
        return F.nll_loss(logarithms.flatten(0, -2), labels.flatten())
