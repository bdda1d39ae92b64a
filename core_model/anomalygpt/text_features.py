"""Text features of "normal" and "abnormal" for a category: prompt ensembles, encoded once and kept.

7 normal states, 5 abnormal states, 2 templates (Jeong et al. 2023, WinCLIP; AnomalyGPT, section 3.2): the sentences of
each kind are encoded, averaged and brought to unit length. With a text tower trained beside the image encoder (CLIP,
ImageBind) that is all. Where a causal language model is the encoder (offline presets), the mean of its last hidden
states is nearly the same vector for every sentence, so the mean over all the category's sentences is taken off first:
what remains is the direction from "normal" to "abnormal", which the decoder's layers learn to meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ABNORMAL_STATES = ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = ("a photo of a {}.", "a photo of the {}.")


def sentences(category: str) -> tuple[list[str], list[str]]:
    """(normal, abnormal) sentences about a category, 14 and 10 of them."""
    name = category.replace("_", " ")
    normal = [template.format(state.format(name)) for state in NORMAL_STATES for template in TEMPLATES]
    abnormal = [template.format(state.format(name)) for state in ABNORMAL_STATES for template in TEMPLATES]
    return normal, abnormal


class TextFeatures:
    """Caches the (2, width) features of each category. Not a module: it holds no weights and travels with no state.

    Args:
        encode: sentences -> (len, width), run without gradient.
        centred: see above.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor], *, centred: bool) -> None:
        self.encode = encode
        self.centred = centred
        self._known: dict[tuple[str, torch.device], Tensor] = {}
        self.encoded = 0  # categories encoded so far; a test holds it to one a category

    @torch.no_grad()
    def of(self, category: str) -> Tensor:
        """(2, width) unit vectors [normal, abnormal], fp32."""
        normal, abnormal = sentences(category)
        vectors = self.encode(normal + abnormal).float()
        if self.centred:
            vectors = F.normalize(vectors, dim=-1)
            vectors = vectors - vectors.mean(dim=0)
        else:
            vectors = F.normalize(vectors, dim=-1)
        self.encoded += 1
        pair = torch.stack((vectors[: len(normal)].mean(dim=0), vectors[len(normal) :].mean(dim=0)))
        return F.normalize(pair, dim=-1)

    def __call__(self, categories: Iterable[str], device: torch.device) -> Tensor:
        """(B, 2, width) on `device`, one row a category named."""
        rows = []
        for category in categories:
            key = (category, device)
            if key not in self._known:
                self._known[key] = self.of(category).to(device)
            rows.append(self._known[key])
        return torch.stack(rows)

    def clear(self) -> None:
        """Forgets all: call after the encoder's weights or their type changed."""
        self._known.clear()
