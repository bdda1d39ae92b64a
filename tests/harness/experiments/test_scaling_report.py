"""The table and the figure of a scaling study on virtual nodes, from rows whose efficiencies are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.experiments.virtual_scaling import report
from harness.publish.experiment_headlines import headline_of


def row(nodes: int, scaling: str, step_s: float, **changes: Any) -> dict[str, Any]:
    parameters = 4e6
    made = {
        "engine": "deepspeed-z2",
        "nodes": nodes,
        "rate": "1gbit",
        "scaling": scaling,
        "repeat": 0,
        "width": 16384,
        "run": "r",
        "wait_s": 0.1 if scaling == "weak" else 0.1 / nodes,
        "link_bytes_per_s": 125e6,
        "step_s": [step_s, step_s * 0.99, step_s * 1.01],
        "parameter_bytes": parameters,
        "sent_bytes_per_step": 1.05 * 2 * (nodes - 1) / nodes * parameters,
        "ring_bytes": 2 * (nodes - 1) / nodes * parameters,
    }
    return {**made, **changes}


@pytest.fixture
def record() -> dict[str, Any]:
    failed = row(4, "weak", 0.2)
    failed = {key: failed[key] for key in failed if key not in ("step_s", "sent_bytes_per_step")} | {"failed": "cut"}
    rows = [row(1, "weak", 0.11), row(2, "weak", 0.22), failed, row(1, "strong", 0.12), row(2, "strong", 0.08)]
    return {"rows": rows, "cores": 2}


def test_efficiency_is_of_the_kind_of_scaling(record: dict[str, Any]) -> None:
    found = [report.efficiency(each, record["rows"]) for each in record["rows"]]
    values = [None if share is None else share.value for share in found]
    assert values == [1.0, pytest.approx(0.5), None, 1.0, pytest.approx(0.75)]


def test_efficiency_is_of_total_throughput_with_an_interval() -> None:
    """A long step counts: the median would hide it."""
    steady, uneven = [0.1] * 20, [0.1] * 18 + [0.6] * 2
    rows = [{**row(1, "weak", 0.1), "step_s": steady}, {**row(2, "weak", 0.1), "step_s": uneven}]
    share = report.efficiency(rows[1], rows)
    assert share.value == pytest.approx(2.0 / 3.0)
    assert share.low < share.value <= share.high <= 1.0
    assert str(share).startswith("67 % (")
    text = report.table({"rows": rows, "cores": 2}).rows[1]
    assert text[5].startswith("150 (100 to 100)")
    assert text[6] == str(share)


def test_a_failed_one_node_row_gives_no_efficiency(record: dict[str, Any]) -> None:
    rows = [{**record["rows"][0], "failed": "no"}, record["rows"][1]]
    assert report.efficiency(rows[1], rows) is None


def test_table_and_figure_say_what_was_emulated(record: dict[str, Any], tmp_path: Path) -> None:
    paths = report.write(record, tmp_path)
    assert [path.name for path in paths] == ["scaling.md", "scaling.png", "scaling.svg"]
    text = paths[0].read_text()
    assert "4 nodes share 2 cores, so computing is emulated by a wait of 100 ms a step" in text
    assert (
        "| DeepSpeed ZeRO-2 | 1 M | 2 | 1gbit | weak | 220 (219 to 221) | 50 % (no interval) | 55 % | 4.00 | 1.05 |"
        in text
    )
    assert "failed: cut" in text
    svg = paths[2].read_text()
    assert "strong scaling, 1 Gbit/s links" in svg
    first = paths[1].read_bytes()
    assert report.write(record, tmp_path)[1].read_bytes() == first, "the same records, the same figure"


def test_one_node_alone_has_a_table_and_no_figure(record: dict[str, Any], tmp_path: Path) -> None:
    alone = {**record, "rows": record["rows"][:1]}
    assert [path.name for path in report.write(alone, tmp_path)] == ["scaling.md"]


def test_headline_names_the_engines_at_the_most_nodes(record: dict[str, Any], tmp_path: Path) -> None:
    rows = [each for each in record["rows"] if "failed" not in each]
    text = report.headline({**record, "rows": rows})
    assert text.startswith("Weak-scaling efficiency on 2 nodes: DeepSpeed ZeRO-2 50 % (no interval) (1 Gbit/s links). ")
    assert "share 2 cores" in text
    (tmp_path / "scaling.json").write_text(json.dumps({"schema": 1, **record, "rows": rows, "headline": text}))
    assert headline_of(tmp_path).sentence == text
