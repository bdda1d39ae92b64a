"""The report of duels alone: `harness report` of a folder without trainings."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.commands.report import report
from harness.common.paths import PROJECT
from harness.report.duel_files import write_duel_files
from harness.report.page.glossary import TERMS, linked
from tests.harness.made_duels import write_duels

SHIPPED = sorted(path.parent for path in (PROJECT / "results").glob("*/duel.json"))


def test_page_and_picture_of_duels(tmp_path: Path) -> None:
    folder = write_duels(tmp_path / "fought", foreign=1.4)
    done = CliRunner().invoke(report, [str(folder)])
    assert done.exit_code == 0, done.output
    page = (folder / "report.html").read_text()
    text = re.sub(r"<[^>]*>", "", page)
    assert "Horovod is 10.0 % faster than DeepSpeed ZeRO-1 at 2 workers" in text
    assert "4 duels; other work used 1.4 of 2 cores meanwhile" in text
    assert page.index('id="verdict"') < page.index('id="chart-differences"') < page.index('id="table-differences"')
    assert "Calibration: plain torch against itself" in text
    assert re.search(r"13\.28 \(13\.\d+ to 13\.\d+\)", text), "throughput has an interval"
    picture = (folder / "differences.svg").read_text()
    assert len(picture.encode()) < 100_000
    assert "Horovod against DeepSpeed ZeRO-1, 2 workers" in picture


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_every_shipped_record_has_a_page(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "duel.json").write_text((folder / "duel.json").read_text())
    page = write_duel_files(tmp_path).read_text()
    assert "Which engine is faster" in page


def test_other_formats_and_those_that_duels_do_not_have(tmp_path: Path) -> None:
    folder = write_duels(tmp_path / "fought")
    done = CliRunner().invoke(report, [str(folder), "--format", "json"])
    assert {row["verdict"] for row in json.loads(done.output)} >= {"faster"}
    assert (
        "horovod@2 against deepspeed ZeRO-1@2: +10.0 %"
        in CliRunner().invoke(report, [str(folder), "--format", "md"]).output
    )
    done = CliRunner().invoke(report, [str(folder), "--format", "csv"])
    assert "duels alone are reported as html, md or json" in str(done.exception)


class Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []
        if tag == "a":
            self.targets.append(str(found["href"]).removeprefix("#"))


def test_words_lead_to_the_glossary_and_every_link_has_its_place(tmp_path: Path) -> None:
    anchors = Anchors()
    anchors.feed(write_duel_files(write_duels(tmp_path / "fought")).read_text())
    assert len(set(anchors.ids)) == len(anchors.ids)
    assert set(anchors.targets) <= set(anchors.ids)
    assert {f"term-{term.id}" for term in TERMS} - {"term-auroc", "term-mfu"} <= set(anchors.ids)
    assert {"term-duel", "term-interval", "term-efficiency", "term-zero"} <= set(anchors.targets)


def test_a_term_is_linked_once_and_markup_stays_text() -> None:
    text = str(linked("Two duels <b>and</b> a duel; reduels; samples/s"))
    assert text.count("#term-duel") == 1
    assert "&lt;b&gt;" in text
    assert ">samples/s</a>" in text
    assert "reduels" in text
