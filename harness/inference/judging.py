"""One trained run judged: entries of every branch and memory, thresholds from held-out pictures, controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.inference.calibration import Calibration, answer_figures_of, ground, threshold_of
from harness.inference.quality_plan import ALL, CALIBRATED, FIGURES, Grid
from harness.job.declaration import JobError
from harness.records.undefined_figures import undefined

NEAR = 0.98  # correlation above which two pictures are called near-duplicates
OF_A_CLASS = ("answer_accuracy", "image_auroc", "pixel_auroc")
Entries = list[dict[str, Any]]


def judge(
    folder: Path, grid: Grid, data: str | None, options: dict[str, Any], leak: dict[str, Any], pool: Any
) -> tuple[list[tuple[dict[str, Any], Any]], dict[str, Any]]:
    """What each variant is and its figures to come (from `pool`), and the near-duplicate control (measured once).

    Raises JobError where a branch needs held-out pictures and the run held none out.
    """
    from harness.inference.load_model import load
    from harness.worker.evaluation.few_shot import pictures_of
    from harness.worker.model_and_data import build_dataset

    trained = load(str(folder), changes={"data": data} if data else None, **options)
    model, job, device = trained.model, trained.job, trained.device
    train, test = build_dataset(job, model, "train"), build_dataset(job, model, "test")
    held_out = build_dataset(job, model, "val") if job.data_options.get("holdout") else None
    if held_out is None and CALIBRATED in grid.branches:
        raise JobError(f"{folder}: branch {CALIBRATED} needs pictures held out of training (data_options.holdout)")
    good = {count: pictures_of(train, count, job.seed) for count in grid.shots}
    leak = leak or near_duplicates(train, test)
    looked = [variant for variant in grid.variants() if variant[0] != CALIBRATED]
    banks = [_bank(model, variant, good, device) for variant in looked]
    passed = entries_by(model, held_out, banks, device, answers=grid.answers) if held_out else [[] for _ in banks]
    judged = entries_by(model, test, banks, device, answers=grid.answers)
    all_passed, all_judged = _with_calibrated(grid, looked, passed, judged)
    rows = []
    for (branch, count, memory), kept, entries in zip(grid.variants(), all_passed, all_judged, strict=True):
        about = {"branch": branch, "shots": "all" if count == ALL else count, "memory": memory.get("label", "")}
        held = [{key: entry[key] for key in ("score", "yes", "is_defective")} for entry in kept]
        if grid.answers and held and branch in ("decoder", CALIBRATED):
            ground(model, test, entries, threshold_of(held, "score"), device)
        rows.append((about, pool.submit(figures_of, entries, held)))
    return rows, leak


def _bank(model: Any, variant: tuple[str, int, Mapping[str, Any]], good: Mapping[int, Any], device: Any) -> Any:
    """The memory of a variant; None for the decoder."""
    from core_model.anomalygpt.memory_bank import MemoryOptions
    from harness.worker.evaluation.few_shot import bank

    branch, count, memory = variant
    if branch == "decoder":
        return None
    chosen = MemoryOptions(combination=branch, **{key: value for key, value in memory.items() if key != "label"})
    images, names = good[count]
    return bank(model, images, names, device, options=chosen)


def _with_calibrated(
    grid: Grid,
    looked: Sequence[tuple[str, int, Mapping[str, Any]]],
    passed: Sequence[Entries],
    judged: Sequence[Entries],
) -> tuple[list[Entries], list[Entries]]:
    """(held-out entries, test entries) of every variant, the calibrated ones made from those of decoder and memory."""
    found = {_key(variant): number for number, variant in enumerate(looked)}
    all_passed, all_judged = [], []
    for branch, count, memory in grid.variants():
        if branch != CALIBRATED:
            number = found[_key((branch, count, memory))]
            all_passed.append(passed[number])
            all_judged.append(judged[number])
            continue
        parts = found[_key(("decoder", 0, {}))], found[_key(("memory", count, memory))]
        calibration = Calibration.of([passed[part] for part in parts])
        all_passed.append(calibration.join([passed[part] for part in parts]))
        all_judged.append(calibration.join([judged[part] for part in parts]))
    return all_passed, all_judged


def _key(variant: tuple[str, int, Mapping[str, Any]]) -> tuple[str, int, str]:
    return variant[0], variant[1], str(variant[2].get("label", ""))


def entries_by(
    model: Any, dataset: Any, banks: Sequence[Any], device: Any, *, answers: bool
) -> list[list[dict[str, Any]]]:
    """The test entries (`harness.worker.evaluation.evaluate`) of every variant; the encoder looks at each picture once.
    Only the decoder (bank None) answers: the answers do not depend on the memory."""
    import torch

    from harness.worker.evaluation.evaluate import entries_of

    size = 32 if device.type == "cuda" else 8
    found: list[list[dict[str, Any]]] = [[] for _ in banks]
    for start in range(0, len(dataset), size):
        samples = [dataset.get(index, 0) for index in range(start, min(start + size, len(dataset)))]
        images = torch.stack([sample.image for sample in samples]).to(device)
        names, questions = [s.category for s in samples], [s.turns[0][0] for s in samples]
        features = model.features(images)
        for variant, bank in enumerate(banks):
            asked = answers and bank is None
            maps = model.anomaly_maps(images, names, memory=bank, features=features)
            replies = model.answer(images, names, questions, features=features, max_new_tokens=32) if asked else None
            scores = model.scores(maps) if bank is None else bank.scores(maps, model.scoring)
            entries = entries_of(samples, maps, scores, replies)
            yes = model.yes_probability(images, names, questions, features=features).tolist() if asked else None
            found[variant] += [{**entry, "yes": yes[row] if yes else None} for row, entry in enumerate(entries)]
    return found


def figures_of(entries: Sequence[Mapping[str, Any]], held: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics' means, kinds and classes. held: entries of held-out pictures (score, yes, is_defective): the good
    ones decide the thresholds of the accuracies, and with the simulated defects among them they have an AUROC of their
    own, by which settings can be chosen without a look at the test pictures."""
    from core_model.metrics import Tally, auroc, evaluate

    figures = evaluate(entries)
    labels = np.array([entry["is_defective"] for entry in entries])
    made = {name: figures["mean"].get(name) for name in FIGURES}
    for figure, key in (("held_out_accuracy", "score"), ("answer_held_out_accuracy", "yes")):
        values = [entry[key] for entry in entries]
        if held and values[0] is not None:
            threshold = threshold_of(held, key)
            made[figure] = float(np.mean((np.array(values) > threshold) == labels))
    if any(entry["is_defective"] for entry in held):
        simulated = np.array([entry["is_defective"] for entry in held])
        scores = np.array([entry["score"] for entry in held])
        made["held_out_auroc"] = auroc(Tally.of(scores, simulated), "pictures").value
    if entries[0]["yes"] is not None:
        made["answer_auroc"] = auroc(Tally.of(np.array([entry["yes"] for entry in entries]), labels), "pictures").value
    if all(entry.get("grounded") is not None for entry in entries):
        made |= answer_figures_of(entries)
    categories = figures["categories"]
    kinds = next(iter(categories.values()))["kinds"] if len(categories) == 1 else {}
    classes = {name: {key: row[key] for key in OF_A_CLASS} for name, row in categories.items()}
    return {**made, "kinds": kinds, "classes": classes, "undefined": undefined(figures, FIGURES)}


