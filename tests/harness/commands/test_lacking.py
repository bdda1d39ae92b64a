"""Runs on data without masks, without a test or with half a test: what is missing is said, no figure is made up."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from core_model.data.generated_sets import write_mvtec
from core_model.metrics import evaluate
from harness.analysis.caveats import findings
from harness.analysis.comparison import summarize_study
from harness.cli import cli, main
from harness.inference import judging, quality, quality_report
from harness.protocol.run_summary import end_lines
from harness.report.quality_tables import category_table, quality_table


def entry(number, *, mask, defective=True):
    rng = np.random.default_rng(number)
    return {
        "id": f"s{number}", "category": "plate", "kind": "dent" if defective else "good", "is_defective": defective,
        "place": "", "score": float(number), "map": rng.random((64, 64)).astype(np.float16), "mask": mask,
        "answer": "Yes, there is.", "yes": 0.5,
    }  # fmt: skip


def entries(count=3, good=3):
    empty = np.zeros((64, 64), bool)
    rows = [entry(number, mask=empty, defective=False) for number in range(good)]
    return rows + [entry(good + number, mask=None) for number in range(count)]


def test_without_masks_image_figures_are_computed_and_pixel_figures_undefined():
    figures = evaluate(entries())
    row = figures["categories"]["plate"]
    assert row["image_auroc"] == 1.0
    for name in ("pixel_auroc", "aupro", "pixel_f1_max", "pixel_auroc_defective", "place_accuracy"):
        assert row[name] is None
        assert figures["mean"][name] is None
        assert figures["undefined"][f"plate: {name}"] == "no masks"
    assert row["kinds"]["dent"]["pixel_auroc_defective"] is None
    assert row["kinds"]["dent"]["image_auroc"] == 1.0
    assert not [text for text in figures["warnings"] if "empty mask" in text]


def test_quality_says_why_and_takes_half_a_test():
    found = [{"branch": "decoder", "memory": "", "shots": 0, **judging.figures_of(entries(), [])}]
    run = {"run": "a", "label": "engine", "workers": 1, "figures": found}
    record = {
        "preset": "tiny",
        "data": "mvtec:DIR",
        "held_out_pass": 0.9,
        "rows": quality.aggregate([run]),
        "runs": [run],
    }
    none = {"share_of_good": 0.5, "share_of_defective": None, "auroc_of_distance": None}
    text = quality_report.markdown({**record, "near_duplicates": {**none, "correlation": 0.98, "training_pictures": 6}})
    assert "undefined: no masks" in text
    assert "nan" not in text.lower()
    assert judging._share(np.array([])) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a job of two steps on one process; `harness run` as a user starts it."""

    def start(data, *more):
        results = tmp_path_factory.mktemp("results")
        arguments = ["run", "--backend", "single", "--preset", "tiny", "--steps", "2", "--data", f"mvtec:{data}"]
        arguments += ["--global-batch", "2", "--results", str(results), "--study", "s", *more]
        outcome = CliRunner().invoke(cli, arguments)
        return outcome, next(iter((results / "s").glob("*/result.json")), results / "none").parent

    return start


def test_a_run_without_masks(tmp_path, run):
    data = write_mvtec(tmp_path)
    shutil.rmtree(data / "plate/ground_truth")
    outcome, folder = run(data)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.index("warning: no masks of plate") < outcome.output.index("ok in")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    assert evaluation["mean"]["pixel_auroc"] is None
    assert isinstance(evaluation["mean"]["image_auroc"], float)
    assert evaluation["undefined"]["plate: pixel_auroc"] == "no masks"
    assert "no masks of plate: pixel AUROC, AUPRO and places are undefined" in result["warnings"]
    assert "pixel AUROC undefined: no masks" in end_lines(folder)[0]
    comparison = summarize_study(folder.parent)
    for table in (quality_table(comparison), category_table(comparison)):
        assert table is not None
        assert "undefined: no masks." in table.note
    assert any("no masks of plate" in finding.text for finding in findings(comparison))
    page = CliRunner().invoke(cli, ["report", str(folder.parent), "--format", "html"])
    assert page.exit_code == 0, page.output
    assert CliRunner().invoke(cli, ["results", "check", str(folder.parent)]).exit_code == 0
    shown = CliRunner().invoke(cli, ["model", "eval", str(folder)])
    assert shown.exit_code == 0, shown.output
    assert "no masks" in shown.output


def test_a_run_with_train_good_alone(tmp_path, run, capsys):
    data = write_mvtec(tmp_path)
    shutil.rmtree(data / "plate/ground_truth")
    shutil.rmtree(data / "plate/test")
    with pytest.raises(SystemExit) as stop:
        main(["run", "--backend", "single", "--preset", "tiny", "--data", f"mvtec:{data}", "--results", str(tmp_path)])
    assert stop.value.code == 2
    assert "or train without an evaluation (--eval-samples -1)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plate"]
    outcome, folder = run(data, "--eval-samples", "-1")
    assert outcome.exit_code == 0, outcome.output
    assert json.loads((folder / "result.json").read_text())["status"] == "ok"


def test_a_one_sided_test_is_said_before_the_training_and_in_the_result(tmp_path, run):
    data = write_mvtec(tmp_path)
    for kind in ("dent", "hole"):
        shutil.rmtree(data / "plate/test" / kind)
    (data / "plate/train/good/notes.txt").write_text("x")
    outcome, folder = run(data)
    assert outcome.exit_code == 0, outcome.output
    said = "all test pictures of plate are good: image and pixel AUROC and F1 are undefined"
    assert outcome.output.index(f"warning: {said}") < outcome.output.index("ok in")
    warnings = json.loads((folder / "result.json").read_text())["warnings"]
    assert any(said in text for text in warnings)
    assert any("notes.txt" in text for text in warnings)
    assert "undefined: needs both good and defective" in end_lines(folder)[0]
