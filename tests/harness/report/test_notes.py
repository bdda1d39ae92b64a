"""What the authors say of a study stands in every form of its report, and is told apart from what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.analysis.comparison import summarize_study
from harness.analysis.cost import Prices
from harness.publish.index import write_index
from harness.report.formats import render
from harness.report.notes import HEADING, markdown, notes_in
from tests.harness.made_runs import write_study

TEXT = """Words before are for whoever edits the file.

- Horovod's synchronize() blocks the host
  (horovod/torch/mpi_ops.py).
- A second <note>.
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = write_study(tmp_path / "results" / "real", repeats=1, workers=(2,))
    (folder / "notes.md").write_text(TEXT)
    return folder


def test_another_study_is_linked_from_where_the_note_is_shown() -> None:
    note = "See ../h200-x4-llama, and a/../b is none."
    assert markdown([note])[-1] == "- See [h200-x4-llama](../h200-x4-llama), and a/../b is none."
    assert markdown([note], "results/")[-1].startswith("- See [h200-x4-llama](results/h200-x4-llama),")


def test_note_may_go_on_over_indented_lines(study: Path) -> None:
    assert notes_in(study) == [
        "Horovod's synchronize() blocks the host (horovod/torch/mpi_ops.py).",
        "A second <note>.",
    ]
    (study / "notes.md").unlink()
    assert notes_in(study) == []


def test_notes_stand_in_page_markdown_json_and_index(study: Path) -> None:
    comparison, prices = summarize_study(study), Prices.load(None)
    page = render(comparison, prices, "html")
    assert f"<summary>{HEADING}</summary>" in page
    assert "A second &lt;note&gt;." in page
    text = render(comparison, prices, "md")
    assert f"{HEADING}:\n\n- Horovod's synchronize() blocks the host" in text
    assert json.loads(render(comparison, prices, "json"))["notes"] == notes_in(study)
    assert HEADING in write_index(study.parent).read_text()


def test_report_without_notes_has_no_place_for_them(study: Path) -> None:
    (study / "notes.md").unlink()
    assert HEADING not in render(summarize_study(study), Prices.load(None), "html")
