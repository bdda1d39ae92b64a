"""The random numbers of dropout: of a step and a rank, whatever was drawn before.

Initial weights want one seed on every rank; masks drawn from that seed would be the same on every rank, so that a
global batch on N workers saw one Nth of the noise that one worker draws for it. And a resumed run, or a step that an
elastic job trains again, would draw other masks than the unbroken run. So the generator is seeded anew before each
step, by the job's seed, the step and the rank.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def step_seeds(model: torch.nn.Module, seed: int) -> Callable[[int, int], None] | None:
    """(step, rank) -> None: seeds torch's generators, those of the devices too. None for a model without dropout,
    which draws nothing while it trains; a model whose code is not known says so (`draws_random_numbers`)."""
    noisy = (torch.nn.modules.dropout._DropoutNd, torch.nn.RReLU)
    if not getattr(model, "draws_random_numbers", False) and not any(
        isinstance(module, noisy) for module in model.modules()
    ):
        return None

    def begin(step: int, rank: int) -> None:
        (mixed,) = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(mixed) >> 1)  # torch takes 63 bits

    return begin
