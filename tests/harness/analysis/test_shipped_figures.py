"""Figures of shipped studies, computed again by pandas alone from steps.jsonl: what is printed must be those."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.analysis.comparison import summarize_study
from harness.analysis.cost import Prices
from harness.common.formatting import number, percent
from harness.publish.index import write_index
from harness.report.comparison_table import table_rows
from harness.report.formats import render

RESULTS = Path(__file__).parents[3] / "results"
STUDIES = ("h100-x4-llama-weak", "h200-x4-llama", "cpu-2-cores")


def totals_by_pandas(study: Path) -> pd.DataFrame:
    """A row a run: total samples over the seconds from the end of the warm-up to the end of the last step. Uses nothing
    of the program."""
    rows = []
    for run in sorted(study.glob("*/steps.jsonl")):
        job = json.loads((run.parent / "job.json").read_text())
        steps, warmup = pd.read_json(run, lines=True), job["timing_warmup"]
        seconds = steps["t"].iloc[-1] - steps["t"].iloc[warmup - 1]
        rate = steps["samples"].iloc[warmup:].sum() / seconds
        cell = job["backend"], json.dumps(job["engine"]), job["nodes"] * job["slots"]
        rows.append((*cell, job["repeat"], job["seed"], rate))
    return pd.DataFrame(rows, columns=["backend", "engine", "workers", "repeat", "seed", "rate"])


def cells_by_pandas(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: geometric mean of the repeats, and of their shares of the same repeat's own one worker."""
    one = runs[runs["workers"] == 1].drop(columns="workers")
    both = runs.merge(one, on=["backend", "engine", "repeat", "seed"], suffixes=("", "_one"))
    runs = runs.assign(log=np.log(runs["rate"]))
    both["log"] = np.log(both["rate"] / both["workers"] / both["rate_one"])
    keys = ["backend", "engine", "workers"]
    means = [np.exp(frame.groupby(keys)["log"].mean()) for frame in (runs, both[both["workers"] > 1])]
    return pd.DataFrame({"rate": means[0], "own": means[1]}).reset_index()


@pytest.mark.parametrize("name", STUDIES)
def test_totals_and_efficiencies_are_those_of_the_steps(name: str) -> None:
    comparison = summarize_study(RESULTS / name)
    again = cells_by_pandas(totals_by_pandas(RESULTS / name))
    written = pd.read_csv(RESULTS / name / "comparison.csv")
    assert len(again) == len(comparison.cells) == len(written)
    page = render(comparison, Prices.load(), "html")
    texts = {(row["texts"]["engine"], row["texts"]["workers"]): row["texts"] for row in table_rows(comparison)}
    for cells in (comparison.cells, written):
        for cell in cells.itertuples():
            stage = cell.label.removeprefix("DeepSpeed ZeRO-")
            same = again[(again["backend"] == cell.backend) & (again["workers"] == cell.workers)]
            if cell.backend == "deepspeed":
                same = same[same["engine"] == json.dumps({"zero_stage": int(stage)})]
            (row,) = same.to_dict("records")
            assert cell.samples_per_s == pytest.approx(row["rate"], rel=1e-6)
            text = texts[cell.label, str(cell.workers)]
            assert text["samples/s"].startswith(f"{number(row['rate'])} (")
            assert text["samples/s"] in page
            if cell.workers > 1:
                assert cell.own_efficiency == pytest.approx(row["own"], rel=1e-6)
                assert cell.own_efficiency_low < row["own"] < cell.own_efficiency_high
                assert text["own baseline"].startswith(f"{percent(row['own'])} (")
                assert text["own baseline"] in page
    pairs = [pair for pair in comparison.speed if pair.difference.pairs == 3]
    rates = {(cell.label, cell.workers): cell.samples_per_s for cell in comparison.cells.itertuples()}
    for pair in pairs:  # the difference is the ratio of the figures in the table
        ratio = rates[pair.difference.b, pair.workers] / rates[pair.difference.a, pair.workers]
        assert 1 + pair.difference.value == pytest.approx(ratio, rel=1e-6)
    assert pairs


def test_the_index_prints_the_totals(tmp_path: Path) -> None:
    """On a copy of one study: the sentence that says who is faster, by the same ten lines of pandas."""
    study = RESULTS / "cpu-2-cores"
    (tmp_path / study.name).symlink_to(study)
    text = write_index(tmp_path).read_text()
    cells = cells_by_pandas(totals_by_pandas(study)).set_index(["backend", "workers"])
    for workers in (1, 2):
        faster, slower = "deepspeed", "horovod"
        ratio = cells.loc[(faster, workers), "rate"] / cells.loc[(slower, workers), "rate"]
        shown = (f"{100 * (ratio - 1):.1f} %", f"{100 * (1 / ratio - 1):+.1f} %")
        assert any(each in text for each in shown), (workers, shown, text)
        own = percent(cells.loc[(faster, 2), "own"])
        assert f"DeepSpeed ZeRO-2 {own} (" in text
