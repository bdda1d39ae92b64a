"""The table of versions in docs/install.md is what pyproject.toml, the pins and the records say."""

from __future__ import annotations

import json
from pathlib import Path

from harness.common.text_table import markdown
from harness.publish.versions_block import fill, table

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_holds_what_the_program_writes() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    written = page.partition("<!-- versions -->\n")[2].partition("<!-- end -->")[0]
    assert written == markdown(table(ROOT, ROOT / "results")), "run `harness results index`"


def test_rows_come_from_the_files_they_name(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "versions.sh").write_text("TORCH_VERSION=9.1  # x\nHOROVOD_VERSION=0.9\n")
    (tmp_path / "constraints.txt").write_text("# pins\ndeepspeed==8.2\nJinja2==1\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nrequires-python = ">=3.11,<3.13"\ndependencies = ["torch>=9", "deepspeed==8.2", "cffi"]\n'
    )
    for name, gpus, torch in (("gpu", [{"name": "a"}], "9.0+cu1"), ("cpu", [], "9.1"), ("other", [], "9.10")):
        (run := tmp_path / "results" / name / "r").mkdir(parents=True)
        (run / "job.json").write_text("{}")
        told = {"schema": 1, "python": "3.12.3", "versions": {"torch": torch}, "gpus": {"devices": gpus}}
        (run / "environment.json").write_text(json.dumps(told))
    rows = {row[0]: row[1:] for row in table(tmp_path, tmp_path / "results").rows}
    assert rows["torch"] == [">=9", "9.1, or a CUDA build that is there", "9.1, 9.10", "9.0"]
    assert rows["DeepSpeed"][:2] == ["==8.2", "8.2"]
    assert rows["Horovod"][:2] == ["0.9", "0.9"]
    assert rows["Python"] == [">=3.11, <3.13", "the machine's own", "3.12.3", "3.12.3"]
    (page := tmp_path / "install.md").write_text("a\n<!-- versions -->\nold\n<!-- end -->\nb\n")
    assert fill(page, tmp_path, tmp_path / "results")
    assert not fill(page, tmp_path, tmp_path / "results")
    assert "old" not in page.read_text()
