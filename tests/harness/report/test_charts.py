"""The figures of the page: matplotlib's drawing in the page's colours, with the values that pointer and keys read."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

import pytest

from harness.analysis.comparison import Comparison, summarize_study
from harness.common import colors
from harness.report.charts import data, scaling, training
from harness.report.charts.differences import Row, efficiency_rows, forest, rows_of, rows_of_duels, size
from harness.report.charts.sheet import Sheet
from harness.report.charts.to_page import Chart, chart
from harness.report.page import figures
from harness.report.plots import sheet_files
from tests.harness.made_duels import STEADY
from tests.harness.made_duels import record as duels
from tests.harness.made_runs import write_study


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return summarize_study(write_study(tmp_path_factory.mktemp("results") / "study", precision="fp16"))


def drawn(comparison: Comparison) -> list[Chart]:
    made = [
        *figures.scaling_charts(comparison, 0),
        *figures.convergence_charts(comparison),
        figures.split_chart(comparison),
        figures.forest("chart-differences", rows_of(comparison)),
    ]
    assert all(made)
    return [each for each in made if each is not None]


def test_every_chart_is_sound_and_its_ids_are_its_own(comparison: Comparison) -> None:
    made = drawn(comparison)
    assert [each.id for each in made] == [
        "chart-scaling", "chart-efficiency", "chart-loss-steps", "chart-loss-time", "chart-scale", "chart-split",
        "chart-differences",
    ]  # fmt: skip
    for each in made:
        root = ElementTree.fromstring(each.svg)
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(set(ids)) == len(ids)
        assert all(name.startswith(each.id) for name in ids)
        targets = re.findall(r'(?:href="#|url\(#)([^")]+)', each.svg)
        assert set(targets) <= set(ids)
        assert "http" not in re.sub(r"http://www\.w3\.org", "", each.svg)
        assert "<" not in each.data
        assert "nan" not in each.svg.lower()


def test_colours_are_the_pages_so_that_dark_paper_works(comparison: Comparison) -> None:
    for each in drawn(comparison):
        assert not re.search(r"#[0-9a-fA-F]{6}\b", each.svg), each.id
        assert "var(--s0)" in each.svg


def test_values_lie_where_they_are_drawn(comparison: Comparison) -> None:
    """The read points of throughput are the ends of the drawn line, to a tenth of a unit."""
    made = next(each for each in drawn(comparison) if each.id == "chart-scaling")
    root = ElementTree.fromstring(made.svg)
    group = next(element for element in root.iter() if element.get("id") == "chart-scaling-series-0-0")
    path = next(element.get("d") for element in group.iter() if element.get("d"))
    corners = [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
    series = json.loads(made.data)["series"][0]
    assert series["label"] == "DeepSpeed ZeRO-1"
    for point, corner in zip(series["points"], corners, strict=True):
        assert point[:2] == pytest.approx(corner, abs=0.11)
    assert [point[2] for point in series["points"]] == ["1 worker, 3 runs", "2 workers, 3 runs"]
    assert re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", series["points"][0][3])


def test_a_label_hides_all_its_lines(comparison: Comparison) -> None:
    made = next(each for each in drawn(comparison) if each.id == "chart-scaling")
    entry = made.legend[0]
    assert len(entry["series"]) == 2, "the line and its ideal"
    for number in entry["series"]:
        assert f'data-series="{number}"' in made.svg


def test_words_stand_for_those_who_do_not_see_the_drawing(comparison: Comparison) -> None:
    by_id = {each.id: each for each in drawn(comparison)}
    assert by_id["chart-scaling"].description.startswith("samples per second over workers. DeepSpeed ZeRO-1: ")
    assert "Horovod" in by_id["chart-differences"].description
    assert by_id["chart-scaling"].note.endswith("Each point: 3 runs.")
    assert "3 pairs" in by_id["chart-differences"].description
    assert "forward" in by_id["chart-split"].description


def test_the_same_drawing_makes_files_and_page(comparison: Comparison, tmp_path: Path) -> None:
    files = sheet_files(tmp_path, "scaling", partial(scaling.throughput, comparison))
    text = files[1].read_text()
    for colour in {colors.styles(comparison.labels)[label].light.lower() for label in comparison.labels}:
        assert colour in text
    assert "Total samples / total seconds" in text, "the note is part of a file"
    assert chart("c", partial(training.accuracy, comparison)).note.startswith("Mean over the seeds")


def test_nothing_to_show_is_no_chart() -> None:
    assert chart("c", lambda sheet: False) is None
    assert chart("c", partial(forest, [])) is None


def row(name: str, value: float, half: float | None, word: str) -> Row:
    low, high = (None, None) if half is None else (value - half, value + half)
    return Row(name=name, value=value, low=low, high=high, basis="4 duels", word=word)


def test_forest_shows_each_interval_with_its_word_and_cuts_what_reaches_far() -> None:
    rows = [
        row("<A> against B, 2 workers", 0.10, 0.02, "faster"),
        row("C against B, 2 workers", 0.01, 0.02, "alike"),
        row("D against B, 2 workers", 0.02, 9.0, "undecided"),
        row("E against B, 2 workers", 0.02, None, "undecided"),
    ]
    made = chart("f", partial(forest, rows), size=size(rows))
    assert "&lt;A&gt; against B, 2 workers" in made.svg
    points = json.loads(made.data)["series"]
    assert points[0]["points"][0][3] == "+10.0 % (8.0 to 12.0 %, 4 duels): faster"
    assert points[3]["points"][0][3] == "+2.0 % (no interval, 4 duels): undecided"
    xs = [point["points"][0][0] for point in points]
    assert xs[0] > xs[2] > 0
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', made.svg)[1])
    assert all(0 < x < width for x in xs)


def test_rows_say_who_is_faster_as_the_verdict_does_and_plain_torch_stays_the_baseline() -> None:
    made = duels({**STEADY, "horovod@2": (0.7, 0.71, 0.7, 0.7)})
    rows = rows_of_duels(made)
    assert rows[0].name == "DeepSpeed ZeRO-1 against Horovod, 2 workers"
    assert rows[0].word == "faster"
    assert rows[0].low > 0
    assert [row.word for row in rows if row.name == "DeepSpeed ZeRO-1 against plain torch, 1 worker"] == ["slower"]
    assert rows[-1].name == "Calibration: plain torch against itself"
    assert [row.name for row in efficiency_rows(made)] == ["DeepSpeed ZeRO-1, 2 workers", "Horovod, 2 workers"]


def test_thinning_keeps_the_ends() -> None:
    points = [(float(i), float(i)) for i in range(1000)]
    kept = data.thin(points, 100)
    assert len(kept) == 100
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_a_file_has_title_legend_and_note_a_page_has_none() -> None:
    from matplotlib.figure import Figure

    for page in (False, True):
        figure = Figure()
        axes = figure.add_subplot()
        sheet = Sheet(figure=figure, page=page)
        axes.plot([0, 1], [0, 1], label="a")
        sheet.titled(axes, "short", "long")
        sheet.note("words")
        sheet.legend(axes)
        assert (axes.get_legend() is None) == page
        assert axes.get_title() == ("" if page else "long")
        assert (sheet.title, sheet.note_text) == ("short", "words")
