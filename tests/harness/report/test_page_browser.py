"""The report in a real Chromium: wide, on a phone, in print, dark and light; keys, pointer, accessibility rules."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.job.declaration import Job
from harness.report.formats import comparison_of, write_report
from tests.harness.made_runs import write_run, write_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs chromium and chromedriver (make setup)"),
    pytest.mark.skipif(importlib.util.find_spec("selenium") is None, reason="needs selenium (make setup)"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with everything on it: pictures, a failed cell, an unlike run, unusable answers, fp16 scales."""
    folder = write_study(
        tmp_path_factory.mktemp("results") / "study", steps=60, repeats=3, examples=4, precision="fp16"
    )
    write_run(folder, Job(backend="fsdp2", slots=2, preset="tiny", precision="fp16"), fail="rank 1: out of memory")
    write_run(folder, Job(backend="ddp", slots=2, preset="tiny", lr=5e-3, precision="fp16"), unusable=1.0)
    return write_report(comparison_of([folder]), folder / "report.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def open_page(browser: Any, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {
        "offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0,
    })  # fmt: skip
    browser.get(page.resolve().as_uri())


def console_errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_error_no_sideways_scrolling_no_serious_finding(browser: Any, page: Path, width: int, scheme: str) -> None:
    open_page(browser, page, width=width, scheme=scheme)
    assert console_errors(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # Nothing may stick out of its column: only tables scroll, inside their own box.
    wide = browser.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && !e.closest('svg') && "
        "!e.closest('.live') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    serious = axe(browser)
    assert serious == []


def axe(browser: Any) -> list[str]:
    """Serious and critical findings of axe-core, with everything unfolded."""
    import axe_core_python

    rules = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    browser.execute_script(rules)
    browser.set_script_timeout(60)
    found = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {resultTypes: ['violations']}).then(r => done(JSON.stringify(r.violations)))"
    )
    return [
        f"{item['id']}: {item['help']}: {item['nodes'][0]['html'][:150]}"
        for item in json.loads(found)
        if item["impact"] in ("serious", "critical")
    ]


def test_verdict_is_on_the_first_screen_of_a_phone(browser: Any, page: Path) -> None:
    open_page(browser, page, width=390)
    top = browser.execute_script("return document.querySelector('.verdict li').getBoundingClientRect().top")
    assert top < 500
    assert browser.execute_script("return document.querySelector('.verdict li').textContent").startswith("Horovod is ")


def test_small_print_is_still_readable_on_a_phone(browser: Any, page: Path) -> None:
    open_page(browser, page, width=390)
    heights = browser.execute_script(
        "return [...document.querySelectorAll('.plot text')].map(t => t.getBoundingClientRect().height)"
    )
    assert min(heights) >= 9


