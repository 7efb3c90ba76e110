"""The report of a study while it runs: what its page asks for, in Chromium too, and when its server ends."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import clusters
import pytest
import synthetic
from browser import chromium, errors
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import ddstudy
from ddstudy import live, web
from ddstudy.store.database import Store

SPACE = {"k": [8, 64], "s": [4, 16], "l": [4], "iterations": [250, 500], "noise": ["uniform"], "tiling": ["1x1"]}
SPEC = synthetic.spec_of("live", SPACE, fit={"members": 2})
SETTINGS = list(SPEC.search_space)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'live.db'}"


@contextmanager
def shown(url: str) -> Iterator[str]:
    """Serves the study, and gives the address."""
    with (
        Store(url, read_only=True) as store,
        web.Server(live._answering(store, ["live"], None), "report") as bound,
    ):
        thread = threading.Thread(target=bound.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield bound.url
        finally:
            bound.shutdown()
            thread.join()


def asked(address: str, **kwargs: object) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, **kwargs)) as answer:  # type: ignore[arg-type]
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_status_and_page_tell_what_the_store_holds_now(url, monkeypatch):
    monkeypatch.setattr(live, "_VIEW_PAUSE", 0.0)
    monkeypatch.setattr(live, "_PAGE_PAUSE", 0.0)
    monkeypatch.setattr(live, "_SHARE", 1e9)
    monkeypatch.setattr("ddstudy.store.leases.TELL_SECONDS", 0.1)
    with synthetic.driven(url, SPEC, (48, 60)) as study, shown(url) as address:

        def status() -> dict:
            code, body = asked(f"{address}/status")
            assert code == 200
            return json.loads(body)

        assert [status()["studies"][0][part] for part in ("done", "best", "history")] == [0, "", None]
        synthetic.record(study, SETTINGS[:3])
        assert study.leases.take(SETTINGS[3].fit.id)
        study.leases.tell(SETTINGS[3].fit.id, "here", 120, 500, 600.0)
        clusters.until(lambda: "120 of 500" in status()["studies"][0]["progress"])
        before = status()
        (told,) = before["studies"]
        assert (told["done"], told["total"]) == (3, len(SETTINGS))
        assert f"3 of {len(SETTINGS)} settings, " in told["progress"]
        assert re.search("about 10 min left", told["progress"])
        assert f"<li>{SETTINGS[3].fit.id} at 120 of 500 on here</li>" in told["progress"]
        scores = {n: synthetic.quality(setting)[0] for n, setting in enumerate(SETTINGS[:3])}
        best = max(scores, key=lambda n: scores[n])
        assert f"{scores[best]:.2f} dB, trial {best}" in told["best"]
        assert "data:image/webp" in told["best"]
        points, line = told["history"]["data"]
        assert points["customdata"] == [0, 1, 2]
        assert line["y"] == pytest.approx([max(list(scores.values())[: n + 1]) for n in range(3)])
        again = json.loads(asked(f"{address}/status?{before['known']}")[1])["studies"]
        assert [set(each) for each in again] == [{"name", "done", "total", "progress"}]  # the rest it has
        code, page = asked(address)
        assert (code, f'data-version="{before["version"]}"' in page) == (200, True)
        assert f"3 of {len(SETTINGS)} settings" in page

        # news: a page that is too young, or took too long to make, stays as it is, and says so of itself
        monkeypatch.setattr(live, "_SHARE", 1e-9)
        synthetic.record(study, SETTINGS[3:])
        assert status()["version"] != before["version"]
        assert f"{len(SETTINGS)} of {len(SETTINGS)} settings" in asked(address)[1]
        kept = status()["version"]
        synthetic.record(study, SETTINGS[:1])  # measured again
        assert status()["version"] == kept
        assert f'data-version="{kept}"' in asked(address)[1]
        study.leases.release(SETTINGS[3].fit.id)
        assert f"{len(SETTINGS)} of {len(SETTINGS)} settings, done" in status()["studies"][0]["progress"]

        assert asked(address, method="HEAD") == (200, "")
        assert asked(f"{address}/x")[0] == 404
        assert asked(address, method="POST", data=b"x") == (405, "This report is read-only.\n")
        assert asked(address, headers={"Host": "evil.example"})[0] == 403
        assert ddstudy.open_study("live", url).troubles == []
        with Store(url) as store:
            store.storage.delete_study(1)
        code, why = asked(f"{address}/status")
        assert (code, "live.db: no study 'live'" in why) == (404, True)


COMMAND = [sys.executable, "-u", "-m", "ddstudy.cli"]


def printed(process: subprocess.Popen[str], *patterns: str) -> list[re.Match[str]]:
    """What matches these patterns, once a command has printed all of them."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        found = [match for pattern in patterns if (match := re.search(pattern, text, flags=re.M))]
        if len(found) == len(patterns):
            return found
    raise AssertionError(text)


