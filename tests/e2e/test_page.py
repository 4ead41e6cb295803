"""A new user opens the page, runs the quickstart, changes it, compares, and sends the address to somebody."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "build" / "screenshots"
PAGES = {
    "": "Overview",
    "latency": "Latency",
    "quality": "Quality",
    "kv": "KV memory",
    "controller": "Controller",
    "verifier": "Verifier",
    "pricing": "Pricing",
    "search": "One query",
    "capacity": "Capacity",
    "compare": "Compare",
    "scenario": "Scenario",
    "runs": "Runs",
    "hardware": "Hardware",
}
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--no-first-run", "--disable-quic",
]  # fmt: skip

pytestmark = pytest.mark.e2e
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("streamlit", reason="the extra `dashboard` is not installed")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
if BROWSER is None:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs of this visit."""
    return tmp_path_factory.mktemp("visit") / "runs"


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """`treeline dash` as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "treeline.py"), "dash", str(runs), "--port", str(port)]
    with (runs.parent / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, env=os.environ
        )
    url = f"http://localhost:{port}"
    try:
        _until_it_answers(url)
        yield url
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield found
        found.close()


def _until_it_answers(url: str) -> None:
    end = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert time.monotonic() < end, "the page does not start"
            time.sleep(0.3)


def visit(browser: Any, url: str, *, dark: bool = False, width: int = 1280) -> Any:
    """A new visitor at an address, once the page stands."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    page.set_default_timeout(90_000)
    page.goto(url)
    settle(page)
    return page


def settle(page: Any) -> None:
    """Wait until the script of the page has run and its pictures are drawn."""
    page.wait_for_selector("h1")
    page.wait_for_function(
        "document.querySelector('[data-testid=stApp]')"
        "?.getAttribute('data-test-script-state') === 'notRunning'"
    )
    page.wait_for_timeout(700)
    assert page.locator('[data-testid="stException"]').count() == 0


def finish_run(page: Any) -> None:
    """Wait for the run that was started, and go to its result."""
    page.get_by_role("button", name="Show the result").click(timeout=180_000)
    page.wait_for_url(re.compile(r"\?.*run="))
    settle(page)


def test_a_first_visit_runs_the_quickstart_and_ends_with_a_verdict(
    browser: Any, address: str, runs: Path
) -> None:
    page = visit(browser, address)
    began = time.monotonic()
    page.get_by_role("button", name="Run the quickstart").click()
    page.wait_for_selector("text=replications done")
    page.reload()  # the run does not mind
    settle(page)
    finish_run(page)
    print(f"from the first click to the verdict: {time.monotonic() - began:.0f} s")
    assert "quickstart" in page.inner_text("h1")
    assert page.get_by_text("MISSED: fast").first.is_visible()
    assert (runs / "quickstart" / "manifest.json").is_file()
    page.context.close()


def test_a_what_if_of_the_form_is_run_and_compared(browser: Any, address: str, runs: Path) -> None:
    page = visit(browser, f"{address}/scenario?scenario=quickstart.yaml")
    rate = page.get_by_label("Queries per second")
    rate.fill("2")
    rate.press("Enter")
    page.wait_for_selector("text=workload.arrivals.rate=2/s")
    settle(page)
    name = page.get_by_label("Name of the run")
    name.fill("slower")
    name.press("Enter")
    finish_run(page)
    assert (runs / "slower" / "manifest.json").is_file()
    page.goto(f"{address}/compare?run=slower&base=quickstart")
    settle(page)
    shown = page.inner_text('[data-testid="stMain"]')
    assert "From quickstart to slower" in shown
    assert "mean E2E" in shown
    page.context.close()


def test_a_bad_scenario_is_shown_at_its_line_and_does_not_run(browser: Any, address: str) -> None:
    page = visit(browser, f"{address}/scenario?scenario=quickstart.yaml")
    editor = page.get_by_label("YAML")
    text = editor.input_value()
    editor.fill(text.replace("replicas: 2", "replcas: 2"))
    editor.press("Control+Enter")
    page.wait_for_selector("text=quickstart.yaml:8:53")
    assert page.get_by_text("did you mean replicas?").is_visible()
    assert page.get_by_role("button", name="Run", exact=True).count() == 0
    page.context.close()


def test_a_run_that_is_cancelled_leaves_nothing(browser: Any, address: str, runs: Path) -> None:
    page = visit(browser, f"{address}/scenario?scenario=evening-peak.yaml")
    name = page.get_by_label("Name of the run")
    name.fill("unwanted")
    name.press("Enter")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("text=was cancelled")
    assert not [item.name for item in runs.iterdir() if "unwanted" in item.name]
    page.context.close()


def test_an_address_that_was_sent_opens_the_same_view(browser: Any, address: str) -> None:
    page = visit(browser, f"{address}/latency?run=quickstart&tier=careful")
    assert page.inner_text("h1") == "Latency"
    for name in ("", "overview"):
        first = visit(browser, f"{address}/{name}?run=quickstart")
        assert first.inner_text("h1") == "quickstart"
        first.context.close()
    boxes = page.locator('[data-testid="stSidebar"] [data-testid="stSelectbox"]')
    chosen = [box.locator("input").input_value() for box in boxes.all()]
    assert chosen == ["quickstart", "careful"]
    page.context.close()


def test_every_choice_in_a_box_counts_and_not_only_every_second(browser: Any, address: str) -> None:
    page = visit(browser, f"{address}/pricing?run=quickstart")
    for choice in ("class", "difficulty", "truth", "tier"):
        page.get_by_role("combobox", name="By").click()
        page.get_by_role("option", name=choice).click()
        page.wait_for_url(re.compile(f"by={choice}"))
        settle(page)
    page.context.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_page_stands_and_is_pictured(browser: Any, address: str, dark: bool) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    for path, title in PAGES.items():
        page = visit(browser, f"{address}/{path}?run=quickstart", dark=dark)
        high = page.evaluate(
            "document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight"
        )
        page.set_viewport_size({"width": 1280, "height": min(int(high) + 60, 5000)})
        settle(page)
        name = f"{title.lower().replace(' ', '-')}{'-dark' if dark else ''}.png"
        page.screenshot(path=PICTURES / name)
        page.context.close()


def test_a_phone_shows_the_verdict_without_scrolling_sideways(browser: Any, address: str) -> None:
    page = visit(browser, f"{address}/?run=quickstart", width=390)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390
    assert page.get_by_text("MISSED: fast").first.is_visible()
    page.context.close()
