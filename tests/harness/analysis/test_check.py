"""`harness results check`: whoever changes a record is found out; schemas fit what is really written."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.analysis.check import check_runs
from harness.analysis.comparison import summarize_study
from harness.commands.results.check import check
from harness.job.declaration import Job
from harness.records.soundness import SCHEMAS, schema_errors, validator
from tests.harness.made_runs import write_run, write_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = write_study(tmp_path / "s", repeats=1, workers=(2,), steps=40)
    write_run(folder, Job(backend="ddp", slots=2, preset="tiny"), fail="rank 1: killed")
    (folder / "comparison.csv").write_text(summarize_study(folder).csv())
    return folder


def change(path: Path, edit) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def test_honest_study_holds(study: Path) -> None:
    assert check_runs([study]) == []
    done = CliRunner().invoke(check, [str(study)])
    assert done.exit_code == 0
    assert "3 runs checked: every record and every figure holds" in done.output


def test_every_schema_is_a_schema_and_job_fits_its_own() -> None:
    names = [path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.schema.json")]
    assert sorted(names) == [
        "environment",
        "evaluation",
        "fit",
        "resources",
        "result",
        "split",
        "steps",
        "study",
    ]
    for name in [*names, "job"]:
        validator(name)
    assert schema_errors("job", {"schema": 1, **Job().to_dict()}) == []
    assert schema_errors("job", {"schema": 1, **Job().to_dict(), "nodes": 0}) != []


EDITS = {
    "faster": ("result.json", lambda v: v["throughput"]["samples_per_s"].update(median=99.0), "samples_per_s.median"),
    "better mean": ("evaluation.json", lambda v: v["mean"].update(image_auroc=0.999), "mean figures"),
    "better category": (
        "evaluation.json", lambda v: v["categories"]["brick"].update(image_auroc=0.999), "image AUROC of brick",
    ),
    "better answers": (
        "evaluation.json", lambda v: v["categories"]["brick"].update(answer_accuracy=1.0), "answer accuracy of brick",
    ),
    "a sample twice": ("evaluation.json", lambda v: v["samples"].append(v["samples"][0]), "comes twice"),
    "another job": ("job.json", lambda v: v.update(lr=0.5), "contract: lr"),
    "another machine": ("environment.json", lambda v: v["cpu"].update(model="Other"), "contract: cpu"),
    "wrong type": ("result.json", lambda v: v.update(wall_s="long"), "wall_s"),
    "no reason": ("result.json", lambda v: v.update(status="failed", reason=""), "reason"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_changed_record_is_found(study: Path, name: str) -> None:
    file, edit, expected = EDITS[name]
    change(next(study.glob("horovod-*")) / file, edit)
    problems = check_runs([next(study.glob("horovod-*"))])
    assert any(expected in problem.text for problem in problems), [problem.text for problem in problems]


def test_lost_step_is_found(study: Path) -> None:
    path = next(study.glob("horovod-*")) / "steps.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:20] + lines[21:]))
    assert any("missing, repeated or out of order" in problem.text for problem in check_runs([path.parent]))


def test_changed_comparison_is_found(study: Path) -> None:
    path = study / "comparison.csv"
    path.write_text(path.read_text().replace("Horovod", "Horovod++"))
    (problem,) = check_runs([study])
    assert problem.where == "s/comparison.csv"
    assert "label is not what the records give" in problem.text
    assert CliRunner().invoke(check, [str(study)]).exit_code == 1


def test_column_of_another_version_is_no_problem(study: Path) -> None:
    path = study / "comparison.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0] + ",new", *(line + ",1" for line in lines[1:])]) + "\n")
    assert check_runs([study]) == []


def test_damaged_file_is_named(study: Path) -> None:
    path = next(study.glob("horovod-*")) / "result.json"
    path.write_text('{"schema": 1, ')
    problems = check_runs([path.parent])
    assert problems[0].where.endswith("/result.json")


def test_killed_run_is_reported_as_such(study: Path) -> None:
    (next(study.glob("horovod-*")) / "result.json").unlink()
    assert any("is missing: the run was killed" in problem.text for problem in check_runs([study]))
