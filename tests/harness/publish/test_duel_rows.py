"""The README's table of duels: what it shows is what the blocks of the records give."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from harness.common.paths import PROJECT
from harness.publish.duel_rows import LAST, side_by_side
from harness.publish.readme_blocks import fill

STUDIES = [PROJECT / "results" / name for name in ("h200-x2-llama-weak-duel", "h200-x2-7b-weak-duel")]


def cells(studies: list[Path]) -> list[dict[str, str]]:
    table = side_by_side(studies, PROJECT)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_efficiency_is_total_throughput_over_that_of_plain_torch(study: Path) -> None:
    """Recomputed from the blocks: mean over duels of the log ratio of total rates, per worker."""
    blocks = json.loads((study / "duel.json").read_text())["blocks"]

    def rate(engine: str, duel: int) -> float:
        mine = [block for block in blocks if block["engine"] == engine and block["duel"] == duel]
        return sum(block["samples"] for block in mine) / sum(block["seconds"] for block in mine)

    duels = sorted({block["duel"] for block in blocks})
    logs = [math.log(rate("horovod@2", duel) / rate("single@1", duel)) for duel in duels]
    share = math.exp(sum(logs) / len(logs)) / 2
    assert cells([study])[0]["Horovod"].startswith(f"{share * 100:.1f} % (")


def test_one_row_a_study_and_the_question_last() -> None:
    found = cells(STUDIES)
    assert len(found) == 2
    assert "DeepSpeed ZeRO-1: faster" in found[0][LAST]
    assert found[1]["PyTorch FSDP2"] == "–"  # noqa: RUF001
    assert "2x NVIDIA H200" in found[0]["on"]


def test_settings_have_no_column_and_one_duel_no_figure(tmp_path: Path) -> None:
    def changed(name: str, source: Path, change: Any) -> Path:
        record = json.loads((source / "duel.json").read_text())
        change(record)
        (tmp_path / name).mkdir()
        (tmp_path / name / "duel.json").write_text(json.dumps(record))
        return tmp_path / name

    def no_interval(record: dict[str, Any]) -> None:
        for item in record["differences"]:
            item["low"] = item["high"] = None
            if item.get("efficiency"):
                item["efficiency"] |= {"low": None, "high": None}

    row = cells([changed("one", STUDIES[0], no_interval)])[0]
    assert {row["Horovod"], row[LAST]} == {"–"}  # noqa: RUF001
    settings = side_by_side([PROJECT / "results" / "h200-x2-llama-settings-duel"], PROJECT)
    assert not [name for name in settings.columns if "overlap" in name or "groups" in name]


def test_a_marked_block_is_filled_and_stays_where_nothing_was_fought(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"<!-- duels {STUDIES[0].name} -->\n<!-- end -->\n<!-- duels gone -->\nold\n<!-- end -->\n")
    assert fill(readme, PROJECT / "results")
    text = readme.read_text()
    assert "| Horovod |" in text
    assert "old\n" in text
