"""`harness model quality`: what is asked for, how runs become rows, and how records of several machines are merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.inference import judging, quality, quality_plan, quality_report
from harness.job.declaration import Job, JobError
from harness.job.options import names_in
from harness.records.run_record import RecordedRun
from tests.harness.made_runs import write_run


def figures(branch: str, auroc: float, **more: object) -> dict:
    return {"branch": branch, "memory": "", "shots": 0, "image_auroc": auroc, "kinds": {}, **more}


def run(name: str, *rows: dict, label: str = "Horovod") -> dict:
    return {"run": name, "label": label, "workers": 2, "seed": 0, "figures": list(rows)}


def test_shots_and_memories_are_read_and_bad_ones_named() -> None:
    assert quality_plan.shots_in("1, 4,all") == (1, 4, quality_plan.ALL)
    memory = quality_plan.memory_in("l2:blocks=1,2:rotations=0:weight=0.5")
    assert memory == {
        "label": "l2:blocks=1,2:rotations=0:weight=0.5",
        "distance": "l2",
        "blocks": (1, 2),
        "rotations": (0,),
        "weight": 0.5,
    }
    for text in ("0", "some"):
        with pytest.raises(JobError, match="--shots"):
            quality_plan.shots_in(text)
    with pytest.raises(JobError, match="colour"):
        quality_plan.memory_in("l2:colour=1")
    with pytest.raises(JobError, match="decoders"):
        names_in("decoders", ("decoder",), "branch")


def test_the_decoder_is_judged_once_the_memory_for_every_number_of_shots() -> None:
    grid = quality_plan.Grid(branches=("decoder", "memory"), shots=(1, 4), memories=({"label": "a"}, {"label": "b"}))
    rows = [(branch, shots, memory.get("label")) for branch, shots, memory in grid.variants()]
    assert rows == [("decoder", 0, None), *(("memory", shots, label) for label in "ab" for shots in (1, 4))]


def test_rows_hold_mean_and_spread_of_an_engines_runs_alone() -> None:
    runs = [
        run("a", figures("decoder", 0.8)),
        run("b", figures("decoder", 0.9)),
        run("c", figures("decoder", 0.5), label="DDP"),
    ]
    horovod, ddp = quality.aggregate(runs)
    assert horovod["image_auroc"] == {"mean": pytest.approx(0.85), "sd": pytest.approx(0.0707, abs=1e-4), "n": 2}
    assert ddp["image_auroc"] == {"mean": 0.5, "sd": None, "n": 1}
    assert "pixel_auroc" not in ddp


def test_runs_of_unlike_jobs_have_labels_of_their_own(tmp_path: Path) -> None:
    job = Job(backend="horovod", preset="tiny")
    folders = [
        write_run(tmp_path / "s", job.with_(run=f"r{number}", seed=number, steps=steps))
        for number, steps in enumerate((40, 40, 60))
    ]
    told = []
    for found in map(RecordedRun, folders):
        about = run(found.name, figures("decoder", 0.8), label=quality.label_of(found))
        told.append(about | {"job": {"steps": found.job["steps"]}})
    assert quality.labels_of(told) == ["Horovod, steps 40", "Horovod, steps 40", "Horovod, steps 60"]
    assert set(quality.labels_of(told[:2])) == {"Horovod"}
    files = [record(tmp_path / "a.json", told[:2]), record(tmp_path / "b.json", told[2:])]  # on two machines
    assert [(row["label"], row["runs"]) for row in quality.merge(files)["rows"]] == [
        ("Horovod, steps 40", 2),
        ("Horovod, steps 60", 1),
    ]


def record(path: Path, runs: list[dict], **more: object) -> Path:
    base = {"schema": 1, "preset": "small", "data": "d", "grid": {}, "held_out_pass": 0.9, "near_duplicates": {}}
    path.write_text(json.dumps({**base, "runs": runs, "rows": quality.aggregate(runs), **more}))
    return path


def test_records_of_two_machines_are_merged_each_run_once(tmp_path: Path) -> None:
    first = record(tmp_path / "a.json", [run("x", figures("decoder", 0.1)), run("y", figures("decoder", 0.7))])
    second = record(tmp_path / "b.json", [run("x", figures("decoder", 0.9))])
    merged = quality.merge([first, second])
    assert [row["image_auroc"]["mean"] for row in merged["rows"]] == [pytest.approx(0.8)]
    assert "0.800 ± 0.141" in quality_report.markdown(merged)
    other = record(tmp_path / "c.json", [], grid={"shots": [1]})
    with pytest.raises(JobError, match="another grid"):
        quality.merge([first, other])


def test_thresholds_come_from_the_held_out_pictures() -> None:
    import numpy as np

    def entry(name: str, defective: bool, score: float, yes: float) -> dict:
        return {
            "id": name, "category": "c", "kind": "scratch" if defective else "good", "is_defective": defective,
            "place": "", "score": score, "map": np.full((4, 4), score, np.float16),
            "mask": np.full((4, 4), defective), "answer": "No.", "yes": yes, "question": "?",
        }  # fmt: skip

    test = [entry("a", False, 0.2, 0.1), entry("b", True, 0.4, 0.3), entry("c", True, 0.6, 0.05)]
    held_out = [{"score": 0.3, "yes": 0.2, "is_defective": False}] * 10
    made = judging.figures_of(test, held_out)
    assert made["held_out_accuracy"] == 1.0  # 0.4 and 0.6 are above 0.3, 0.2 is not
    assert made["answer_held_out_accuracy"] == pytest.approx(2 / 3)  # 0.05 is not above 0.2
    assert made["answer_accuracy"] == pytest.approx(1 / 3)
    assert made["answer_auroc"] == 0.5
    assert made["held_out_accuracy"] is not None
    assert judging.figures_of(test, [])["held_out_accuracy"] is None
    simulated = [{"score": 9.0, "yes": 0.9, "is_defective": True}, {"score": 0.1, "yes": 0.9, "is_defective": True}]
    with_simulated = judging.figures_of(test, [*held_out, *simulated])
    assert with_simulated["held_out_auroc"] == 0.5
    assert with_simulated["held_out_accuracy"] == made["held_out_accuracy"]  # defects decide no threshold
