"""Trained runs judged in every way that a user of AnomalyGPT may use them, with the controls that the figures need.

For each run: the decoder's map, the memory of k good pictures, and both added; the answers; and, beside every figure,
what could have produced it without any detection: the map's median, and how near the test's good pictures are to
training pictures. A row of the table is one engine, branch, memory and number of shots: mean and spread over its runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.common.formatting import DASH, is_number
from harness.common.text_table import Table, csv_text
from harness.job.declaration import JobError
from harness.records.record_files import WEIGHTS, finite, is_run, read_json, runs_of, write_json, write_text
from harness.records.run_record import RecordedRun, whole_run
from harness.records.undefined_figures import undefined

FILE = "quality.json"
ALL = 1_000_000  # shots: every good picture
PASS = 0.9  # share of the held-out good pictures that pass the threshold
# Of the job, beside what `label_of` says: runs that differ in one of them are no repeats of each other.
_TOLD_APART = (
    "steps", "global_batch", "scaling", "accumulation", "optimizer", "lr", "betas", "weight_decay", "schedule",
    "warmup_steps", "clip_norm", "precision", "precision_mode", "compile", "random_weights", "data_options",
)  # fmt: skip
NEAR = 0.98  # correlation above which two pictures are called near-duplicates
FIGURES = {
    "image_auroc": "image AUROC",
    "image_auroc_median": "median alone*",
    "pixel_auroc": "pixel AUROC",
    "pixel_auroc_defective": "within defective*",
    "aupro": "AUPRO",
    "held_out_accuracy": "right at held-out threshold",
    "answer_accuracy": "answers right",
    "answer_auroc": "answers' AUROC",
    "answer_held_out_accuracy": "answers right at held-out threshold",
    "place_accuracy": "place right",
}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is judged. memories: keyword arguments of MemoryOptions, each with a ``label``."""

    branches: tuple[str, ...]
    shots: tuple[int, ...]
    memories: tuple[Mapping[str, Any], ...]
    answers: bool = True

    def variants(self) -> list[tuple[str, int, Mapping[str, Any]]]:
        """(branch, shots, memory) of every row; the decoder needs no memory."""
        rows: list[tuple[str, int, Mapping[str, Any]]] = []
        if "decoder" in self.branches:
            rows.append(("decoder", 0, {}))
        for branch in ("memory", "both"):
            if branch in self.branches:
                rows += [(branch, count, memory) for memory in self.memories for count in self.shots]
        return rows


def shots_in(text: str) -> tuple[int, ...]:
    """``1,4,all`` as numbers of good pictures. Raises JobError."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part != "all" and not (part.isdigit() and int(part)):
            raise JobError(f"--shots '{part}': write numbers from 1 on, or all, with commas between them")
        found.append(ALL if part == "all" else int(part))
    return tuple(found)


def memory_in(text: str) -> dict[str, Any]:
    """``l2:blocks=1,2:rotations=0`` as keyword arguments of `core_model.anomalygpt.memory_bank.MemoryOptions`."""
    distance, *parts = text.split(":")
    made: dict[str, Any] = {"label": text, "distance": distance}
    for part in parts:
        key, separator, value = part.partition("=")
        if not separator or key not in ("blocks", "rotations", "weight", "limit"):
            raise JobError(f"--memory '{text}': '{part}' must be blocks=, rotations=, weight= or limit=")
        try:
            numbers = [float(number) for number in value.split(",")]
        except ValueError:
            raise JobError(f"--memory '{text}': '{value}' is no list of numbers") from None
        made[key] = tuple(map(int, numbers)) if key in ("blocks", "rotations") else numbers[0]
    if "limit" in made:
        made["limit"] = int(made["limit"])
    return made


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """The runs with weights among `paths`, which are runs or studies."""
    found = []
    for path in paths:
        for folder in [path] if is_run(path) else runs_of(path):
            if whole_run(RecordedRun(folder)).ok and (folder / WEIGHTS).is_file():
                found.append(folder)
    return found


def measure(
    folders: Sequence[Path], grid: Grid, *, data: str | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """quality.json's content: what was judged, rows (aggregates), runs (every figure of every run), the controls."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    runs: list[dict[str, Any]] = []
    leak: dict[str, Any] = {}
    # The figures of one variant take seconds of one core (they sort ten million pixels); the encoder takes no longer.
    cores = min(os.cpu_count() or 1, len(grid.variants()))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        for folder in folders:
            run = RecordedRun(folder)
            figures, leak = _judge(folder, grid, data, dict(options or {}), leak, pool)
            runs.append(
                {
                    "run": f"{run.study}/{run.name}", "label": label_of(run), "workers": run.workers, "seed": run.seed,
                    "job": {name: run.job.get(name) for name in _TOLD_APART},
                    "figures": figures,
                }
            )  # fmt: skip
        for each in runs:
            each["figures"] = [{**about, **figures.result()} for about, figures in each["figures"]]
    first = RecordedRun(folders[0])
    return finite(
        {
            "schema": 1,
            "preset": first.job.get("preset"),
            "data": data or first.job.get("data"),
            "grid": asdict(grid),
            "held_out_pass": PASS,
            "near_duplicates": leak,
            "rows": aggregate(runs),
            "runs": runs,
        }
    )


