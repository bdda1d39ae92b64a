"""From scored samples to figures: per category and their mean, with the controls and warnings that they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core_model.metrics.answers import NO, UNUSABLE, YES, answer_figures, judge, places_in, verdict_counts
from core_model.metrics.maps import medians, pixel_figures
from core_model.metrics.ranking import NOT_FINITE, Figure, Tally, auroc, f1_max

__all__ = ["Figure", "Tally", "auroc", "evaluate", "f1_max", "judge", "places_in"]

COUNTS = ("unusable_answers",)  # summed over the categories, where everything else is averaged
CONTROL_MARGIN = 0.05
LARGE_MASK = 0.5  # of the picture: an inverted mask covers more


def evaluate(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of a test set.

    entries: a sample each: id, category, kind, is_defective, place, score (higher = more anomalous), map (H, W) float
    (float16 keeps memory low), mask (H, W) bool (None = not drawn), answer (None = not asked). Repeats of an id are
    dropped.
    Returns JSON-ready values::

        count, repeats_dropped
        mean        {figure: mean over the categories where it is defined, or None}
        categories  {name: {figure: value or None, samples, good, defective, answers {yes, no, unusable}, kinds {...}}}
        undefined   {"category: figure": why it is None}
        warnings    [sentences that a reader must see beside the figures]

    Figures: image_auroc, f1_max (of the score); pixel_auroc, aupro, pixel_f1_max (of the map); answer_accuracy,
    answer_balanced_accuracy, unusable_answers, place_accuracy (of the answers); and the controls image_auroc_median,
    pixel_auroc_defective, pixel_auroc_per_image, place_chance. See `maps` and `answers` for each one's definition.
    """
    unique = {str(entry["id"]): entry for entry in reversed(entries)}
    by_category: dict[str, list[Mapping[str, Any]]] = {}
    for name in sorted(unique):
        by_category.setdefault(str(unique[name]["category"]), []).append(unique[name])
    undefined: dict[str, str] = {}
    categories: dict[str, dict[str, Any]] = {}
    for category, members in by_category.items():
        pixels, pixels_of_kind = pixel_figures(members)
        figures = {**image_figures(members), **pixels, **answer_figures(members)}
        undefined |= {f"{category}: {name}": each.reason for name, each in figures.items() if each.value is None}
        categories[category] = {
            "samples": len(members),
            "good": sum(not entry["is_defective"] for entry in members),
            "defective": sum(bool(entry["is_defective"]) for entry in members),
            **{name: each.value for name, each in figures.items()},
            "answers": verdict_counts(members),
            "kinds": _kinds(members, pixels_of_kind),
        }
    mean = _mean(categories)
    return {
        "count": len(unique),
        "repeats_dropped": len(entries) - len(unique),
        "mean": mean,
        "categories": categories,
        "undefined": undefined,
        "warnings": _warnings(list(unique.values()), mean),
    }


def image_figures(entries: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """`score_figures`, and image_auroc_median: the AUROC of each map's median alone, which a small defect cannot move,
    so it shows how far good and defective pictures differ by something else."""
    labels = np.array([bool(entry["is_defective"]) for entry in entries])
    middle = medians(entries)
    if middle is None:
        control = Figure(None, "no maps were kept")
    elif not np.isfinite(middle).all():
        control = Figure(None, NOT_FINITE)
    else:
        control = auroc(Tally.of(middle, labels), "pictures")
    return {**score_figures(entries), "image_auroc_median": control}


def score_figures(entries: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """image_auroc and f1_max of the scores."""
    labels = np.array([bool(entry["is_defective"]) for entry in entries])
    scores = np.array([float(entry["score"]) for entry in entries], np.float64)
    if not np.isfinite(scores).all():
        return dict.fromkeys(("image_auroc", "f1_max"), Figure(None, NOT_FINITE))
    tally = Tally.of(scores, labels)
    return {"image_auroc": auroc(tally, "pictures"), "f1_max": f1_max(tally, "pictures")}


def _kinds(
    entries: Sequence[Mapping[str, Any]], pixels: Mapping[str, Mapping[str, Figure]]
) -> dict[str, dict[str, Any]]:
    """A row for each kind of picture: its image AUROC against the good ones, its pixels, its answers."""
    good = [entry for entry in entries if not entry["is_defective"]]
    rows: dict[str, dict[str, Any]] = {}
    for kind in sorted(pixels):
        own = [entry for entry in entries if entry["kind"] == kind]
        answers = answer_figures(own)
        row: dict[str, Any] = {"samples": len(own), "answer_accuracy": answers["answer_accuracy"].value}
        if own[0]["is_defective"]:
            row["image_auroc"] = score_figures([*good, *own])["image_auroc"].value
            row["pixel_auroc_defective"] = pixels[kind]["pixel_auroc_defective"].value
            row["place_accuracy"] = answers["place_accuracy"].value
        rows[kind] = row
    return rows


def _mean(categories: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean over the categories where the figure is defined; counts are summed."""
    apart = {"samples", "good", "defective", "answers", "kinds"}
    names = [name for name in next(iter(categories.values()), {}) if name not in apart]
    mean: dict[str, float | None] = {}
    for name in names:
        values = [row[name] for row in categories.values() if row[name] is not None]
        mean[name] = None if not values else float(np.sum(values) if name in COUNTS else np.mean(values))
    return mean


def _warnings(entries: Sequence[Mapping[str, Any]], mean: Mapping[str, float | None]) -> list[str]:
    warnings = []
    counts = verdict_counts(entries)
    asked = sum(counts.values())
    if asked and counts[UNUSABLE] == asked:
        warnings.append(
            f"every one of the {asked} answers is unusable (neither Yes nor No): the answer accuracy of 0 says nothing "
            "about detection; look at the answers, then at the language model's training"
        )
    elif counts[UNUSABLE]:
        warnings.append(f"{counts[UNUSABLE]} of {asked} answers are neither Yes nor No and count as wrong")
    for verdict in (YES, NO):
        if asked > 1 and counts[verdict] == asked:
            warnings.append(
                f"every answer is {verdict.capitalize()}: the answer accuracy is only the share of such pictures"
            )
    with_maps = [entry for entry in entries if entry.get("map") is not None and entry["is_defective"]]
    empty = sum(entry["mask"] is not None and not np.any(entry["mask"]) for entry in with_maps)
    if empty:
        warnings.append(f"{empty} defective pictures have an empty mask: the pixel figures take them for good surface")
    large = [entry for entry in with_maps if entry["mask"] is not None and np.mean(entry["mask"]) > LARGE_MASK]
    if large:
        warnings.append(
            f"the masks of {len(large)} of {len(with_maps)} defective pictures cover more than half of the picture, "
            f"such as that of {large[0]['id']}: if they are inverted, the pixel figures are wrong"
        )
    scores = np.array([float(entry["score"]) for entry in entries])
    if not np.isfinite(scores).all():
        warnings.append(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    elif len(scores) > 1 and np.ptp(scores) == 0:
        warnings.append("all pictures have the same score: the image AUROC of 0.5 is that of a constant")
    figure, control = mean.get("image_auroc"), mean.get("image_auroc_median")
    if figure is not None and control is not None and control > 0.6 and control >= figure - CONTROL_MARGIN:
        warnings.append(
            f"the median of the map alone reaches an image AUROC of {control:.3f} against {figure:.3f} of the score: "
            "good and defective pictures differ outside the defects, so the image AUROC does not show that defects are "
            "found; read pixel_auroc_defective beside it"
        )
    return warnings