def test_arrow_keys_read_the_values_aloud(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    plot = browser.find_element(By.CSS_SELECTOR, "#chart-scaling .plot")
    plot.send_keys(Keys.ARROW_RIGHT)
    live = browser.find_element(By.CSS_SELECTOR, "#chart-scaling .live")
    first = live.get_attribute("textContent")
    assert first.startswith("DeepSpeed ZeRO-1: ")
    assert first.endswith(" at 1 worker, 3 runs")
    plot.send_keys(Keys.ARROW_RIGHT)
    assert live.get_attribute("textContent").endswith("at 2 workers, 3 runs")
    plot.send_keys(Keys.ARROW_DOWN)
    assert live.get_attribute("textContent").startswith("Horovod: ")
    assert browser.find_elements(By.CSS_SELECTOR, "#chart-scaling .tip")
    plot.send_keys(Keys.ESCAPE)
    assert not browser.find_elements(By.CSS_SELECTOR, "#chart-scaling .tip")


def test_pointer_shows_the_nearest_value_inside_the_chart(browser: Any, page: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    open_page(browser, page)
    plot = browser.find_element(By.CSS_SELECTOR, "#chart-loss-steps .plot")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", plot)
    ActionChains(browser).move_to_element(plot).perform()
    tip = browser.find_element(By.CSS_SELECTOR, "#chart-loss-steps .tip")
    assert "optimizer steps" in tip.text
    box = browser.execute_script(
        "const t = arguments[0].getBoundingClientRect(), p = arguments[1].getBoundingClientRect();"
        "return [t.left - p.left, p.right - t.right]", tip, plot,
    )  # fmt: skip
    assert min(box) >= -1


def test_legend_hides_and_shows_a_series(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By

    open_page(browser, page)
    button = browser.find_element(By.CSS_SELECTOR, "#chart-scaling .legend button")
    shown = (
        "return new Set([...document.querySelectorAll('#chart-scaling .series:not(.off)')]"
        ".map((part) => part.dataset.series)).size"
    )
    before = browser.execute_script(shown)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert browser.execute_script(shown) == before - 2  # the line and its ideal
    button.click()
    assert browser.execute_script(shown) == before


def test_tables_are_sorted_by_click_and_by_key(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    table = "#table-comparison"
    heads = browser.find_elements(By.CSS_SELECTOR, f"{table} thead th")
    column = [head.text.strip() for head in heads].index("samples/s")

    def values() -> list[float]:
        cells = browser.find_elements(By.CSS_SELECTOR, f"{table} tbody tr > *:nth-child({column + 1})")
        return [float(cell.text.split(" ")[0]) for cell in cells if cell.text[:1].isdigit()]

    assert heads[column].get_attribute("aria-sort") is None
    button = heads[column].find_element(By.TAG_NAME, "button")
    button.send_keys(Keys.ENTER)
    assert heads[column].get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
    button.click()
    assert heads[column].get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    heads[0].find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert heads[column].get_attribute("aria-sort") is None
    names = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, f"{table} tbody th")]
    assert names == sorted(names)


def test_sizes_and_times_are_sorted_by_what_they_mean(browser: Any, page: Path) -> None:
    open_page(browser, page)
    order = browser.execute_script(
        "const t = document.querySelector('#table-memory'); const rows = [...t.tBodies[0].rows];"
        "const texts = ['800 MiB', '1.2 GiB', '\u2013', '900 MiB'];"
        "rows.slice(0, 4).forEach((row, i) => { row.cells[2].textContent = texts[i]; });"
        "rows.slice(4).forEach((row) => row.remove());"
        "t.tHead.rows[0].cells[2].querySelector('button').click();"
        "return [...t.tBodies[0].rows].map((row) => row.cells[2].textContent)"
    )
    assert order == ["1.2 GiB", "900 MiB", "800 MiB", "\u2013"]


def test_interval_picture_stands_between_verdict_and_tables(browser: Any, page: Path) -> None:
    open_page(browser, page, width=390)
    tops = browser.execute_script(
        "return ['.verdict', '#chart-differences', '#table-comparison'].map("
        "name => document.querySelector(name).getBoundingClientRect().top)"
    )
    assert tops == sorted(tops)


def test_theme_button_turns_the_page(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By

    open_page(browser, page)
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(colour)
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_script(colour) != light


def test_print_is_paper_with_everything_unfolded(browser: Any, page: Path, tmp_path: Path) -> None:
    open_page(browser, page, scheme="dark")
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
    pages = pdf.count(b"/Type /Page\n") or pdf.count(b"/Type/Page")
    assert 2 <= pages <= 14
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") == 0


def test_page_says_it_all_without_javascript(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(browser, page)
        tree = browser.execute_cdp_cmd("DOM.getDocument", {"depth": 1})
        html = browser.execute_cdp_cmd("DOM.getOuterHTML", {"nodeId": tree["root"]["nodeId"]})["outerHTML"]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert html.count("<path") > 10
    assert "Dark or light</button>" in html
    assert 'id="theme" class="noprint" hidden' in html  # the button that could do nothing stays hidden
