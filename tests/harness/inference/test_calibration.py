"""Scores in units of held-out good pictures, grounded answers, and the table of classes and versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core_model.data import open_dataset
from core_model.data.generated_sets import write_aebad, write_mvtec, write_visa
from harness.inference import judging, quality, quality_plan, quality_report
from harness.inference.calibration import Calibration, answer_figures_of, opening, threshold_of
from harness.inference.version_table import by_version, version_table
from harness.job.declaration import JobError


def entry(score: float, level: float, *, defective: bool = False, **more: Any) -> dict[str, Any]:
    grid = np.full((6, 6), level, np.float16)
    grid[0, 0] += 0.5
    return {"score": score, "map": grid, "is_defective": defective, "answer": "No.", "yes": 0.1, **more}


def test_parts_of_unlike_units_are_joined_in_those_of_good_pictures() -> None:
    rng = np.random.default_rng(0)
    small = [entry(float(s), float(s)) for s in rng.normal(0.5, 0.1, 40)]
    large = [entry(1000 * e["score"] + 300, float(e["map"][3, 3]) * 100) for e in small]
    found = Calibration.of([[*small, entry(9.0, 9.0, defective=True)], [*large, entry(1.0, 1.0, defective=True)]])
    joined = found.join([small, large])
    scores = np.array([e["score"] for e in joined])
    assert scores.mean() == pytest.approx(0, abs=1e-6)
    alone = np.array([e["score"] for e in small])
    assert scores == pytest.approx(2 * (alone - alone.mean()) / alone.std(), rel=1e-4)  # both say the same: twice it
    assert np.mean([e["map"].mean() for e in joined]) == pytest.approx(0, abs=0.05)
    assert joined[0]["answer"] == "No."


def test_answers_begin_with_what_score_and_map_say() -> None:
    good = [{"score": float(s), "is_defective": False} for s in range(1, 11)]
    threshold = threshold_of(good, "score")
    assert 9 < threshold < 10
    grid = np.zeros((6, 6), np.float16)
    grid[5, 0] = 1
    assert opening(9.95, grid, threshold) == "Yes, there is a defect at the bottom left"
    assert opening(5.0, grid, threshold) == "No, there is no defect"
    said = [
        {"grounded": "Yes, there is a defect at the top of it.", "is_defective": True, "place": "top", "category": "c"},
        {"grounded": "Yes, there is a defect at the left.", "is_defective": True, "place": "top", "category": "c"},
        {"grounded": "No, there is no defect.", "is_defective": False, "place": "", "category": "c"},
    ]
    assert answer_figures_of(said) == {"grounded_accuracy": 1.0, "grounded_place_accuracy": 0.5}


def test_a_models_answer_goes_on_from_its_opening(tiny_model) -> None:
    import torch

    images = torch.rand(2, 3, 56, 56)
    openings = ["No, there is no defect", "Yes, there is a defect at the top"]
    answers = tiny_model.answer(images, ["tile"] * 2, ["Is it?"] * 2, openings=openings, max_new_tokens=4)
    assert all(answer.startswith(text) for answer, text in zip(answers, openings, strict=True))


@pytest.fixture
def tiny_model() -> Any:
    from core_model.build import build

    return build("tiny", seed=3).eval()


def test_the_calibrated_branch_needs_both_of_its_parts() -> None:
    with pytest.raises(JobError, match="decoder and memory"):
        quality_plan.Grid(branches=("decoder", "calibrated"), shots=(1,), memories=({"label": "a"},))
    grid = quality_plan.Grid(branches=("decoder", "memory", "calibrated"), shots=(1,), memories=({"label": "a"},))
    assert [row[0] for row in grid.variants()] == ["decoder", "memory", "calibrated"]


def test_peers_are_named_and_can_be_changed() -> None:
    made = quality_plan.memory_in("patchcore:coreset=0.1:joined=off:score=top1")
    assert made["label"].startswith("patchcore")
    assert (made["distance"], made["coreset"], made["joined"], made["score"]) == ("l2", 0.1, False, "top1")
    assert made["neighbourhood"] == 3
    assert quality_plan.memory_in("cosine:limit=100")["limit"] == 100
    with pytest.raises(JobError, match="on or off"):
        quality_plan.memory_in("l2:joined=yes")


def test_a_made_grid_is_judged_with_its_calibrated_rows() -> None:
    """`_with_calibrated` pairs the decoder with each memory of its own shots."""
    grid = quality_plan.Grid(branches=("decoder", "memory", "calibrated"), shots=(1, 4), memories=({"label": "a"},))
    looked = [variant for variant in grid.variants() if variant[0] != "calibrated"]
    passed = [[entry(1.0 * k + n, 0.1 * n) for n in range(5)] for k in range(3)]
    judged = [[entry(10.0 * k, 1.0)] for k in range(3)]
    kept, found = judging._with_calibrated(grid, looked, passed, judged)
    assert [len(each) for each in kept] == [5] * 5
    spread = np.std(range(5))
    assert found[3][0]["score"] == pytest.approx((0 - 2) / spread + (10 - 3) / spread, rel=1e-6)
    assert found[4][0]["score"] == pytest.approx((0 - 2) / spread + (20 - 4) / spread, rel=1e-6)


# -- Table 5 ---------------------------------------------------------------------------------------------


def answered(spec: str, right: float) -> list[dict[str, Any]]:
    """Entries of a data set's test pictures; the first `right` of the pictures of each class are answered rightly."""
    data = open_dataset(spec, split="test", image_size=32, seed=0)
    seen: dict[str, int] = {}
    samples = [data.get(index) for index in range(len(data))]
    totals = {name: sum(s.category == name for s in samples) for name in data.categories}
    made = []
    for sample in samples:
        seen[sample.category] = seen.get(sample.category, 0) + 1
        ok = seen[sample.category] <= right * totals[sample.category]
        says = sample.is_defective if ok else not sample.is_defective
        grid = sample.mask[0].numpy().astype(np.float16)
        made.append(
            {
                "id": sample.id, "category": sample.category, "kind": sample.kind, "place": sample.place,
                "is_defective": bool(sample.is_defective), "score": float(grid.max()), "map": grid,
                "mask": sample.mask[0].numpy() > 0, "answer": "Yes." if says else "No.", "yes": float(says),
                "question": "?",
            }
        )  # fmt: skip
    return made


