"""Real pages in headless Chromium, for tests."""

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1600",
)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own; skips the test where Chromium or its driver is missing."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip(f"needs Chromium and chromedriver on the path (found {binary} and {driver})")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # chromium still writes to its profile while it ends
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield browser
        finally:
            browser.quit()


def errors(browser: webdriver.Chrome) -> list[str]:
    """What the pages opened so far have put on the console as errors."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def drawn(browser: webdriver.Chrome) -> None:
    """Waits until all figures are drawn, which happens when nothing else is to do."""
    WebDriverWait(browser, 60).until(
        lambda _: browser.execute_script("return [...document.querySelectorAll('.plot')].every(plot => plot.data)")
    )


_AXE = """
const done = arguments[0];
axe.run(document, {resultTypes: ["violations"]}).then(({violations}) => done(violations.filter(
  ({impact}) => impact === "serious" || impact === "critical").map(
  ({id, nodes}) => `${id}: ${nodes.length} times, as ${nodes[0].html.slice(0, 200)}: ${nodes[0].failureSummary}`)));
"""


def barriers(browser: webdriver.Chrome, scheme: str) -> list[str]:
    """What axe-core calls serious on the page that is open, in a `light` or `dark` scheme of colours."""
    axe = importlib.util.find_spec("axe_core_python")
    if axe is None or axe.origin is None:
        pytest.skip("needs axe-core-python")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.execute_script(Path(axe.origin).with_name("axe.min.js").read_text())
    browser.set_script_timeout(120)
    return list(browser.execute_async_script(_AXE))
