"""The dashboard shows a study as it is and cannot change it."""

import contextlib
import gzip
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import cv2
import numpy as np
import optuna
import optuna_dashboard
import pytest
import sqlalchemy
import synthetic
from browser import chromium, errors
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.distributions import IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from ddstudy import dashboard, web
from ddstudy.errors import UserError
from ddstudy.report.panels import read_panels
from ddstudy.store.database import Store
from ddstudy.store.urls import parse_url

PSNR = 31.25
SPACE = {"k": IntDistribution(8, 64)}


@pytest.fixture
def dashboard_url(store_url: str) -> str:
    """URL of an empty database of each kind."""
    return parse_url(store_url).render_as_string(hide_password=False)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return folder


def open_read_only(url: str) -> RDBStorage:
    return Store(url, read_only=True).storage


@contextmanager
def opened(opener: Callable[[str], RDBStorage], url: str) -> Iterator[RDBStorage]:
    storage = opener(url)
    try:
        yield storage
    finally:
        storage.engine.dispose()


@pytest.fixture
def storage(dashboard_url: str) -> Iterator[RDBStorage]:
    """The database, open for writing: what the dashboard leaves alone it leaves alone by itself."""
    with opened(RDBStorage, dashboard_url) as storage:
        yield storage


@pytest.fixture
def study(storage: RDBStorage, artifacts: Path, tmp_path: Path) -> optuna.Study:
    """Trials 0 feasible with an image, 1 infeasible, 2 PRUNED and infeasible, 3 without a constraint."""
    study = optuna.create_study(storage=storage, study_name="thesis", direction="maximize")
    image = tmp_path / "ensemble.png"
    cv2.imwrite(str(image), np.linspace(0, 255, 64 * 48).reshape(64, 48).astype(np.uint8))
    trial = study.ask(SPACE)
    trial.set_user_attr("psnr", PSNR)
    trial.set_constraint("cv", -2.0)
    upload_artifact(study_or_trial=trial, file_path=str(image), artifact_store=FileSystemArtifactStore(artifacts))
    study.tell(trial, PSNR)
    study.add_trial(create_trial(value=35, params={"k": 8}, distributions=SPACE, constraints={"cv": 1.5, "vif": -1}))
    study.add_trial(
        create_trial(state=TrialState.PRUNED, params={"k": 9}, distributions=SPACE, constraints={"cv": 7.0})
    )
    study.add_trial(create_trial(value=20, params={"k": 10}, distributions=SPACE))
    return study


def call(
    app, method: str, path: str, without: tuple[str, ...] = (), **environ: str
) -> tuple[int, dict[str, str], bytes]:
    """Ask a WSGI application, without a server."""
    asked = {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO(b"{}"), "CONTENT_LENGTH": "2"}
    asked |= {"CONTENT_TYPE": "application/json", "HTTP_ACCEPT_ENCODING": "gzip"} | environ
    setup_testing_defaults(asked)
    for name in without:
        asked.pop(name, None)
    answer = []
    chunks = app(asked, lambda status, headers, exc_info=None: answer.append((status, headers)))
    body = b"".join(chunks)
    getattr(chunks, "close", lambda: None)()
    [(status, headers)] = answer
    if dict(headers).get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    return int(status.split()[0]), dict(headers), body


def detail(app, study_id: int) -> dict:
    status, _, body = call(app, "GET", f"/api/studies/{study_id}")
    assert status == 200
    return json.loads(body)


def rows(url: str) -> dict[str, list]:
    """Every row of every table."""
    engine = sqlalchemy.create_engine(url)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        content = {name: sorted(map(repr, connection.execute(table.select()))) for name, table in tables.tables.items()}
    engine.dispose()
    return content


