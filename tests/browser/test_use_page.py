"""`harness model serve` in a real Chromium: upload a picture and good ones, see the map, talk; nothing leaves the
machine."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.used_run import call, data, trained

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
HAS_GRADIO = importlib.util.find_spec("gradio") is not None
pytestmark = pytest.mark.browser
needs_gradio = pytest.mark.skipif(not HAS_GRADIO, reason="the page needs gradio: pip install -e '.[gradio]'")
needs_browser = pytest.mark.skipif(
    not CHROMIUM or not DRIVER or importlib.util.find_spec("selenium") is None,
    reason="needs chromium, chromedriver and selenium (make setup)",
)
LIMIT_S = 90.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a page that really runs; it ends by Ctrl-C, with exit code 0 and without leftovers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", "model", "serve", str(trained()), "--port", "0", "--threads", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+) ", line)
        assert found, line + (process.stdout.read() if process.poll() is not None else "")
        yield found.group(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        if process.poll() is None:
            process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1280,1600")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(LIMIT_S)
    yield driver
    driver.quit()


def until(condition: Any, what: str) -> Any:
    """The first true value of `condition`, asked until LIMIT_S."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(f"did not happen within {LIMIT_S:.0f} s: {what}")


def one(browser: Any, selector: str) -> Any:
    return until(lambda: browser.find_elements("css selector", selector), selector)[0]


def result(browser: Any) -> str:
    return one(browser, "#result textarea").get_attribute("value")


def upload(browser: Any, selector: str, *paths: Any) -> None:
    one(browser, f"{selector} input[type=file]").send_keys("\n".join(str(path) for path in paths))


@needs_gradio
@needs_browser
def test_picture_good_pictures_map_and_conversation(browser: Any, server: str) -> None:
    browser.get(server)
    one(browser, "#look").click()
    until(lambda: "First choose a picture" in browser.page_source, "a message that says what is missing")

    upload(browser, "#picture", data() / "plate" / "test" / "dent" / "000.png")
    until(lambda: browser.find_elements("css selector", "#picture img"), "the picture is shown")
    one(browser, "#look").click()
    text = until(lambda: result(browser), "a result")
    assert re.match(r"Score 0\.\d{4} \(decoder map\), highest at the ", text)
    assert "neither Yes nor No" in text
    image = one(browser, "#map img")
    until(lambda: int(image.get_property("naturalWidth")) > 500, "the overlay is loaded")

    box = one(browser, "#question textarea, #question input")
    box.send_keys("Is there any defect?")
    one(browser, "#ask").click()
    until(lambda: len(browser.find_elements("css selector", "#talk .message")) >= 2, "question and answer are shown")
    assert "Is there any defect?" in one(browser, "#talk").text
    one(browser, "#clear").click()
    until(lambda: "Is there any defect?" not in one(browser, "#talk").text, "the conversation is gone")

    good = sorted((data() / "plate" / "train" / "good").iterdir())[:3]
    upload(browser, "#normal", *good)
    until(lambda: good[-1].stem in one(browser, "#normal").text, "the good pictures are listed")
    one(browser, "#look").click()
    until(lambda: "(memory map)" in result(browser), "the few-shot result")
    assert float(result(browser).split()[1]) > 1.0

    labels = {button.get_attribute("aria-label") or "" for button in browser.find_elements("css selector", "button")}
    assert not any("share" in label.lower() for label in labels), "nothing offers to publish the picture"
    from axe_core_python.selenium import Axe

    grave = [each for each in Axe().run(browser)["violations"] if each["impact"] == "critical"]
    assert grave == []

    hosts = {
        address.split("/")[2]
        for entry in browser.get_log("performance")
        for message in [json.loads(entry["message"])["message"]]
        if message["method"] == "Network.requestWillBeSent"
        and (address := message["params"]["request"]["url"]).startswith(("http:", "https:", "ws:"))
    }
    assert hosts == {server.removeprefix("http://")}, "the page asks this machine only"


@needs_gradio
def test_a_taken_port_is_said(capsys: pytest.CaptureFixture[str], server: str) -> None:
    code, _, err = call(capsys, "model", "serve", trained(), "--port", server.rsplit(":", 1)[1])
    assert code == 2
    assert "use --port N" in err


@pytest.mark.skipif(HAS_GRADIO, reason="gradio is installed here")
def test_without_gradio_one_line_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "model", "serve", "/no/such/run")
    assert (code, out) == (2, "")
    assert err == "error: the page needs gradio, which is not installed: pip install 'anomaly-distbench[gradio]'\n"