def _judge(
    folder: Path, grid: Grid, data: str | None, options: dict[str, Any], leak: dict[str, Any], pool: Any
) -> tuple[list[tuple[dict[str, Any], Any]], dict[str, Any]]:
    """What each variant is and its figures to come (from `pool`), and the near-duplicate control (measured once)."""
    from core_model.anomalygpt.memory_bank import MemoryOptions
    from harness.inference.load_model import load
    from harness.worker.evaluation.few_shot import bank, pictures_of
    from harness.worker.model_and_data import build_dataset

    trained = load(str(folder), changes={"data": data} if data else None, **options)
    model, job, device = trained.model, trained.job, trained.device
    train, test = build_dataset(job, model, "train"), build_dataset(job, model, "test")
    held_out = build_dataset(job, model, "val") if job.data_options.get("holdout") else None
    good = {count: pictures_of(train, count, job.seed) for count in grid.shots}
    banks: list[Any] = []
    for branch, count, memory in grid.variants():
        if branch == "decoder":
            banks.append(None)
            continue
        chosen = MemoryOptions(combination=branch, **{k: v for k, v in memory.items() if k != "label"})
        banks.append(bank(model, *good[count], device, options=chosen))
    leak = leak or _near_duplicates(train, test)
    judged = _entries(model, test, banks, device, answers=grid.answers)
    passed = _entries(model, held_out, banks, device, answers=grid.answers) if held_out else [[] for _ in banks]
    rows = []
    for (branch, count, memory), entries, kept in zip(grid.variants(), judged, passed, strict=True):
        about = {
            "branch": branch,
            "shots": "all" if count == ALL else count,
            "memory": memory.get("label", ""),
        }
        good_ones = [{k: entry[k] for k in ("score", "yes")} for entry in kept if not entry["is_defective"]]
        rows.append((about, pool.submit(figures_of, entries, good_ones)))
    return rows, leak