@contextmanager
def running(storage, artifacts: Path | None = None) -> Iterator[dashboard.DashboardServer]:
    with dashboard.server(storage, artifacts, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def two_lines(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert message.count("\n") == 1
    return message


# --- nothing can be changed


def changing_routes() -> list[tuple[str, str]]:
    """Every route of the dashboard that is not a plain read, with 1 for each number and a word for each name."""
    raw = optuna_dashboard.wsgi(optuna.storages.InMemoryStorage(), None)
    return [
        (route.method, re.sub(r"<[^>]*>", "1", route.rule))
        for route in raw.routes
        if route.method not in ("GET", "HEAD")
    ]


def test_every_changing_route_is_refused(study, storage, artifacts, dashboard_url):
    app = dashboard.app(storage, artifacts)
    before, files = rows(dashboard_url), sorted(artifacts.iterdir())
    routes = changing_routes()
    assert ("DELETE", "/api/studies/1") in routes
    assert len(routes) > 10
    for method, path in [*routes, ("PATCH", "/api/studies/1"), ("OPTIONS", "/"), ("delete", "/api/studies/1")]:
        status, headers, body = call(app, method, path)
        assert status == 405, (method, path)
        assert headers["Allow"] == "GET, HEAD"
        assert headers["Content-Type"].startswith("text/plain")
        assert b"read-only" in body
    assert rows(dashboard_url) == before
    assert sorted(artifacts.iterdir()) == files


def test_the_unguarded_dashboard_would_delete(study, storage):
    """Guards the test above: its routes do reach something."""
    assert call(optuna_dashboard.wsgi(storage), "DELETE", "/api/studies/1")[0] == 204


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_reading_leaves_an_sqlite_file_byte_for_byte(study, storage, artifacts, tmp_path):
    file = tmp_path / "studies.db"
    before = file.read_bytes()
    app = dashboard.app(storage, artifacts)
    for method, path in [*changing_routes(), ("GET", "/api/studies"), ("GET", "/api/studies/1"), ("GET", "/csv/1")]:
        call(app, method, path)
    assert file.read_bytes() == before


def test_the_view_refuses_writes_even_past_the_methods(study, storage):
    view = dashboard._View(storage)
    with pytest.raises(PermissionError):
        view.delete_study(1)
    with pytest.raises(PermissionError):
        optuna.create_study(storage=view)


def test_head_is_a_get_without_its_body(study, storage):
    app = dashboard.app(storage, None)
    assert call(app, "HEAD", "/api/studies")[::2] == (200, b"")
    assert call(app, "HEAD", "/api/studies", HTTP_HOST="evil.example")[::2] == (403, b"")


def test_over_a_socket(study, storage, artifacts):
    with running(storage, artifacts) as server:
        with urllib.request.urlopen(server.url) as page:
            assert page.url == server.url + "/dashboard"
            assert b"Optuna Dashboard" in page.read()
        delete = urllib.request.Request(server.url + "/api/studies/1", method="DELETE")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(delete)
        with refused.value:
            assert refused.value.code == 405
    assert [s.study_name for s in storage.get_all_studies()] == ["thesis"]


# --- odd requests and idle connections

ODD_NUMBERS = (
    "0",
    "-1",
    "99",
    str(2**31),
    str(2**63 - 1),
    str(2**63),
    "9" * 30,
    "9" * 5000,
    "abc",
    "1.5",
    "%31",
    "\N{ARABIC-INDIC DIGIT ONE}",
    "",
)


def test_odd_requests_are_answered_in_words(study, storage, artifacts, dashboard_url):
    """Numbers beyond the database's, `after=abc` and unknown artifacts ended in a 500."""
    app = dashboard.app(storage, artifacts)
    before = rows(dashboard_url)
    places = ("/api/studies/{}", "/csv/{}", "/artifacts/{}/abc", "/artifacts/{}/1/abc", "/artifacts/1/{}/abc")
    places += ("/artifacts/1/1/{}", "/api/studies/{}/param_importances", "/api/studies/{}/plot/slice")
    asked = [(place.format(number).encode().decode("latin-1"), "") for place in places for number in ODD_NUMBERS]
    asked += [("/api/studies/1/plot/pareto_front", ""), ("/api/studies/1/plot/none", ""), ("/static/x/../y", "")]
    asked += [("/api/studies/1", f"after={after}") for after in ("abc", "-1", "", "1.5", "9" * 30, "1&after=x")]
    asked += [("/csv/1", f"trial_ids={ids}") for ids in ("abc", "1,,", "9" * 30)]
    for path, query in asked:
        for method in ("GET", "HEAD"):
            status, _, body = call(app, method, path, QUERY_STRING=query)
            listing = path == "/api/studies/"  # the list of studies
            assert status == 200 if listing else status in (400, 404), (method, path, query)
            assert body or method == "HEAD"
    assert call(app, "GET", "/api/studies/1/", QUERY_STRING="after=4")[0] == 200
    assert rows(dashboard_url) == before


def test_a_study_may_be_named_in_any_alphabet(storage):
    """Its name stands in a header of the table to download, which takes Latin letters on one line."""
    optuna.create_study(storage=storage, study_name="脳 é")
    optuna.create_study(storage=storage, study_name="a\nSet-Cookie: b")
    app = dashboard.app(storage, None)
    status, headers, _ = call(app, "GET", "/csv/1")
    assert status == 200
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert call(app, "GET", "/csv/2")[0] == 400


def said(server: dashboard.DashboardServer, request: bytes) -> bytes:
    """All that the server says to what is sent, however little that is."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall(request)
        parts = iter(lambda: connection.recv(65536), b"")
        return b"".join(parts)


def test_bodies_that_are_only_promised_are_not_waited_for(study, storage):
    with running(storage) as server:
        for promise in (b"Transfer-Encoding: chunked", b"Content-Length: 1000000000", b"Content-Length: x"):
            for line in (b"GET /api/studies/1?after=0", b"HEAD /api/studies"):
                answer = said(server, line + b" HTTP/1.1\r\nHost: localhost\r\n" + promise + b"\r\n\r\n")
                assert answer.startswith(b"HTTP/1.0 200 OK")


def test_idle_connections_keep_nobody_waiting(study, storage, monkeypatch):
    """At a thread each, 1,026 of them once were the end."""
    monkeypatch.setattr(web, "_MOST_CONNECTIONS", 8)
    with running(storage) as server, contextlib.ExitStack() as opened_ones:
        address = ("127.0.0.1", server.server_port)
        idle = [opened_ones.enter_context(socket.create_connection(address, timeout=30)) for _ in range(30)]
        idle[-1].sendall(b"GET /api/studies HTTP/1.1\r\nHost: ")  # is as idle
        with urllib.request.urlopen(server.url + "/api/studies") as answer:
            assert b"thesis" in answer.read()
        assert idle[0].recv(1) == b""  # the oldest were hung up on
        monkeypatch.setattr(web, "_REQUEST_SECONDS", 0.0)
        assert [connection.recv(1) for connection in idle] == [b""] * 30
        assert not server._idle


def test_too_many_requests_at_a_time_are_told_so(storage, monkeypatch):
    monkeypatch.setattr(web, "_MOST_CONNECTIONS", 2)
    with running(storage) as server:
        begun, go_on = threading.Semaphore(0), threading.Event()

        def slow(environ, start_response):
            begun.release()
            go_on.wait(30)
            start_response("200 OK", [("Content-Length", "0")])
            return []

        server.set_app(slow)
        request = b"GET / HTTP/1.0\r\n\r\n"
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(said(server, request))) for _ in range(2)]
        for thread in threads:
            thread.start()
            assert begun.acquire(timeout=30)
        assert said(server, b"").startswith(b"HTTP/1.0 503 ")
        go_on.set()
        for thread in threads:
            thread.join()
        assert [answer[:12] for answer in answers] == [b"HTTP/1.0 200"] * 2
        assert said(server, request).startswith(b"HTTP/1.0 200 ")


# --- who is answered


@pytest.mark.parametrize(
    ("bound", "header", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8080", 200),
        ("127.0.0.1", "localhost", 200),
        ("127.0.0.1", "LocalHost:99", 200),
        ("127.0.0.1", "127.8.8.8", 200),
        ("127.0.0.1", "[::1]:8080", 200),
        ("127.0.0.1", "", 403),
        ("127.0.0.1", "evil.example", 403),
        ("127.0.0.1", "localhost.evil.example", 403),
        ("127.0.0.1", "127.0.0.1.evil.example:8080", 403),
        ("127.0.0.1", "192.0.2.7", 403),
        ("127.0.0.1", "[::1", 403),
        ("gpu.example", "GPU.example:8080", 200),
        ("gpu.example", "localhost", 200),
        ("gpu.example", "evil.example", 403),
        ("0.0.0.0", "192.0.2.7:8080", 200),
        ("0.0.0.0", f"{socket.gethostname()}:8080", 200),
        ("0.0.0.0", "evil.example", 403),
        ("", "", 403),
    ],
)
def test_host_header(bound, header, status):
    """A page elsewhere whose name is rebound to this machine must stay outside."""
    app = dashboard.app(optuna.storages.InMemoryStorage(), None, bound)
    assert call(app, "GET", "/api/studies", HTTP_HOST=header)[0] == status


def test_the_host_is_checked_before_the_method():
    app = dashboard.app(optuna.storages.InMemoryStorage(), None)
    assert call(app, "DELETE", "/api/studies/1", HTTP_HOST="evil.example")[0] == 403


def test_no_host_header():
    app = dashboard.app(optuna.storages.InMemoryStorage(), None)
    assert call(app, "GET", "/api/studies", without=("HTTP_HOST",))[0] == 403


@pytest.mark.parametrize("path", ["/static/bundle.js", "/favicon.ico"])
def test_without_accept_encoding(path):
    """optuna-dashboard 0.21 answers such a request with an error 500."""
    app = dashboard.app(optuna.storages.InMemoryStorage(), None)
    status, headers, body = call(app, "GET", path, without=("HTTP_ACCEPT_ENCODING",))
    assert status == 200
    assert "Content-Encoding" not in headers
    assert len(body) == int(headers["Content-Length"])


def test_security_headers_join_the_dashboards_own(storage):
    headers = call(dashboard.app(storage, None), "GET", "/dashboard")[1]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "script-src 'self'" in headers["Content-Security-Policy"]


def test_the_page_hides_what_cannot_be_done(storage):
    app = dashboard.app(storage, None)
    unconditional = {"HTTP_IF_MODIFIED_SINCE": "Fri, 01 Jan 2100 00:00:00 GMT", "HTTP_RANGE": "bytes=0-9"}
    for path, extra in (("/dashboard", {}), ("/dashboard/studies/1", unconditional)):
        status, headers, body = call(app, "GET", path, **extra)
        assert (status, int(headers["Content-Length"])) == (200, len(body))
        assert body.count(dashboard._FOR_READING.encode() + b"</head>") == 1
        assert call(app, "HEAD", path)[1:] == (headers, b"")
    # its rules stand on names that another version of the dashboard may no longer have
    script = call(app, "GET", "/static/bundle.js", without=("HTTP_ACCEPT_ENCODING",))[2].decode()
    for name in re.findall(r'data-testid="(\w+)Icon"', dashboard._FOR_READING):
        assert f'"{name}")' in script
    assert '"graph-hyperparameter-importances"' in script
    for part in ("CardActionArea", "Card", "Grid"):
        assert f'"Mui{part}"' in script


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.0.2.7", "gpu.example"])
def test_remote_needs_to_be_allowed(host):
    with pytest.raises(UserError) as error:
        dashboard.serve(optuna.storages.InMemoryStorage(), None, host=host, port=0)
    assert "no login" in two_lines(error)


def test_allowed_remote():
    with dashboard.server(optuna.storages.InMemoryStorage(), None, "0.0.0.0", 0, allow_remote=True) as server:
        assert server.url == f"http://{socket.gethostname()}:{server.server_port}"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_port_in_use(host):
    with closing(socket.create_server((host, 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as error:
            dashboard.serve(optuna.storages.InMemoryStorage(), None, host=host, port=port)
    assert f"cannot listen on {host}:{port}: Address already in use" in two_lines(error)
    assert "--port" in str(error.value)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 65536), ("192.0.2.7", 0)])
def test_impossible_address(host, port):
    with pytest.raises(UserError) as error:
        dashboard.serve(optuna.storages.InMemoryStorage(), None, host=host, port=port, allow_remote=True)
    assert f"cannot listen on {host}:{port}" in two_lines(error)


def test_ctrl_c_ends_cleanly_and_quietly(study, dashboard_url):
    command = [sys.executable, "-u", "-m", "ddstudy.cli", "dashboard", "--port", "0", "--store", dashboard_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://[^ /]+", process.stdout.readline())
            with urllib.request.urlopen(url[0] + "/api/studies") as answer:
                assert b"thesis" in answer.read()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "", "")


# --- what is shown


@pytest.mark.parametrize("wrap", [lambda s: s, optuna.storages.get_storage], ids=["plain", "cached"])
def test_constraints(study, storage, wrap):
    """optuna-dashboard 0.21 takes every trial with Optuna 5's constraints for feasible."""
    app = dashboard.app(wrap(storage), None)
    for _ in range(2):  # the second answer comes from the dashboard's memory
        shown = detail(app, study._study_id)
        assert [t["constraints"] for t in shown["trials"]] == [[-2.0], [1.5, -1], [7.0], []]
        assert [t["state"] for t in shown["trials"]] == ["Complete", "Complete", "Pruned", "Complete"]
    assert [t["number"] for t in shown["best_trials"]] == [0]  # trial 1 is higher, and unstable
    assert {"key": "psnr", "sortable": True} in shown["union_user_attrs"]


def test_constraints_are_added_in_a_copy(study, storage):
    cached = optuna.storages.get_storage(storage)
    detail(dashboard.app(cached, None), study._study_id)
    assert [dict(t.constraints) for t in cached.get_all_trials(study._study_id)] == [
        {"cv": -2.0},
        {"cv": 1.5, "vif": -1.0},
        {"cv": 7.0},
        {},
    ]


def test_constraints_of_the_old_kind_stay(storage):
    study = optuna.create_study(storage=storage)
    study.add_trial(create_trial(value=1, system_attrs={"constraints": [3.0]}))
    assert detail(dashboard.app(storage, None), study._study_id)["trials"][0]["constraints"] == [3.0]


def test_none_feasible(storage):
    study = optuna.create_study(storage=storage)
    for value in (2.0, 1.0):
        study.add_trial(create_trial(value=value, constraints={"cv": 1.0}))
    assert [t["number"] for t in detail(dashboard.app(storage, None), study._study_id)["best_trials"]] == [1]


def test_a_study_without_trials(storage):
    study = optuna.create_study(storage=storage)
    assert detail(dashboard.app(storage, None), study._study_id)["best_trials"] == []


def test_new_trials_appear(study, storage, dashboard_url):
    """The cache of finished trials is no reason to miss one: the driver writes while the dashboard runs."""
    with opened(open_read_only, dashboard_url) as shown:
        view = dashboard._View(optuna.storages.get_storage(shown))
        running_trial = study.ask(SPACE)
        assert view.get_all_trials(study._study_id)[-1].state == TrialState.RUNNING
        running_trial.set_constraint("cv", 4.0)
        study.tell(running_trial, 1.0)
        study.add_trial(create_trial(value=1, params={"k": 10}, distributions=SPACE))
        *_, told, added = view.get_all_trials(study._study_id)
        assert told.system_attrs["constraints"] == [4.0]
        assert added.number == told.number + 1


@pytest.fixture
def written(monkeypatch) -> list[int]:
    """How many trials each answer about a whole study has, one entry for each time that the dashboard writes one."""
    counts = []
    write = optuna_dashboard._app.serialize_study_detail

    def counted(study, best_trials, trials, *others):
        counts.append(len(trials))
        return write(study, best_trials, trials, *others)

    monkeypatch.setattr(optuna_dashboard._app, "serialize_study_detail", counted)
    return counts


def test_an_answer_about_a_whole_study_is_kept_while_nothing_changes(study, storage, written):
    app = dashboard.app(storage, None)
    first = call(app, "GET", "/api/studies/1", QUERY_STRING="after=0")
    assert call(app, "GET", "/api/studies/1", QUERY_STRING="after=0") == first
    assert written == [4]
    assert first[1]["Content-Encoding"] == "gzip"
    assert call(app, "HEAD", "/api/studies/1", QUERY_STRING="after=0")[::2] == (200, b"")
    plain = call(app, "GET", "/api/studies/1", without=("HTTP_ACCEPT_ENCODING",), QUERY_STRING="after=0")
    assert "Content-Encoding" not in plain[1]
    assert plain[2] == first[2]
    later = call(app, "GET", "/api/studies/1", QUERY_STRING="after=3")[2]
    assert [trial["number"] for trial in json.loads(later)["trials"]] == [3]
    assert call(app, "GET", "/api/studies/99", QUERY_STRING="after=0")[0] == 404


def test_a_kept_answer_gives_way_to_whatever_changes(study, storage, written):
    """The dashboard itself lets its trials be seconds old, and one that old must not be kept for good."""
    app = dashboard.app(storage, None)
    assert len(detail(app, 1)["trials"]) == 4
    going_on = study.ask(SPACE)
    assert [t["state"] for t in detail(app, 1)["trials"]][4:] == ["Running"]
    going_on.report(1.5, step=1)
    assert detail(app, 1)["trials"][4]["intermediate_values"] == [{"step": 1, "value": 1.5}]
    study.tell(going_on, 40.0)
    assert detail(app, 1)["trials"][4]["values"] == [40.0]
    study.set_user_attr("subject", "sub-01")
    assert detail(app, 1)["user_attrs"] == [{"key": "subject", "value": "sub-01"}]
    detail(app, 1)
    assert written == [4, 5, 5, 5, 5]


def test_not_more_answers_are_kept_than_a_few(study, storage, written):
    app = dashboard.app(storage, None)
    for after in range(2 * dashboard._MOST_CACHED):
        call(app, "GET", "/api/studies/1", QUERY_STRING=f"after={after}")
    call(app, "GET", "/api/studies/1", QUERY_STRING="after=0")
    assert len(written) == 2 * dashboard._MOST_CACHED + 1


@pytest.mark.filterwarnings(
    "ignore:.*set_metric_names is experimental"
)  # the names of the objectives have no other home
def test_several_objectives(storage):
    study = optuna.create_study(storage=storage, study_name="pareto", directions=["maximize", "minimize"])
    study.set_metric_names(["psnr", "seconds"])
    for values, cv in [((30, 10), -1.0), ((20, 20), -1.0), ((32, 30), 2.0)]:
        study.add_trial(create_trial(values=values, params={"k": 8}, distributions=SPACE, constraints={"cv": cv}))
    study.add_trial(create_trial(state=TrialState.PRUNED, constraints={"cv": 9.0}))
    app = dashboard.app(storage, None)
    shown = detail(app, study._study_id)
    assert shown["objective_names"] == ["psnr", "seconds"]
    assert [t["constraints"] for t in shown["trials"]] == [[-1.0], [-1.0], [2.0], [9.0]]
    assert [t["number"] for t in shown["best_trials"]] == [0]  # trial 2 is on the front of all, and unstable


@pytest.mark.parametrize("page", ["csv/1", "api/studies/1/plot/slice", "api/studies/1/param_importances"])
def test_other_readers_work_through_the_view(study, storage, page):
    assert call(dashboard.app(storage, None), "GET", f"/{page}")[0] == 200


def test_artifacts(study, storage, artifacts, tmp_path):
    app = dashboard.app(storage, artifacts)
    trial = detail(app, study._study_id)["trials"][0]
    [artifact] = trial["artifacts"]
    assert (artifact["filename"], artifact["mimetype"]) == ("ensemble.png", "image/png")
    path = f"/artifacts/{study._study_id}/{trial['trial_id']}/{artifact['artifact_id']}"
    status, headers, body = call(app, "GET", path)
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert body == (tmp_path / "ensemble.png").read_bytes()
    assert "Access-Control-Allow-Origin" not in headers
    (artifacts / artifact["artifact_id"]).unlink()
    assert call(app, "GET", path)[0] == 404


def test_artifacts_of_a_trial_added_whole(storage, artifacts):
    meta = {"artifact_id": "00ff", "filename": "a.png", "mimetype": "image/png", "encoding": None}
    study = optuna.create_study(storage=storage)
    study.add_trial(create_trial(value=1, system_attrs={"artifacts:00ff": json.dumps(meta)}, constraints={"cv": 1.0}))
    (artifacts / "00ff").write_bytes(b"pixels")
    app = dashboard.app(storage, artifacts)
    trial = detail(app, study._study_id)["trials"][0]
    assert trial["artifacts"] == [meta]
    assert call(app, "GET", f"/artifacts/{study._study_id}/{trial['trial_id']}/00ff")[2] == b"pixels"


# --- a study of ours


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a store with 48 settings, measured with images and curves."""
    url = f"sqlite:///{tmp_path_factory.mktemp('ours') / 'studies.db'}"
    space = {"k": [8, 128], "s": [4, 16], "l": [4], "iterations": [250, 500], "noise": ["uniform", "blur3", "simplex"]}
    spec = synthetic.spec_of("ours", space | {"tiling": ["1x1", "4x5"]}, description="Made up for a test")
    with synthetic.driven(url, spec, (48, 60)) as driven:
        synthetic.record(driven, list(spec.search_space))
    return url


def test_our_figures_and_facts_come_along(ours, monkeypatch):
    monkeypatch.setattr(dashboard, "_FIGURE_DELAY", 0.0)
    with Store(ours, read_only=True) as store, running(store.storage, store.artifacts) as server:
        view = server.view
        app = web.read_only(dashboard._answering(view, store.artifacts), "dashboard")
        assert detail(app, 1)["plotly_graph_objects"] == []  # no page waits for them
        view._figures[1]._thread.join()
        shown = detail(app, 1)
        trials = store.view("ours").trials
    graphs = {graph["id"]: json.loads(graph["graph_object"]) for graph in shown["plotly_graph_objects"]}
    assert sum(len(graph["graph_object"]) for graph in shown["plotly_graph_objects"]) < 200_000
    titles = {graph["layout"]["title"]["text"] for graph in graphs.values()}
    assert len(graphs) == len(titles) == 7
    titled = [panel.title.replace("{y}", "PSNR") for panel in read_panels()]
    shown_titles = [re.match("<b>(.*?)</b>", graph["layout"]["title"]["text"])[1] for graph in graphs.values()]
    assert shown_titles == [title for title in titled if title in shown_titles]  # in the order of the panels
    [ensemble] = [graph for graph in graphs.values() if "Gain of the ensemble" in graph["layout"]["title"]["text"]]
    means = trials[trials["stable"]].groupby(["tiling", "noise"])[["psnr_1dd", "psnr"]].mean()
    for bars, column in zip(ensemble["data"], means, strict=True):
        assert bars["y"] == pytest.approx([means[column][pair] for pair in zip(*bars["x"], strict=True)])
    assert {attr["key"]: attr["value"] for attr in shown["user_attrs"]}["target"] == "MNI152 T1 axial 94"
    assert "Made up for a test" in shown["note"]["body"]
    assert "`psnr_1dd` and so on are means over single members" in shown["note"]["body"]
    assert not [key for attr in shown["union_user_attrs"] if "curve" in (key := attr["key"])]
    assert not shown["has_intermediate_values"]  # the study page would draw each trial as a curve of one point
    sortable = {attr["key"] for attr in shown["union_user_attrs"] if attr["sortable"]}
    assert {"psnr", "ssim", "vif", "cv_percent", "seconds", "parameters", "psnr_member_0"} <= sortable
    assert [t["constraints"] and max(t["constraints"]) <= 0 for t in shown["trials"]] == trials["stable"].tolist()
    assert [t["number"] for t in shown["best_trials"]] == [trials[trials["stable"]]["psnr"].idxmax()]


def test_figures_are_made_anew_only_when_trials_arrive(ours, monkeypatch):
    monkeypatch.setattr(dashboard, "_FIGURE_DELAY", 0.0)
    monkeypatch.setattr(dashboard, "_FIGURE_PAUSE", 0.0)
    made = []
    monkeypatch.setattr(dashboard, "publish", lambda view: made.append(len(view.trials)) or {})
    with Store(ours, read_only=True) as store:
        trials, [study] = store.storage.get_all_trials(1), store.storage.get_all_studies()
        figures = dashboard._Figures(study)
    for seen in (trials[:20], trials[:20], trials):
        figures.follow(seen)
        figures._thread.join()
        figures._due = 0.0
    assert made == [20, len(trials)]


def test_warmed_up_the_first_page_finds_its_answer_and_its_figures(ours, monkeypatch, written):
    monkeypatch.setattr(dashboard, "_FIGURE_DELAY", 0.0)
    with Store(ours, read_only=True) as store, running(store.storage, store.artifacts) as server:
        server.warm_up()
        assert written == [48, 48]  # before and after the figures
        answer = json.loads(call(server.get_app(), "GET", "/api/studies/1", QUERY_STRING="after=0")[2])
        assert len(answer["plotly_graph_objects"]) == 7
        assert len(written) == 2


def test_a_study_of_a_later_version_is_shown_without_our_figures(ours, monkeypatch):
    monkeypatch.setattr(dashboard, "_FIGURE_DELAY", 0.0)
    with Store(ours, read_only=True) as store:
        trials, [study] = store.storage.get_all_trials(1), store.storage.get_all_studies()
    study.user_attrs["ddstudy:spec"] = '{"name": "ours", "schema": 99}'
    figures = dashboard._Figures(study)
    figures.follow(trials)
    figures._thread.join()
    assert figures.made == {}


# --- in a browser


@pytest.mark.slow
def test_a_study_of_ours_in_chromium(ours):
    with (
        Store(ours, read_only=True) as store,
        running(store.storage, store.artifacts) as server,
        chromium() as browser,
    ):
        server.warm_up()
        trials = store.view("ours").trials
        wait = WebDriverWait(browser, 60)

        def text() -> str:
            return browser.find_element(By.TAG_NAME, "body").text

        def hidden() -> None:
            """What would write is on the page, and not seen."""
            writing = ", ".join(f'[data-testid="{name}Icon"]' for name in ("AddBox", "Delete", "Edit", "UploadFile"))
            wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, writing))
            assert browser.execute_script(shown, writing) == 0

        best = trials.loc[trials[trials["stable"]]["psnr"].idxmax()]
        browser.get(f"{server.url}/dashboard/studies/1")
        wait.until(lambda _: f"Best Trial (number={best['number']})" in text() and str(best["psnr"]) in text())
        wait.until(lambda _: "Settings that depend on the initialisation" in text())
        wait.until(lambda _: "What PSNR depends on" in text())
        shown = "return [...document.querySelectorAll(arguments[0])].filter(e => e.getClientRects().length).length"
        assert "Hyperparameter Importance" not in text()
        wait.until(lambda _: "MNI152 T1 axial 94" in text())
        hidden()

        browser.get(f"{server.url}/dashboard/studies/1/smartSelection")
        column = "//th[contains(., 'cv_percent')]"
        wait.until(lambda b: b.find_elements(By.XPATH, column))
        heading = browser.find_element(By.XPATH, column)
        place = browser.execute_script("return arguments[0].cellIndex", heading)
        heading.find_element(By.CSS_SELECTOR, "[role=button], .MuiTableSortLabel-root").click()
        cells = "return [...document.querySelectorAll('tbody tr')].map(row => row.cells[arguments[0]].textContent)"
        lowest = [str(value) for value in sorted(trials["cv_percent"])]
        wait.until(lambda b: (shown := b.execute_script(cells, place)) and shown == lowest[: len(shown)])

        browser.get(f"{server.url}/dashboard/studies/1/trials?numbers=7")
        wait.until(lambda _: "Trial 7 " in text() and str(trials["seconds"][7]) in text())
        pixels = "return [...document.images].filter(i => i.src.includes('/artifacts/')).map(i => i.naturalWidth)"
        wait.until(lambda b: b.execute_script(pixels) == [60, 60, 60])
        assert errors(browser) == []
        hidden()

        for place in ("", "/studies/1/note"):
            browser.get(f"{server.url}/dashboard{place}")
            hidden()


@pytest.mark.slow
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_pages_in_chromium(study, dashboard_url, artifacts):
    with (
        opened(open_read_only, dashboard_url) as storage,
        running(storage, artifacts) as server,
        chromium() as browser,
    ):
        wait = WebDriverWait(browser, 60)

        def text() -> str:
            return browser.find_element(By.TAG_NAME, "body").text

        browser.get(f"{server.url}/dashboard/studies/{study._study_id}")
        wait.until(lambda _: "thesis" in text() and "Best Trial (number=0)" in text() and "Infeasible" in text())
        browser.get(f"{server.url}/dashboard/studies/{study._study_id}/trials?numbers=0")
        wait.until(lambda _: "ensemble.png" in text() and str(PSNR) in text())
        loaded = (
            "return [...document.images].some(image => image.src.includes('/artifacts/') && image.naturalWidth > 0)"
        )
        wait.until(lambda b: b.execute_script(loaded))
        assert errors(browser) == []
