"""The blocks of README.md that the program fills."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.readme import fill
from tests.harness.made_runs import write_study

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
    assert "\n- Scaling efficiency from 1 to 2 workers" in text
    assert "[records](results/real)" in text
    assert "|" not in text
    assert "because" not in text
    assert text.endswith(")\n<!-- end -->\n")
    assert not fill(readme, readme.parent / "results")


def test_second_filling_changes_nothing(readme: Path) -> None:
    fill(readme, readme.parent / "results")
    assert not fill(readme, readme.parent / "results")
