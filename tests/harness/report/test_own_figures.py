"""What a user's own evaluate returned stands in the report, and nothing of this project's pictures does."""

from __future__ import annotations

import json
from pathlib import Path

from harness.analysis.comparison import summarize_study
from harness.job.declaration import Job
from harness.records.record_files import EVALUATION, RESULT
from harness.report.formats import write_report
from harness.report.quality_tables import own_figures_table, quality_table
from tests.harness.made_runs import write_run


def test_figures_of_a_users_job_and_none_of_ours(tmp_path: Path) -> None:
    study = tmp_path / "mine"
    for repeat, figure in ((0, 0.25), (1, 0.75)):
        job = Job(backend="ddp", slots=2, seed=repeat, repeat=repeat, preset="/x/my_job.py:make_job", data="own")
        folder = write_run(study, job)
        for file, changed in (
            (RESULT, {"evaluation": {"accuracy": figure}}),
            (EVALUATION, {"mean": {"accuracy": figure}, "categories": {}, "samples": []}),
        ):
            (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changed))
    comparison = summarize_study(study)
    table = own_figures_table(comparison)
    assert table is not None
    assert table.columns == ["engine", "workers", "accuracy"]
    assert table.rows[0][1:] == ["2", "0.5000 (0.2500 to 0.7500)"]
    assert quality_table(comparison) is None
    page = write_report(comparison, tmp_path / "report.html").read_text()
    assert "AUROC" not in page
    assert "my_job.py:make_job" in page


def test_no_table_for_a_preset(tmp_path: Path) -> None:
    write_run(tmp_path / "ours", Job(backend="ddp", slots=2, preset="tiny"))
    assert own_figures_table(summarize_study(tmp_path / "ours")) is None