def test_ctrl_c_ends_watching_in_a_line(url):
    with synthetic.driven(url, SPEC, (48, 60)) as study:
        synthetic.record(study, SETTINGS[:2])
    command = [*COMMAND, "report", "--watch", "--open", "--store", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            (there,) = printed(process, r"^Report of live at (http://127.0.0.1:\d+) \(read-only; Ctrl-C ends it\)")
            address = there[1]
            assert json.loads(asked(f"{address}/status")[1])["studies"][0]["done"] == 2
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "Ended.\n", "")


def test_a_run_shows_itself_until_ctrl_c(url, picture, tmp_path):
    """A process beside it that stayed would hold a port, and a database."""
    (tmp_path / "small.toml").write_text(
        f'[target]\nfile = "{picture}"\n[space]\nk = [2]\ns = [4]\nl = [2]\niterations = [5, 10]\n[fit]\nmembers = 2\n'
    )
    command = [*COMMAND, "run", "small.toml", "--open", "--store", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            there, _ = printed(process, r"^Report at (http://127.0.0.1:\d+)", "stays in the browser until Ctrl-C")
            assert json.loads(asked(f"{there[1]}/status")[1])["studies"][0]["done"] == 2
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
    with pytest.raises(urllib.error.URLError):
        asked(there[1])


@pytest.mark.slow
def test_new_results_come_to_a_reader_who_stays_where_they_are(url, monkeypatch):
    monkeypatch.setattr(live, "_PAGE_PAUSE", 0.0)
    monkeypatch.setattr(live, "_SHARE", 1e9)
    with synthetic.driven(url, SPEC, (48, 60)) as study:
        synthetic.record(study, SETTINGS[:5])
        with shown(url) as address, chromium() as browser:
            wait = WebDriverWait(browser, 60)
            browser.get(address)
            wait.until(lambda b: b.title.startswith(f"5/{len(SETTINGS)} "))
            assert browser.find_elements(By.CSS_SELECTOR, "#live figure img")
            assert browser.find_elements(By.CSS_SELECTOR, "#live .plot .scatterlayer .trace")
            browser.execute_script("document.querySelector('.trials').scrollIntoView()")
            search = ".trials input[type=search]"
            wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, search))[0].send_keys("COMPLETE")
            browser.execute_script("document.querySelector('.index').open = window.old = true; scrollBy(0, -250)")
            time.sleep(0.5)  # what comes into view is drawn
            seen = "return document.querySelector('.trials h2').getBoundingClientRect().top"
            before = browser.execute_script(seen)

            browser.execute_script("document.querySelector('#live input').click()")  # not by itself
            synthetic.record(study, SETTINGS[5:6])
            wait.until(lambda b: b.execute_script("return !document.querySelector('#live a').hidden"))
            assert browser.execute_script("return window.old")
            browser.execute_script("document.querySelector('#live input').click()")
            wait.until(lambda b: b.execute_script("return document.readyState === 'complete' && !window.old"))
            (box,) = wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, search))
            assert box.get_attribute("value") == "COMPLETE"
            assert browser.execute_script("return document.querySelector('.index').open")
            assert browser.execute_script(seen) == pytest.approx(before, abs=2)
            assert f"6 of {len(SETTINGS)} settings" in browser.execute_script("return document.body.innerText")
            assert errors(browser) == []