def _entries(
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
            entries = entries_of(samples, maps, model.scores(maps), replies)
            yes = model.yes_probability(images, names, questions, features=features).tolist() if asked else None
            found[variant] += [{**entry, "yes": yes[row] if yes else None} for row, entry in enumerate(entries)]
    return found


def label_of(run: RecordedRun) -> str:
    """The engine, and what of the model and the data was chosen beside the preset: what the rows tell apart."""
    job = run.job
    parts = [f"{key.replace('_', ' ')} {value}" for key, value in sorted((job.get("model") or {}).items())]
    parts += [f"version {job['version']}"] if job.get("version") else []
    parts += [f"{job['image_size']} px"] if job.get("image_size") else []
    parts += [f"defects {job['defects']}"] if job.get("defects") else []
    return ", ".join([run.label, *parts])


def labels_of(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The label of each of the record's `runs`, and whatever else of the job is not the same for all of them: unlike
    runs are never averaged, wherever they were judged. Records from before 2026-11-27 do not say it."""
    told = [run.get("job") or {} for run in runs]
    varied = [name for name in _TOLD_APART if len({str(job.get(name)) for job in told if job}) > 1]
    return [
        ", ".join([run["label"], *(f"{name.replace('_', ' ')} {job.get(name)}" for name in varied if job)])
        for run, job in zip(runs, told, strict=True)
    ]


def figures_of(entries: Sequence[Mapping[str, Any]], good: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics' means and kinds, and the accuracies at the thresholds that the held-out `good` entries decide."""
    from core_model.metrics import Tally, auroc, evaluate

    figures = evaluate(entries)
    labels = np.array([entry["is_defective"] for entry in entries])
    made = {name: figures["mean"].get(name) for name in FIGURES}
    for figure, key in (("held_out_accuracy", "score"), ("answer_held_out_accuracy", "yes")):
        values = [entry[key] for entry in entries]
        if good and values[0] is not None:
            threshold = np.quantile([entry[key] for entry in good], PASS)
            made[figure] = float(np.mean((np.array(values) > threshold) == labels))
    if entries[0]["yes"] is not None:
        made["answer_auroc"] = auroc(Tally.of(np.array([entry["yes"] for entry in entries]), labels), "pictures").value
    kinds = next(iter(figures["categories"].values()))["kinds"] if len(figures["categories"]) == 1 else {}
    return {**made, "kinds": kinds, "undefined": undefined(figures, FIGURES)}


def _near_duplicates(train: Any, test: Any, side: int = 32) -> dict[str, Any]:
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


def merge(files: Sequence[Path]) -> dict[str, Any]:
    """One record from quality.json files that judged runs in the same way: for runs judged on different machines.
    A run that is in several counts once. Raises JobError where they were judged differently."""
    found = [read_json(file) for file in files]
    for file, each in zip(files[1:], found[1:], strict=True):
        for key in ("grid", "data", "preset", "held_out_pass"):
            if each.get(key) != found[0].get(key):
                raise JobError(f"{file}: judged with another {key} than {files[0]}: judge the runs again, in one call")
    runs = list({run["run"]: run for each in found for run in each["runs"]}.values())
    return {**found[0], "rows": aggregate(runs), "runs": runs}


def aggregate(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each label, workers, branch, memory and shots: mean, sd (n - 1) and n of every figure, and the
    mean figures of each kind of picture."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run, label in zip(runs, labels_of(runs), strict=True):
        for figures in run["figures"]:
            key = (label, run["workers"], figures["branch"], figures["memory"], figures["shots"])
            groups.setdefault(key, []).append(figures)
    rows = []
    for (label, workers, branch, memory, shots), members in groups.items():
        row: dict[str, Any] = {
            "label": label, "workers": workers, "branch": branch, "memory": memory, "shots": shots,
            "runs": len(members),
        }  # fmt: skip
        for name in FIGURES:
            values = [figures[name] for figures in members if is_number(figures.get(name))]
            if values:
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
                row[name] = {"mean": float(np.mean(values)), "sd": spread, "n": len(values)}
        kinds: dict[str, dict[str, float]] = {}
        for kind in sorted({kind for figures in members for kind in figures["kinds"]}):
            own = [figures["kinds"][kind] for figures in members if kind in figures["kinds"]]
            kinds[kind] = {
                name: float(np.mean([each[name] for each in own if is_number(each.get(name))]))
                for name in ("samples", "image_auroc", "pixel_auroc_defective", "answer_accuracy")
                if any(is_number(each.get(name)) for each in own)
            }
        why = sorted({text for figures in members for text in figures.get("undefined", ())})
        rows.append({**row, "kinds": kinds, "undefined": why})
    return rows


def write(record: Mapping[str, Any], folder: Path) -> None:
    """quality.json, quality.csv and quality.md."""
    write_json(folder / FILE, record)
    heads = ["label", "workers", "branch", "memory", "shots", "runs"]
    columns = [*heads, *(f"{name}_{part}" for name in FIGURES for part in ("mean", "sd"))]
    rows = []
    for row in record["rows"]:
        cells = [row.get(name, {}).get(part) for name in FIGURES for part in ("mean", "sd")]
        rows.append([*(str(row[head]) for head in heads), *("" if cell is None else f"{cell:.6g}" for cell in cells)])
    text = csv_text(Table(id="quality", title="", columns=columns, rows=rows))
    write_text(folder / "quality.csv", text)
    write_text(folder / "quality.md", markdown(record) + "\n")


def markdown(record: Mapping[str, Any]) -> str:
    """The table, the kinds and the controls, for people."""
    used = [name for name in FIGURES if any(name in row for row in record["rows"])]
    lines = [
        f"### Quality of {record['preset']} on {record['data']}: mean ± sd over the runs",
        "",
        "| engine and model | workers | map | shots | runs | "
        + " | ".join(FIGURES[name] for name in used) + " |",
        "| --- | ---: | --- | ---: | ---: |" + " ---: |" * len(used),
    ]  # fmt: skip
    for row in record["rows"]:
        source = row["branch"] + (f" ({row['memory']})" if row["memory"] else "")
        cells = [row["label"], str(row["workers"]), source, str(row["shots"] or DASH), str(row["runs"])]
        cells += [_cell(row.get(name)) for name in used]
        lines.append("| " + " | ".join(cells) + " |")
    near = record.get("near_duplicates") or {}
    lines += [
        "",
        (
            "\\* controls. median alone: image AUROC of each map's median, which a small defect cannot move. within "
            "defective: pixel AUROC over defective pictures only. Held-out threshold: passed by "
            f"{record['held_out_pass']:.0%} of good pictures kept out of training; no test picture decides it."
        ),
    ]
    lines += [f"\n{text[0].upper()}{text[1:]}." for text in _reasons(record["rows"])]
    if near and is_number(near["auroc_of_distance"]):  # undefined for a test set of good pictures alone
        lines += [
            "",
            (
                f"Near-duplicates: {near['share_of_good']:.0%} of the test's good pictures and "
                f"{near['share_of_defective']:.0%} of its defective ones correlate above {near['correlation']} "
                f"with one of {near['training_pictures']} training pictures; the correlation alone, without a model, "
                f"reaches an image AUROC of {near['auroc_of_distance']:.3f}. A memory of the training pictures profits "
                "from that."
            ),
        ]
    by_kind = [row for row in record["rows"] if row["kinds"]]
    kinds = sorted({kind for row in by_kind for kind in row["kinds"]})
    if kinds:
        lines += ["", "Where it comes from: image AUROC against the good pictures / answers right, by kind", ""]
        lines += ["| engine | workers | map | shots | " + " | ".join(kinds) + " |"]
        lines += ["| --- | ---: | --- | ---: |" + " ---: |" * len(kinds)]
        for row in by_kind:
            source = row["branch"] + (f" ({row['memory']})" if row["memory"] else "")
            cells = [row["label"], str(row["workers"]), source, str(row["shots"] or DASH)]
            for kind in kinds:
                own = row["kinds"].get(kind, {})
                parts = [f"{own[n]:.2f}" if n in own else DASH for n in ("image_auroc", "answer_accuracy")]
                cells.append(" / ".join(parts))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why figures stand nowhere in the table, such as a data set without masks; not what was not asked for."""
    texts = dict.fromkeys(text for row in rows for text in row.get("undefined", ()))
    return [text for text in texts if "no answers were generated" not in text]


def _cell(figure: Mapping[str, Any] | None) -> str:
    if not figure:
        return DASH
    return f"{figure['mean']:.3f}" + ("" if figure["sd"] is None else f" ± {figure['sd']:.3f}")
