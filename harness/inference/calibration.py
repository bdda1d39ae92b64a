"""Scores in units of what good pictures get, and answers that begin with what the score decides.

Two maps of one picture, of the decoder and of the memory, are in units of their own: probabilities here, distances
there. Here each is brought to zero mean and unit spread over good pictures that were kept out of training, and added.
No test picture and no defect decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.inference.quality_plan import PASS

SMALLEST = 1e-6  # spread of a constant map
HIGHEST = 60_000.0  # of a map in float16
BATCH = 16
MAX_NEW_TOKENS = 12  # behind the opening: the end of its sentence


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """(mean, spread) over held-out good pictures, of each part's scores and of its maps' pixels."""

    scores: tuple[tuple[float, float], ...]
    pixels: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, parts: Sequence[Sequence[Mapping[str, Any]]]) -> Calibration:
        """From the held-out entries of each part (see `harness.worker.evaluation.evaluate.score_samples`)."""
        good = [[entry for entry in part if not entry["is_defective"]] for part in parts]
        scores = [np.array([entry["score"] for entry in part], np.float64) for part in good]
        pixels = [np.stack([entry["map"] for entry in part]).astype(np.float32) for part in good]
        return cls(scores=tuple(map(_mean_and_spread, scores)), pixels=tuple(map(_mean_and_spread, pixels)))

    def join(self, parts: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """Entries whose score and map are the sums of the parts' in these units. Answers are the first part's."""
        joined = []
        for same in zip(*parts, strict=True):
            score = sum((e["score"] - mean) / spread for e, (mean, spread) in zip(same, self.scores, strict=True))
            grid = sum(
                (e["map"].astype(np.float32) - mean) / spread
                for e, (mean, spread) in zip(same, self.pixels, strict=True)
            )
            limited = np.clip(grid, -HIGHEST, HIGHEST).astype(np.float16)
            joined.append({**same[0], "score": float(score), "map": limited})
        return joined


def _mean_and_spread(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), max(float(values.std()), SMALLEST)


def threshold_of(held: Sequence[Mapping[str, Any]], key: str) -> float:
    """What the share `PASS` of the good ones among held-out entries stays below in `key`."""
    return float(np.quantile([entry[key] for entry in held if not entry["is_defective"]], PASS))


def opening(score: float, grid: np.ndarray, threshold: float) -> str:
    """The beginning of an answer: the verdict by the score, the place by the peak of the map (S, S)."""
    from harness.inference.session import peak_place

    if score > threshold:
        return f"Yes, there is a defect at the {peak_place(grid.astype(np.float32))}"
    return "No, there is no defect"


def ground(model: Any, dataset: Any, entries: Sequence[dict[str, Any]], threshold: float, device: Any) -> None:
    """Adds ``grounded`` to a test set's entries, in its order: the model's answer that begins as `opening` says."""
    import torch

    for start in range(0, len(entries), BATCH):
        part = entries[start : start + BATCH]
        images = torch.stack([dataset.get(start + row, 0).image for row in range(len(part))]).to(device)
        openings = [opening(entry["score"], entry["map"], threshold) for entry in part]
        names, questions = [entry["category"] for entry in part], [entry["question"] for entry in part]
        answers = model.answer(images, names, questions, openings=openings, max_new_tokens=MAX_NEW_TOKENS)
        for entry, answer in zip(part, answers, strict=True):
            entry["grounded"] = answer


def answer_figures_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """grounded_accuracy and grounded_place_accuracy, as answer_accuracy and place_accuracy of the free answers."""
    from core_model.metrics.answers import answer_figures

    figures = answer_figures([{**entry, "answer": entry["grounded"]} for entry in entries])
    return {f"grounded_{name}": figures[f"{name}"].value for name in ("place_accuracy",)} | {
        "grounded_accuracy": figures["answer_accuracy"].value
    }
