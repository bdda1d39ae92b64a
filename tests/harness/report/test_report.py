"""The report in its formats: complete, self-contained, small, quick, and safe with whatever a record holds."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.analysis.comparison import summarize_study
from harness.analysis.cost import Prices
from harness.commands.report import report
from harness.common.text_table import latex, markdown, tex
from harness.job.declaration import Job, JobError
from harness.report.formats import comparison_of, to_json, write_report
from harness.report.plots import write_plots
from tests.harness.made_runs import write_run, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("results") / "two", steps=60, repeats=2, examples=4)
    write_run(folder, Job(backend="ddp", slots=2, preset="tiny"), fail="rank 1: <script>alert(1)</script> & more")
    return folder


@pytest.fixture(scope="module")
def page(study: Path) -> str:
    return write_report(comparison_of([study]), study / "report.html").read_text()


class Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_page_needs_no_network(page: str) -> None:
    collector = Collector()
    collector.feed(page)
    for tag, attributes in collector.tags:
        for name in ("src", "href", "srcset", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value}>"
    assert not re.search(r"@import|url\((?!['\"]?(?:data:|#))|fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org)", page)


def test_page_is_small_and_has_its_sections(page: str) -> None:
    assert len(page.encode()) < 3_000_000
    for id in ("verdict", "scaling", "convergence", "quality", "split", "memory", "cost", "pictures", "findings",
               "reproduce", "runs"):  # fmt: skip
        assert f'id="{id}"' in page, id
    assert page.index('id="verdict"') < page.index('id="scaling"')


def test_text_from_records_cannot_become_markup(page: str) -> None:
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page


def test_every_chart_has_words_and_every_picture_alternative_text(page: str) -> None:
    collector = Collector()
    collector.feed(page)
    plots = [attributes for tag, attributes in collector.tags if tag == "div" and attributes.get("class") == "plot"]
    assert len(plots) >= 4
    assert all("Arrow keys read the values" in (attributes["aria-label"] or "") for attributes in plots)
    pictures = [attributes for tag, attributes in collector.tags if tag == "img"]
    assert len(pictures) >= 8
    assert all(attributes.get("alt") for attributes in pictures)


def test_both_engines_maps_and_answers_stand_beside_each_other(page: str) -> None:
    sample = page[page.index('class="sample"') :]
    sample = sample[: sample.index("</article>")]
    for text in (
        "Anomaly map by DeepSpeed ZeRO-1",
        "Anomaly map by Horovod",
        "Expected:",
        "DeepSpeed ZeRO-1:",
        "Horovod:",
    ):
        assert text in sample, text


def test_same_records_give_the_same_page_and_the_same_plots(study: Path, page: str, tmp_path: Path) -> None:
    again = write_report(comparison_of([study]), tmp_path / "again.html")
    assert again.read_text() == page
    first = {path.name: path.read_bytes() for path in write_plots(summarize_study(study), tmp_path)}
    second = {path.name: path.read_bytes() for path in write_plots(summarize_study(study), tmp_path)}
    assert set(first) == {f"{name}.{end}" for name in ("scaling", "efficiency", "convergence", "accuracy")
                          for end in ("png", "svg")}  # fmt: skip
    assert first == second


@pytest.mark.parametrize("format", ["md", "csv", "json", "latex"])
def test_other_formats_go_to_the_terminal(study: Path, format: str) -> None:
    done = CliRunner().invoke(report, [str(study), "--format", format])
    assert done.exit_code == 0, done.output
    assert "Horovod" in done.output
    if format == "json":
        value = json.loads(done.output)
        assert value["verdict"]
        assert value["differences"][0]["pairs"] == 2
        assert [run["status"] for run in value["runs"]].count("failed") == 1
    if format == "latex":
        assert done.output.count("\\begin{table}") == done.output.count("\\end{table}") >= 5
        assert not re.search(r"(?<!\\)_", re.sub(r"\\label\{[^}]*\}|^%.*$", "", done.output, flags=re.MULTILINE))
    if format == "md":
        widths = {line.count(" | ") for line in done.output.split("### Engines side by side")[1].splitlines()[2:8]}
        assert len(widths) == 1


def test_single_run_has_a_report(study: Path, tmp_path: Path) -> None:
    run = next(study.glob("horovod-w2-*"))
    text = write_report(comparison_of([run]), tmp_path / "run.html").read_text()
    assert "there is no second engine at equal workers" in text


def test_failed_run_alone_has_a_report(study: Path, tmp_path: Path) -> None:
    text = write_report(comparison_of([next(study.glob("ddp-*"))]), tmp_path / "run.html").read_text()
    assert "No run ended well" in text


def test_unwritable_place_is_one_line(study: Path) -> None:
    with pytest.raises(JobError, match="cannot write the report there"):
        write_report(comparison_of([study]), Path("/proc/nowhere/report.html"))


@pytest.mark.slow
def test_two_hundred_runs_take_less_than_eight_times_as_long_as_twenty(tmp_path: Path) -> None:
    """By processor time (the machine may be shared) and side by side (it may be slow): nothing is quadratic."""
    speeds = {"deepspeed": 0.52, "horovod": 0.5, "ddp": 0.49, "fsdp2": 0.55}

    def rendered(repeats: int) -> tuple[Path, float]:
        folder = tmp_path / f"repeats-{repeats}"
        write_study(folder, speeds=speeds, workers=(1, 2, 4, 8, 16), repeats=repeats, steps=48, global_batch=16)
        began = time.process_time()
        path = write_report(comparison_of([folder]), folder / "report.html")
        return path, time.process_time() - began

    rendered(2)  # imports matplotlib and its fonts
    _, few = rendered(1)
    path, many = rendered(10)
    print(f"twenty runs: {few:.2f} s, two hundred: {many:.2f} s")
    assert many < 8 * few
    assert path.stat().st_size < 3_000_000
    assert "200 runs" in path.read_text()


def test_prices_give_money_in_deepspeed_chats_form(study: Path, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    model = json.loads((next(study.glob("horovod-*")) / "environment.json").read_text())["cpu"]["model"]
    prices.write_text(f'currency = "€"\n[[machine]]\nname = {json.dumps(model)}\nper_core_hour = 3600.0\n')
    done = CliRunner().invoke(report, [str(study), "--format", "md", "--prices", str(prices)])
    assert done.exit_code == 0
    assert re.search(r"\| Horovod \| 2 \| [\d.]+ (s|min) \(€[\d.]+\)", done.output)


@pytest.mark.parametrize(
    "text", ["= broken", '[[machine]]\nname = "x"\n', '[[machine]]\nname = "x"\nper_core_hour = "a"\n']
)
def test_bad_price_file_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(JobError, match=r"p\.toml"):
        Prices.load(path)


def test_latex_and_markdown_escape() -> None:
    from harness.common.text_table import Table

    table = Table(id="t", title="50 % & more", columns=["a|b", "c_d"], rows=[["x|y", "1 – 2 ± 3"]])  # noqa: RUF001
    assert "x\\|y" in markdown(table)
    assert "50 \\% \\& more" in latex(table)
    assert "1 -- 2 $\\pm$ 3" in latex(table)
    assert tex("a_b{c}\\") == "a\\_b\\{c\\}\\textbackslash{}"


def test_json_is_complete_json(study: Path) -> None:
    value = json.loads(to_json(comparison_of([study])))
    assert set(value) == {
        "title", "setting", "verdict", "notes", "findings", "cells", "runs", "groups", "differences", "variants",
    }  # fmt: skip
