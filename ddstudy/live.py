"""The report of a study while it runs, in a browser: a page that looks at the store, and says when there is news.

The page is that of `ddstudy report`, with a status above it that is asked for every two seconds, and of which it gets
what it does not have yet. Both are made when a browser asks, and no more often than costs the study a tenth of a core.
A driver shows its own study from a process beside it, `Beside`: drawing would hold up the loop, and another process can
give way to the fits.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
import webbrowser
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from ddstudy.errors import UserError
from ddstudy.report import status
from ddstudy.results import Study, report_page
from ddstudy.store.database import READ_ERRORS, Store
from ddstudy.store.study import StudyView
from ddstudy.study.forecasting import outlook
from ddstudy.web import LOOPBACK, RefusedError, Server, read_only

_WHAT = "report"
_VIEW_PAUSE, _PAGE_PAUSE = 1.0, 10.0  # seconds at least from one to the next
_SHARE = 0.1  # of a core, that they take at most
_NICE = 10  # of a process beside a driver
T = TypeVar("T")


class _Kept(Generic[T]):
    """Something that is made of what is stored: anew when that has changed, and not too often.

    Args:
        make: makes it of a state of the store.
        pause: seconds at least from one to the next.
    """

    def __init__(self, make: Callable[[str], T], pause: float) -> None:
        self._make, self._pause = make, pause
        self._lock = threading.Lock()  # two pages opened at once wait for one answer
        self._kept: tuple[str, T] | None = None
        self._due = 0.0

    def state(self, stored: str) -> str:
        """The state of which it would be made, were it asked for now."""
        return stored if self._kept is None or time.monotonic() >= self._due else self._kept[0]

    def __call__(self, stored: str) -> T:
        with self._lock:
            state, begun = self.state(stored), time.monotonic()
            if self._kept is None or self._kept[0] != state:
                self._kept = state, self._make(state)
                now = time.monotonic()
                self._due = now + max(self._pause, (now - begun) / _SHARE)
            return self._kept[1]


def app(store: Store, names: Sequence[str], dashboard: Path | None = None, host: str = LOOPBACK) -> WSGIApplication:
    """The live report as a WSGI application that cannot change anything.

    Args:
        store: open for reading.
        names: of the studies.
        dashboard: see `Study.report`.
        host: see `web.read_only`.
    """
    return read_only(_answering(store, names, dashboard), _WHAT, host)


def serve(
    store: Store,
    names: Sequence[str],
    dashboard: Path | None = None,
    port: int = 0,
    *,
    ready: Callable[[str], object] | None = None,
) -> None:
    """Shows studies on this machine until Ctrl-C.

    Args:
        store: see `app`.
        names: see `app`.
        dashboard: see `Study.report`.
        port: see `web.Server`.
        ready: called once with the address to open, when the server listens.

    Raises:
        UserError: see `web.Server`; or there is no such study.
    """
    for name in names:
        store.view(name)  # or is refused before anyone looks
    with Server(_answering(store, names, dashboard), _WHAT, port=port) as bound:
        bound.serve_until_ctrl_c(ready)


def _answering(store: Store, names: Sequence[str], dashboard: Path | None) -> WSGIApplication:
    def page_of(version: str) -> bytes:
        return report_page([Study(store.view(name)) for name in names], dashboard, version)

    def looked_at(state: str) -> tuple[str, list[tuple[StudyView, dict[str, Any]]]]:
        views = [store.view(name) for name in names]
        return state, [(view, status.found(view)) for view in views]

    looks = _Kept(looked_at, _VIEW_PAUSE)
    page = _Kept(page_of, _PAGE_PAUSE)

    def status_now(stored: str, known: str) -> bytes:
        now, (state, looked), studies = datetime.now(), looks(stored), []
        for view, found in looked:
            at_work = store.at_work(view.name)
            progress = status.progress(view, at_work, outlook(view, at_work, now))
            studies.append(progress | (found if known != state else {}))
        return json.dumps({"version": page.state(stored), "known": state, "studies": studies}).encode()

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] not in ("", "/status"):
            raise RefusedError("404 Not Found", "There are `/`, the report, and `/status`.")
        try:
            stored = _stored(store, names)
            if environ["PATH_INFO"]:
                kind, body = "application/json", status_now(stored, environ.get("QUERY_STRING", ""))
            else:
                kind, body = "text/html; charset=utf-8", page(stored)
        except READ_ERRORS as error:
            raise RefusedError("503 Service Unavailable", f"The store cannot be read: {store.said(error)}") from None
        except UserError as error:  # it was deleted
            raise RefusedError("404 Not Found", str(error)) from None
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
        start_response("200 OK", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return answer


def _stored(store: Store, names: Sequence[str]) -> str:
    """What changes whenever a trial of one of these studies, or of its cases, has finished."""
    return "-".join(str(store.finished(name)) for name in names)


class Beside:
    """The live report of a study that this process runs, from a process beside it, which ends with this one.

    Args:
        store: URL of the store, where the study may not be yet.
        artifacts: folder of its images; None for that beside the store.
        name: of the study.
        ready: called once with the address to open, from a thread.
    """

    def __init__(self, store: str, artifacts: Path | None, name: str, ready: Callable[[str], object]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_beside, args=(theirs, store, artifacts, name), daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which it inherits: Ctrl-C is for us
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        threading.Thread(target=self._wait, args=(ready,), daemon=True).start()

    def _wait(self, ready: Callable[[str], object]) -> None:
        with contextlib.suppress(EOFError, OSError):  # it has ended, or we have
            ready(self._pipe.recv())

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def wait(self) -> None:
        """Until Ctrl-C, or something else ends it."""
        with contextlib.suppress(KeyboardInterrupt):
            self._process.join()


def _beside(driver: Connection, url: str, artifacts: Path | None, name: str) -> None:
    """Serves a study as soon as it is there, until its driver ends, however that is."""
    os.nice(_NICE)
    while not _is_there(url, name):
        if driver.poll(0.5):  # nobody sends anything: the driver has ended
            return
    with Store(url, artifacts, read_only=True) as store, Server(_answering(store, [name], None), _WHAT) as bound:
        threading.Thread(target=bound.serve_forever, daemon=True).start()
        driver.send(bound.url)
        driver.poll(None)
        bound.shutdown()


def _is_there(url: str, name: str) -> bool:
    try:
        with Store(url, read_only=True) as store:
            return name in store.names()
    except (UserError, *READ_ERRORS):
        return False


def open_browser(address: str) -> bool:
    """Opens an address in the user's browser; whether there is one.

    A browser that runs in the terminal is not taken, unless BROWSER names it: the terminal is in use.
    """
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    if type(browser) is webbrowser.GenericBrowser and "BROWSER" not in os.environ:
        return False
    threading.Thread(target=browser.open, args=(address,), daemon=True).start()  # some return when they are closed
    return True
