"""The blocks of README.md that the program fills."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.analysis.known_faults.marks import write_mark
from harness.job.declaration import Job
from harness.publish.answers import COLUMNS, answers
from harness.publish.index import write_index
from harness.publish.readme_blocks import fill
from harness.records.record_files import append_jsonl, read_jsonl, runs_of
from tests.harness.made_runs import write_run, write_study

TEXT = """Typed by hand.

<!-- study real -->
what stood there before
<!-- end -->

<!-- study missing -->
<!-- end -->
"""


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    write_study(tmp_path / "results" / "real", repeats=2, workers=(1, 2))
    return path


def test_block_has_setting_versions_verdict_and_a_table_without_empty_columns(readme: Path) -> None:
    assert fill(readme, readme.parent / "results")
    text = readme.read_text()
    assert text.startswith("Typed by hand.\n\n<!-- study real -->\n*tiny on ")
    assert "what stood there before" not in text
    setting = text.splitlines()[3]
    assert "; torch " in setting
    assert setting.endswith("*")
    header, _, *rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header[:3]] == ["engine", "workers", "samples/s"]
    for column in range(1, len(header)):
        assert any(row[column].strip() not in ("", "–") for row in rows), header[column]  # noqa: RUF001
    assert "[report](results/real/report.html), [records](results/real)" in text
    assert "(not run yet: results/missing)" in text


def test_short_block_has_no_table_and_no_notes(readme: Path) -> None:
    readme.write_text("<!-- study real short -->\n<!-- end -->\n")
    (readme.parent / "results" / "real" / "notes.md").write_text("- because\n")
    assert fill(readme, readme.parent / "results")
    text = readme.read_text()
    assert text.startswith("<!-- study real short -->\n*tiny on ")
    assert "\n- Scaling efficiency at 2 workers, of each engine's own one worker" in text
    assert "[records](results/real)" in text
    assert "|" not in text
    assert "because" not in text
    assert text.endswith(")\n<!-- end -->\n")
    assert not fill(readme, readme.parent / "results")


def test_second_filling_changes_nothing(readme: Path) -> None:
    fill(readme, readme.parent / "results")
    assert not fill(readme, readme.parent / "results")


def test_answers_have_a_row_a_number_of_workers_and_name_who_is_faster(readme: Path) -> None:
    write_study(
        readme.parent / "results" / "three", repeats=3, workers=(1, 2), speeds={"deepspeed": 0.5, "horovod": 0.4}
    )
    write_study(readme.parent / "results" / "lone", repeats=2, workers=(2,), speeds={"horovod": 0.4})
    readme.write_text("<!-- answers three missing lone -->\nwhat stood there before\n<!-- end -->\n")
    assert fill(readme, readme.parent / "results")
    text = readme.read_text()
    assert "what stood there before" not in text
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert header == [name for name in COLUMNS if name != "efficiency"], "no plain torch ran"
    assert [row[2] for row in rows] == ["Horovod", "Horovod"]
    assert rows[0][0] == "[tiny](results/three/report.html), 8 samples in all"
    assert rows[0][1].startswith("2 workers on ")
    assert rows[0][3].startswith("+24.8 % (")
    assert rows[0][5].startswith("ZeRO-1 ")
    assert rows[1][5] == "–"  # noqa: RUF001
    assert not fill(readme, readme.parent / "results")


def test_answers_tell_alike_from_unknown(tmp_path: Path) -> None:
    same = write_study(tmp_path / "same", repeats=3, workers=(2,), speeds={"deepspeed": 0.5, "horovod": 0.5})
    few = tmp_path / "few"
    for repeat, (deepspeed_s, horovod_s) in enumerate([(0.5, 0.3), (0.4, 0.6)]):
        for backend, step_s in (("deepspeed", deepspeed_s), ("horovod", horovod_s)):
            write_run(few, Job(backend=backend, slots=2, preset="tiny", repeat=repeat), step_s=step_s, images=6)
    told = {row[0].split("/")[0].split("(")[1]: row[2] for row in answers([same, few], tmp_path).rows}
    assert told["same"] == "alike"
    assert told["few"] == "undecided"


def test_superseded_study_shows_its_mark_and_no_speed(readme: Path) -> None:
    results = readme.parent / "results"
    for run in runs_of(results / "real"):
        rows = list(read_jsonl(run / "steps.jsonl"))
        rows[-1].update(data_s=3 * rows[-1]["step_s"], step_s=4 * rows[-1]["step_s"])
        (run / "steps.jsonl").unlink()
        append_jsonl(run / "steps.jsonl", rows)
    assert write_mark(results / "real") is not None
    fill(readme, results)
    assert answers([results / "real"], readme.parent).rows == []
    for text in (readme.read_text(), write_index(results).read_text()):
        assert "**Superseded: its speed" in text
        assert "a batch too many" in text
        assert "samples/s" not in text
        assert "faster" not in text
        assert "memory" in text  # what does not depend on it stays
