"""How fast the views of a large study are: the report and optuna-dashboard in headless Chromium.

The study is the thesis' grid with made-up results and images of the thesis' size (tests/synthetic.py); with --copies
each of its 2,268 trials is there so many times. Prints one line per measurement.

    python benchmarks/views.py                # 2,268 trials; two minutes to make, once
    python benchmarks/views.py --copies 5     # 11,340 trials
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import synthetic
from browser import chromium, drawn, errors
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

import ddstudy.thesis.panels  # noqa: F401 - adds its kinds
from ddstudy import dashboard
from ddstudy.report.page import render
from ddstudy.report.panels import read_panels
from ddstudy.store.database import Store


def timed(what: str, action: Callable[[], object]) -> object:
    begun = time.perf_counter()
    result = action()
    print(f"{what:60s} {time.perf_counter() - begun:6.2f} s", flush=True)
    return result


def first_paint(browser: webdriver.Chrome) -> float:
    """Seconds from the navigation to the first contentful paint."""
    script = "return performance.getEntriesByName('first-contentful-paint')[0].startTime"
    return float(browser.execute_script(script)) / 1000


def usable(browser: webdriver.Chrome) -> float:
    """Seconds from the navigation until the best setting's images can be looked at."""
    script = "return performance.getEntriesByName('images')[0]?.startTime"
    wait = WebDriverWait(browser, 60, poll_frequency=0.05)
    return float(wait.until(lambda b: b.execute_script(script))) / 1000


def main_thread(browser: webdriver.Chrome) -> float:
    """Seconds of processor time that the page's main thread has taken; other programs hardly lengthen them."""
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return float({metric["name"]: metric["value"] for metric in metrics}["TaskDuration"])


def answered(browser: webdriver.Chrome) -> str:
    """What the server took for all trials of the study, and how much it sent."""
    script = """return performance.getEntriesByType('resource').filter(entry => entry.name.includes('?after=0')).map(
        entry => [entry.responseEnd - entry.requestStart, entry.encodedBodySize, entry.decodedBodySize])"""
    [(milliseconds, sent, unpacked)] = browser.execute_script(script)
    return f"trials in {milliseconds / 1000:.2f} s: {sent / 1e6:.2f} MB sent, {unpacked / 1e6:.1f} MB unpacked"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "ddstudy-views", help="of the store"
    )
    parser.add_argument("--copies", type=int, default=1, help="of every trial")
    options = parser.parse_args()
    database = options.folder / "thesis.db"
    if not database.exists():
        synthetic.main(options.folder, 2268)
    if options.copies > 1:
        several = options.folder / f"copies-{options.copies}.db"
        if not several.exists():
            shutil.copy(database, several)
            synthetic.multiply(several, options.copies)
        database = several
    store = Store(f"sqlite:///{database}", options.folder / "thesis-artifacts", read_only=True)
    with store, tempfile.TemporaryDirectory() as folder, chromium() as browser:
        view = timed("study read from SQLite", store.view)
        print(f"{len(view.trials):,} trials")
        page = Path(folder) / "report.html"
        page.write_text(timed("report rendered", lambda: render([view], read_panels())), encoding="utf-8")
        print(f"report {page.stat().st_size / 1e6:.2f} MB")
        browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        times = []
        for _ in range(5):
            browser.get(page.as_uri())
            times.append(usable(browser))
        words = ", ".join(f"{seconds:.2f}" for seconds in sorted(times))
        print(f"report, first paint {first_paint(browser):.2f} s, images usable after {words} s")
        timed("report, all other figures drawn", lambda: drawn(browser))
        print(f"report, main thread {main_thread(browser):.2f} s in all")
        with dashboard.server(store.storage, store.artifacts, port=0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            timed("dashboard warmed up", server.warm_up)
            pages = {
                "study page": ("", "Best Trial (number="),
                "study page again": ("", "Best Trial (number="),
                "trial with its images": ("/trials?numbers=3", "output.png"),
                "table and its WebGL figure": ("/smartSelection", "cv_percent"),  # drawn without a graphics card here
            }
            for what, (path, words) in pages.items():

                def shown(path: str = path, words: str = words) -> None:
                    browser.get(f"{server.url}/dashboard/studies/1{path}")
                    wait = WebDriverWait(browser, 120, poll_frequency=0.1)
                    wait.until(
                        lambda b: b.execute_script("return document.body.textContent.includes(arguments[0])", words)
                    )

                timed(f"dashboard, {what}, until its content", shown)
                print(f"{'':12s}first paint {first_paint(browser):.2f} s, {answered(browser)}")
            server.shutdown()
        print(f"errors on the console: {len(errors(browser))}")


if __name__ == "__main__":
    main()