def near_duplicates(train: Any, test: Any, side: int = 32) -> dict[str, Any]:
    """How far "is it a copy of a training picture?" gets alone: for each test picture the highest correlation with any
    good training picture of its category (grey, `side` x `side`), the share of good and defective ones above NEAR, and
    the AUROC of one minus that correlation."""
    import torch
    import torch.nn.functional as F

    from core_model.metrics import Tally, auroc

    def flat(images: Any) -> Any:
        small = F.adaptive_avg_pool2d(images.float().mean(dim=1, keepdim=True), side).flatten(1)
        return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)

    known = {name: flat(train.good_images(name, ALL, seed=0)) for name in train.categories}
    nearest, labels = [], []
    for index in range(len(test)):
        sample = test.get(index, 0)
        nearest.append(float((known[sample.category] @ flat(sample.image[None])[0]).max()))
        labels.append(bool(sample.is_defective))
    values, defective = np.array(nearest), np.array(labels)
    return {
        "correlation": NEAR,
        "share_of_good": _share(values[~defective]),
        "share_of_defective": _share(values[defective]),
        "auroc_of_distance": auroc(Tally.of(1 - values, defective), "pictures").value,
        "training_pictures": int(sum(len(rows) for rows in known.values())),
        "torch": torch.__version__,
    }


def _share(values: np.ndarray) -> float | None:
    """Of near-duplicates; None where there are no pictures of that kind."""
    return float(np.mean(values > NEAR)) if len(values) else None
