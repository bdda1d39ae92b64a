"""Files that people write too: only what stands between the program's own markers is changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.cli import main
from harness.job.declaration import JobError
from harness.publish import marked_text
from harness.publish.index import write_index
from harness.publish.readme_blocks import fill
from tests.harness.commands.test_bad_input import refused
from tests.harness.made_runs import write_study

MINE = b"# My thesis\r\n\r\nNothing here is from a program.\r\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_study(tmp_path / "mine" / "real", repeats=1, workers=(1,))
    return tmp_path / "mine"


def test_a_readme_that_is_not_ours_is_left_alone(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (results / "README.md", results.parent / "README.md"):
        path.write_bytes(MINE)
    said = refused(capsys, "results", "index", "--results", str(results))
    assert f"{results}/README.md: it is not from this program and left alone" in said
    assert "<!-- studies -->" in said
    (results / "README.md").unlink()
    main(["results", "index", "--results", str(results)])
    assert capsys.readouterr().out == f"{results}/README.md\n"
    assert (results.parent / "README.md").read_bytes() == MINE


def test_index_stands_between_its_markers(results: Path) -> None:
    path = results / "README.md"
    path.write_bytes(MINE + b"<!-- studies -->\r\nold\r\n<!-- end -->\r\nMore of mine.\r\n")
    os.chmod(path, 0o664)
    write_index(results)
    text = path.read_bytes()
    assert text.startswith(MINE + b"<!-- studies -->\r\n# Studies\r\n")
    assert text.endswith(b"\r\n<!-- end -->\r\nMore of mine.\r\n")
    assert b"## real" in text
    assert b"old\r\n" not in text
    assert path.stat().st_mode & 0o777 == 0o664
    write_index(results)
    assert path.read_bytes() == text


def test_an_index_from_before_the_markers_gets_them(results: Path) -> None:
    path = results / "README.md"
    path.write_text("# Studies\n\nWritten by `harness index` from the records in this folder; do not edit. More\n")
    text = write_index(results).read_text()
    assert text.startswith("<!-- studies -->\n# Studies\n")
    assert text.endswith("<!-- end -->\n")
    assert text.count("# Studies") == 1


def test_a_link_stays_a_link(results: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.md").write_text("<!-- studies -->\n<!-- end -->\n")
    (results / "README.md").symlink_to(tmp_path / "kept.md")
    write_index(results)
    assert (results / "README.md").is_symlink()
    assert "## real" in (tmp_path / "kept.md").read_text()


@pytest.mark.parametrize("behind", ["", "\n<!-- study other -->\n<!-- end -->\n"])
def test_a_marker_without_an_end_is_named_and_nothing_is_lost(results: Path, behind: str) -> None:
    readme = results.parent / "README.md"
    text = f"<!-- study real -->\nMine, for ever.\n{behind}"
    readme.write_text(text)
    with pytest.raises(JobError, match=r"README.md: line 1: '<!-- study real -->' has no '<!-- end -->' behind it"):
        fill(readme, results)
    assert readme.read_text() == text


def test_a_part_about_other_results_keeps_its_text(results: Path) -> None:
    readme = results.parent / "README.md"
    text = "<!-- study elsewhere -->\nfigures\n<!-- end -->\n<!-- answers elsewhere ... -->\ntable\n<!-- end -->\n"
    readme.write_text(text)
    assert not fill(readme, results)
    assert readme.read_text() == text


def test_what_is_no_text_is_left_alone(results: Path) -> None:
    readme = results.parent / "README.md"
    readme.write_bytes(b"<!-- study real -->\n\xff\n<!-- end -->\n")
    with pytest.raises(JobError, match="not UTF-8"):
        fill(readme, results)
    with pytest.raises(JobError, match="cannot be read"):
        marked_text.read(results)


def test_no_results_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in refused(capsys, "results", "index", "--results", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