def run(name: str, version: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    about = {"branch": "decoder", "memory": "", "shots": 0, **judging.figures_of(entries, [])}
    return {"run": name, "label": "Horovod", "workers": 1, "seed": 0, "job": {"version": version}, "figures": [about]}


@pytest.mark.parametrize("layout", ["mvtec", "visa", "aebad"])
def test_classes_by_versions_in_the_layout_of_the_studys_table(tmp_path: Path, layout: str) -> None:
    if layout == "aebad":
        folder = write_aebad(tmp_path)
    else:
        two = ("bottle", "cable")
        folder = write_mvtec(tmp_path, categories=two) if layout == "mvtec" else write_visa(tmp_path, objects=two)
    spec = f"{layout}:{folder}"
    classes = sorted({e["category"] for e in answered(spec, 1)})
    runs = [
        run("a", "", answered(spec, 1.0)),
        run("b", "v2", answered(spec, 0.5)),
        run("c", "v2", answered(spec, 1.0)),
    ]
    found = by_version({"runs": runs})
    assert list(found) == ["baseline", "V2"]
    assert list(found["V2"]) == classes
    assert len(classes) >= 2
    assert all(row["answer_accuracy"] == 100 for row in found["baseline"].values())
    assert all(row["image_auroc"] == 100 for row in found["V2"].values())
    text = version_table({"runs": runs})
    lines = text.splitlines()
    assert lines[2] == "| class | baseline | V2 |"
    mean = np.mean([found["V2"][name]["answer_accuracy"] for name in classes])
    assert lines[-1] == f"| mean right | 100.00 | {mean:.2f} |"
    assert 60 < mean < 90
    record = {
        "preset": "tiny", "data": spec, "held_out_pass": 0.9, "near_duplicates": {}, "runs": runs,
        "rows": quality.aggregate(runs),
    }  # fmt: skip
    assert text in quality_report.markdown(record)


def test_one_class_and_one_version_make_no_such_table() -> None:
    alone = {"classes": {"tile": {"answer_accuracy": 1.0}}, "branch": "decoder"}
    assert version_table({"runs": [{"run": "a", "job": {}, "figures": [alone]}]}) == ""
