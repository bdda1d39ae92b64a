"""FLOPs of a run's timed steps, from the sizes of the batches that were really trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core_model.execution.flops import Work


class WorkCounter:
    """Adds up what a model was trained on. Call `after_step` on each rank after each step, and `counted` at the end.

    model: the raw module; one without ``work`` and ``flops`` (a user's own) is not counted. first: the first timed
    step. recompute: activations are recomputed in the backward pass.
    """

    def __init__(self, model: Any, *, first: int, recompute: bool = False) -> None:
        self._model = model if hasattr(model, "work") and hasattr(model, "flops") else None
        self._first, self._recompute = first, recompute
        self._sum = Work()

    def after_step(self, step: int) -> None:
        """Takes what the step trained on; of the steps before the first timed one it is dropped."""
        if self._model is None:
            return
        work = self._model.work.take()
        if step >= self._first:
            self._sum.useful.add(work.useful)
            self._sum.done.add(work.done)

    def counted(self) -> dict[str, float] | None:
        """This rank's ``useful`` and ``done`` FLOPs, and ``samples``; None where nothing can be counted."""
        if self._model is None or not self._sum.done.samples:
            return None
        useful = self._model.flops(self._sum.useful)
        done = self._model.flops(self._sum.done, recompute=self._recompute)
        if useful is None or done is None:
            return None
        return {"useful": useful["total"], "done": done["total"], "samples": float(self._sum.done.samples)}


def per_sample(ranks: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    """A result's ``flops``: useful and done FLOPs a sample, means over the timed steps' samples of all ranks, and how
    many there were; None where a rank could not count. ranks: `WorkCounter.counted` of each."""
    counts = [own for own in ranks if own is not None]
    if not counts or len(counts) < len(ranks):
        return None
    samples = sum(own["samples"] for own in counts)
    return {**{kind: sum(own[kind] for own in counts) / samples for kind in ("useful", "done")}, "samples": samples}
