"""One speed for one engine: where duels were fought, no table, plot or sentence shows that of a single training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from harness.analysis import judged_speed
from harness.analysis.caveats import findings
from harness.analysis.comparison import Comparison, summarize_study
from harness.analysis.cost import Prices
from harness.analysis.duels.throughput import meanwhile, rates
from harness.analysis.verdict import verdict
from harness.commands.last_screen import last_screen
from harness.publish.answers import answers
from harness.report.charts.data import series_of
from harness.report.comparison_table import comparison_table
from harness.report.formats import render
from harness.report.speed_tables import difference_table, runs_table
from tests.harness.made_duels import BATCH, STEADY, record, write_duels
from tests.harness.made_runs import write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training a cell, in which DeepSpeed is twice as fast; duels, in which Horovod is 10 % faster."""
    folder = tmp_path_factory.mktemp("results") / "both"
    write_study(folder, speeds={"deepspeed": 0.25, "horovod": 0.5}, repeats=1, steps=24)
    return write_duels(folder)


@pytest.fixture(scope="module")
def comparison(study: Path) -> Comparison:
    return summarize_study(study)


def test_throughput_of_duels_is_total_samples_over_total_seconds_and_its_ratio_the_difference() -> None:
    made = record()
    found = rates(made)
    logs = [math.log(BATCH / seconds) for seconds in STEADY["horovod@2"]]
    assert found["horovod@2"].value == pytest.approx(math.exp(sum(logs) / 4))
    assert found["horovod@2"].low < found["horovod@2"].value < found["horovod@2"].high
    assert found["horovod@2"].duels == 4
    pair = next(row for row in made["differences"] if (row["a"], row["b"]) == ("deepspeed ZeRO-1@2", "horovod@2"))
    ratio = found["horovod@2"].value / found["deepspeed ZeRO-1@2"].value
    assert ratio == pytest.approx(1 + pair["value"])
    alone = rates(record({name: values[:1] for name, values in STEADY.items()}))
    assert alone["horovod@2"].low is None


def test_cells_hold_the_duels_speed_and_plain_torch_as_a_row(comparison: Comparison) -> None:
    cells = judged_speed.cells(comparison).set_index(["label", "workers"])
    found = rates(comparison.duels)
    for label, name in (("Horovod", "horovod@2"), ("DeepSpeed ZeRO-1", "deepspeed ZeRO-1@2")):
        assert cells.loc[(label, 2), "samples_per_s"] == pytest.approx(found[name].value)
        assert cells.loc[(label, 2), judged_speed.DUELS] == 4
        share = found[name].value / found["single@1"].value / 2
        assert cells.loc[(label, 2), "efficiency"] == pytest.approx(share)
    assert cells.loc[("Single process", 1), "samples_per_s"] == pytest.approx(found["single@1"].value)
    assert len(cells) == 5, "plain torch, which no training has, and no row for the calibration"
    assert cells["typical_step_ms"].isna().all()
    own = comparison.cells.set_index(["label", "workers"])
    assert own.loc[("DeepSpeed ZeRO-1", 2), "samples_per_s"] > own.loc[("Horovod", 2), "samples_per_s"], "planted"


def test_no_table_plot_or_sentence_contradicts_the_verdict(comparison: Comparison, study: Path) -> None:
    said = verdict(comparison, findings(comparison))[0]
    assert said.startswith("Horovod is 10.0 % faster than DeepSpeed ZeRO-1 at 2 workers")
    wrong = [f"{rate:.3g}" for rate in comparison.cells["samples_per_s"]]
    table = comparison_table(comparison)
    column = table.columns.index("samples/s")
    shown = {tuple(row[:2]): row[column] for row in table.rows}
    assert shown["Horovod", "2"].startswith("13.3 (13.")
    assert not [text for text in shown.values() if text.split(" ")[0] in wrong]
    differences = difference_table(comparison)
    assert differences.columns[4] == "duels"
    assert ["Horovod against DeepSpeed ZeRO-1", "2", "+10.0 %"] in [list(row[:3]) for row in differences.rows]
    assert series_of(comparison, "samples_per_s")["Horovod"][-1]["samples_per_s"] == pytest.approx(13.28, abs=0.01)
    row = answers([study], study.parent).rows[0]
    assert row[2] == "Horovod"
    assert row[3].startswith("+10.0 % (")
    assert "samples/s of this training, not judged" in runs_table(comparison).columns


def test_the_last_screen_shows_the_duels_speed(comparison: Comparison, study: Path) -> None:
    lines = last_screen(comparison, findings(comparison), study / "report.html")
    assert any(line.startswith("Horovod") and " 2 " in line and "13.3" in line for line in lines), lines


def test_warnings_of_the_trainings_times_are_left_out_where_duels_judge(comparison: Comparison, study: Path) -> None:
    of_times = {"few-steps", "drift", "between-steps", "few-repeats", "apart", "foreign-load", "no-common-baseline"}
    assert not of_times & {finding.code for finding in findings(comparison)}
    (study / "duel.json").rename(study / "away.json")
    try:
        assert of_times & {finding.code for finding in findings(summarize_study(study))}
    finally:
        (study / "away.json").rename(study / "duel.json")


@pytest.mark.parametrize(("foreign", "words"), [(1.4, "; other work used 1.4 of 2 cores meanwhile"), (0.05, "")])
def test_foreign_load_stands_in_the_verdicts_sentence(foreign: float, words: str) -> None:
    from harness.analysis.duels.sentences import speed

    made = record(foreign=foreign)
    assert meanwhile(made, "horovod@2", "deepspeed ZeRO-1@2") == words
    first = speed(made)[0]
    assert first.endswith(f"4 duels{words}).")


def test_foreign_load_is_that_of_the_pairs_own_duels() -> None:
    made = record(foreign=0.0)
    made["duels"][3]["foreign_cores"] = 2.0
    made["blocks"] = [block for block in made["blocks"] if not (block["engine"] == "horovod@2" and block["duel"] == 3)]
    assert meanwhile(made, "horovod@2", "single@1") == ""
    assert meanwhile(made, "deepspeed ZeRO-1@2", "single@1") == "; other work used 0.5 of 2 cores meanwhile"


def test_every_form_of_the_report_says_the_same(comparison: Comparison) -> None:
    page = render(comparison, Prices.load(), "html")
    assert "4 duels" in page
    assert page.index('id="chart-differences"') < page.index('id="table-comparison"')
    assert "Horovod against DeepSpeed ZeRO-1, 2 workers" in page
    assert "+10.0 %" in render(comparison, Prices.load(), "md")
