"""Optuna's dashboard over our store, for eyes only.

optuna-dashboard has neither a login nor a read-only mode: whoever reaches its port can delete a study. Three layers
keep a study as it is. A `_View` stands between the dashboard and the storage, answers reads and refuses writes; the
server, `ddstudy.web`, lets only GET and HEAD pass; and a store that is opened read-only refuses writes itself. Requests
are checked before the dashboard sees them, since it fails on odd numbers.

The view also translates. Optuna 5 stores each constraint under a key of its own, the dashboard looks for one list, and
would call every unstable trial feasible; and it adds a note on every study and our figures, which are stored nowhere.
They are made from the trials that the dashboard has read anyway, in a thread, so that no page waits for them. Answers
about all trials of a study, megabytes that would be written anew for each page, are cached (`_AnswerCache`). The page
comes with a style sheet that hides what cannot be done here (`_FOR_READING`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import json
import re
import textwrap
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from wsgiref.util import setup_testing_defaults

import optuna_dashboard
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage, get_storage
from optuna.study import Study, StudyDirection, load_study
from optuna.trial import FrozenTrial, TrialState

# private parts of optuna-dashboard, and what another version no longer has tests/test_canaries.py says: it offers no
# place where its application would take other trials, another front or another order of figures
from optuna_dashboard import _app
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from optuna_dashboard._pareto_front import get_pareto_front_trials

from ddstudy.errors import UserError
from ddstudy.report.panels import panels_of, read_panels
from ddstudy.report.words import about_judge
from ddstudy.spec.files import stored_spec
from ddstudy.store.database import READ_ERRORS
from ddstudy.store.optuna_rows import FrozenStudy, id_of, with_one_list_of_constraints
from ddstudy.store.study import StudyView, facts_of, is_whole, view_of
from ddstudy.store.urls import said
from ddstudy.web import LOOPBACK, RefusedError, Server, read_only

if TYPE_CHECKING:
    import plotly.graph_objects as go

_WHAT = "dashboard"
_LIGHT = ("by_level", "importance", "heatmap", "quartiles", "means", "unstable", "ensemble", "convergence")
_FIGURE_DELAY = 2.0  # seconds: the page that reads a study is answered before its figures are drawn
_FIGURE_PAUSE = 10.0  # seconds at least from one set of figures to the next
_MOST_CACHED = 8  # answers about whole studies
_HIGHEST_ID = 2**31 - 1  # of a study or trial: a column of PostgreSQL
# Controls that write, whose requests would be refused, and the dashboard's own importance: of other evaluators, without
# interactions, it contradicts ours. MUI names its icons in `data-testid`.
_FOR_READING = """<style>
:is(a, button):has(:is([data-testid="AddBoxIcon"], [data-testid="DeleteIcon"],
  [data-testid="DriveFileRenameOutlineIcon"], [data-testid="EditIcon"])),
.MuiCard-root:has(> .MuiCardActionArea-root [data-testid="UploadFileIcon"]),
.MuiGrid-item:has([data-testid="UploadFileIcon"]):not(:has([data-testid="DownloadIcon"])),
.MuiGrid-item:has(#graph-hyperparameter-importances) { display: none !important; }
</style>"""


def publish(view: StudyView) -> dict[str, go.Figure]:
    """The light panels of the overview as figures for the dashboard, which sends them along with every refresh.

    Light are those whose size does not grow with the number of trials; the dashboard draws trials itself, and over one
    axis, too: each more figure keeps the study page from being drawn.

    Returns:
        Identity -> figure. All together stay below 200 kB as plotly's JSON.
    """
    figures = {}
    for number, panel in enumerate(panels_of(view, read_panels()), 1):
        over_one_axis = getattr(panel, "group", "") is None
        shown = panel.show([view]) if panel.kind in _LIGHT and not over_one_axis else None
        if shown is not None and shown.figure is not None:
            lines = textwrap.wrap(shown.sentence, 90)
            title = f"<b>{panel.title}</b><br>" + "<br>".join(f"<sub>{line}</sub>" for line in lines)
            place = {"text": title, "x": 0, "xref": "container", "xanchor": "left", "y": 1, "yanchor": "top"} | {
                "pad": {"t": 14, "l": 8}
            }
            # the dashboard gives each figure a card of the same height
            shown.figure.update_layout(title=place, margin_t=66 + 16 * len(lines), height=None, autosize=True)
            figures[f"ddstudy-{number:02}"] = shown.figure
    return figures


def app(storage: BaseStorage, artifacts: Path | None, host: str = LOOPBACK) -> WSGIApplication:
    """The dashboard as a WSGI application that cannot change anything.

    Args:
        storage: where the studies are, opened for reading or for writing.
        artifacts: folder of the `FileSystemArtifactStore` that holds the trials' images, or None.
        host: see `web.read_only`.
    """
    return read_only(_answering(_view_of(storage), artifacts), _WHAT, host)


def _view_of(storage: BaseStorage) -> _View:
    # get_storage adds Optuna's cache of finished trials, without which every refresh reads the whole study again
    return _View(get_storage(storage), storage.engine.url if isinstance(storage, RDBStorage) else None)


def _answering(view: _View, artifacts: Path | None) -> WSGIApplication:
    files = None if artifacts is None else _Images(artifacts)
    dashboard = optuna_dashboard.wsgi(view, files)
    dashboard.catchall = False  # a missing image is for us to answer, not a traceback
    for name, ours in _REPLACED.items():
        getattr(_app, name)  # fails where another version no longer has it
        setattr(_app, name, ours)
    answers = _AnswerCache(dashboard, view)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # the dashboard fails without one
        try:
            if wrong := _request_error(environ, view):
                raise RefusedError(*wrong)
            return answers(environ, start_response)
        except ArtifactNotFound:
            raise RefusedError("404 Not Found", "The file of this artifact is missing or damaged.") from None
        except KeyError:  # raised by the view
            raise RefusedError("404 Not Found", "There is no such study or trial, or it cannot be read.") from None
        except READ_ERRORS as error:
            why = f"The store cannot be read: {view.said(error)}"
            raise RefusedError("503 Service Unavailable", why) from None

    return answer


def _checked_id(number: str) -> int:
    """The id of a study or trial as a number.

    Raises:
        KeyError: no id has this form.
    """
    if not re.fullmatch("[0-9]{1,10}", number) or int(number) > _HIGHEST_ID:
        raise KeyError(number)
    return int(number)


def _request_error(environ: WSGIEnvironment, view: _View) -> tuple[str, str] | None:
    """Status and message for a request that the dashboard itself would fail on; None if it is a valid one."""
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    path = environ["PATH_INFO"]
    about = re.fullmatch(r"/(api/studies|csv|artifacts)/([^/]+)(?:/([^/]+)(/.*)?)?", path, re.DOTALL)
    if about is None:
        return None
    kind, study, trial, rest = about.groups()
    try:
        study_id = _checked_id(study)
        name, objectives = view.get_study_name_from_id(study_id), len(view.get_study_directions(study_id))
        if kind == "artifacts" and rest:
            view.get_trial(_checked_id(trial))
    except KeyError:
        return "404 Not Found", "There is no such study or trial."
    if not all(re.fullmatch("[0-9]{1,18}", after) for after in query.get("after", [])):
        return "400 Bad Request", "`after` is a number of trials, 0 or more."
    if path.endswith("/plot/pareto_front") and objectives not in (2, 3):
        return "400 Bad Request", "This plot is of studies with two or three objectives."
    if kind == "csv" and not name.isprintable():
        return "400 Bad Request", "No file can have the name of this study."
    return None


def server(
    storage: BaseStorage,
    artifacts: Path | None,
    host: str = LOOPBACK,
    port: int = 8080,
    *,
    allow_remote: bool = False,
) -> DashboardServer:
    """A server that is bound and listens.

    Args:
        storage: see `app`.
        artifacts: see `app`.
        host: see `web.Server`.
        port: see `web.Server`.
        allow_remote: see `web.Server`.

    Raises:
        UserError: see `web.Server`.
    """
    view = _view_of(storage)
    bound = DashboardServer(_answering(view, artifacts), _WHAT, host, port, allow_remote=allow_remote)
    bound.view = view
    return bound


def serve(
    storage: BaseStorage,
    artifacts: Path | None,
    host: str = LOOPBACK,
    port: int = 8080,
    *,
    ready: Callable[[str], object] | None = None,
    allow_remote: bool = False,
) -> None:
    """Serve the dashboard until Ctrl-C.

    Args:
        storage: see `app`.
        artifacts: see `app`.
        host: see `web.Server`.
        port: see `web.Server`.
        ready: called once with the address to open, when the server listens.
        allow_remote: see `web.Server`.

    Raises:
        UserError: see `web.Server`.
    """
    with server(storage, artifacts, host, port, allow_remote=allow_remote) as bound:
        threading.Thread(target=bound.warm_up, daemon=True).start()
        bound.serve_until_ctrl_c(ready)


class DashboardServer(Server):
    """The dashboard's server, which can make in advance what its first page needs."""

    view: _View

    def warm_up(self) -> None:
        """Makes what the page of the latest study needs, before and after its figures are there."""
        study_id = self.view.latest()
        application = self.get_app()
        if study_id is None or application is None:
            return
        for _ in range(2):
            asked: WSGIEnvironment = {"PATH_INFO": f"/api/studies/{study_id}", "QUERY_STRING": "after=0"}
            setup_testing_defaults(asked)
            b"".join(application(asked | {"HTTP_ACCEPT_ENCODING": "gzip"}, lambda *begun: lambda body: None))
            self.view.wait_for_figures(study_id)


class _Images(FileSystemArtifactStore):
    """Artifacts on disk; an incomplete image, as a full disk or a crash leaves it, counts as missing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def open_reader(self, artifact_id: str) -> BinaryIO:
        if not is_whole(self._folder / artifact_id):
            raise ArtifactNotFound(artifact_id)
        return super().open_reader(artifact_id)


class _Answer(NamedTuple):
    state: object
    headers: list[tuple[str, str]]
    body: bytes


class _AnswerCache:
    """The dashboard's answers; one about all trials of a study is kept, compressed, while the study stays as it is.

    Args:
        dashboard: the application that answers.
        view: what it reads.
    """

    def __init__(self, dashboard: WSGIApplication, view: _View) -> None:
        self._dashboard = dashboard
        self._view = view
        self._kept: dict[tuple[int, str], _Answer] = {}
        self._lock = threading.Lock()  # two pages opened at once wait for one answer

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked_for = re.match(r"/api/studies(?:/([0-9]+))?(?=/|$)", environ["PATH_INFO"])
        status, why = self._view.unavailable(asked_for[1]) if asked_for else ("", "")
        if status:
            start_response(status, [("Content-Type", "application/json")])
            return [json.dumps({"reason": why}).encode()]
        if re.match("/dashboard(?=/|$)", environ["PATH_INFO"]):
            return self._page(environ, start_response)
        about = re.fullmatch(r"/api/studies/([0-9]+)", environ["PATH_INFO"])
        compressed = "gzip" in environ["HTTP_ACCEPT_ENCODING"]
        if about is None or not compressed or environ["REQUEST_METHOD"] != "GET":
            return self._dashboard(environ, start_response)
        study_id = int(about[1])
        asked = study_id, environ.get("QUERY_STRING", "")
        with self._lock:
            # taken before the answer is made: a change meanwhile makes the next state differ
            state = self._view.state_of(study_id)
            answer = self._kept.get(asked)
            if answer is None or answer.state != state:
                status, headers, body = self._ask(environ)
                if status != "200 OK":
                    start_response(status, headers)
                    return [body]
                body = gzip.compress(body, 1)  # to a ninth; more effort gains little
                others = [header for header in headers if header[0].lower() != "content-length"]
                encoding = [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")]
                answer = _Answer(state, [*others, *encoding, ("Content-Length", str(len(body)))], body)
                if len(self._kept) >= _MOST_CACHED:
                    self._kept.clear()
                self._kept[asked] = answer
        start_response("200 OK", answer.headers)
        return [answer.body]

    def _page(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The one page of the dashboard, whole, with our style; the rest is its script's work."""
        conditions = {"HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE"}  # they are about the file without
        whole = {name: value for name, value in environ.items() if name not in conditions} | {"REQUEST_METHOD": "GET"}
        status, headers, body = self._ask(whole)
        body = body.replace(b"</head>", f"{_FOR_READING}</head>".encode())
        of_the_file = {"content-length", "last-modified", "etag", "accept-ranges"}
        kept = [header for header in headers if header[0].lower() not in of_the_file]
        start_response(status, [*kept, ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _ask(self, environ: WSGIEnvironment) -> tuple[str, list[tuple[str, str]], bytes]:
        status, headers = "", list[tuple[str, str]]()

        def begin(said: str, with_headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            nonlocal status, headers
            status, headers = said, with_headers
            return lambda body: None

        chunks = self._dashboard(environ, begin)
        try:
            body = b"".join(chunks)
        finally:
            getattr(chunks, "close", lambda: None)()  # a file has it
        return status, headers, body


class _View(BaseStorage):
    """A storage as the dashboard should see it: constraints where it looks for them, and nothing to write to.

    Trials are copied before they are changed: those of the wrapped storage may be its cache.
    """

    def __init__(self, storage: BaseStorage, url: Any = None) -> None:
        self._storage = storage
        self._url = url
        self._seen: dict[int, FrozenTrial] = {}  # finished trials as they are shown; they never change again
        self._figures: dict[int, _Figures] = {}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return _as_shown(self._storage.get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self._storage.get_all_trials(study_id, deepcopy=False, states=states)
        if states is None:
            self._figures_of(study_id).follow(trials)
        shown = []
        for trial in trials:
            seen = self._seen.get(id_of(trial))
            if seen is None:
                seen = _as_shown(trial)
                if trial.state.is_finished():
                    self._seen[id_of(trial)] = seen
            shown.append(seen)
        return copy.deepcopy(shown) if deepcopy else shown

    def state_of(self, study_id: int) -> object:
        """What differs as soon as anything differs that the dashboard shows of a study."""
        attrs = self.get_study_user_attrs(study_id), self.get_study_system_attrs(study_id)
        trials = self.get_all_trials(study_id, deepcopy=False)
        unfinished = [trial for trial in trials if not trial.state.is_finished()]  # the others never change again
        return attrs, len(trials), trials[-1:], unfinished, self._figures_of(study_id).made

    def latest(self) -> int | None:
        """The latest study of ours, which is likely to be asked for first."""
        ours = [id_of(study) for study in self._storage.get_all_studies() if "ddstudy:spec" in study.user_attrs]
        return max(ours, default=None)

    def wait_for_figures(self, study_id: int) -> None:
        """Returns when those that are being made are there."""
        self._figures_of(study_id).wait()

    def _figures_of(self, study_id: int) -> _Figures:
        if study_id not in self._figures:
            self._figures[study_id] = _Figures(self._study(study_id))
        return self._figures[study_id]

    def unavailable(self, study_id: str | None) -> tuple[str, str]:
        """Why all studies, or one, cannot be shown: a status and the reason, both empty if they can."""
        try:
            studies = {str(id_of(study)) for study in self._storage.get_all_studies()}
            if study_id is not None and study_id.lstrip("0") not in studies:
                return "404 Not Found", "there is no such study, or it cannot be read"
            if study_id is not None:
                self._storage.get_all_trials(int(study_id), deepcopy=False)
        except READ_ERRORS as error:
            return "503 Service Unavailable", f"the store cannot be read: {self.said(error)}"
        return "", ""

    def said(self, error: Exception) -> str:
        """What the database says first in an error."""
        return said(error, self._url)

    def _study(self, study_id: int) -> FrozenStudy:
        """A study that can be read.

        Raises:
            KeyError: there is none of this id.
        """
        for study in self._storage.get_all_studies():
            if id_of(study) == study_id:
                return study
        raise KeyError(f"no study of id {study_id} that can be read")

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best feasible trial, which Optuna's storages do not look for; the best of all where none is feasible."""
        (direction,) = self.get_study_directions(study_id)
        complete = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        feasible = [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]
        best = max if direction == StudyDirection.MAXIMIZE else min
        return best(feasible or complete, key=lambda trial: trial.values[0])

    def get_all_studies(self) -> list[FrozenStudy]:
        studies = sorted(self._storage.get_all_studies(), key=lambda study: id_of(study))
        return [self._with_figures(study) if "ddstudy:spec" in study.user_attrs else study for study in studies]

    def _with_figures(self, study: FrozenStudy) -> FrozenStudy:
        figures = self._figures_of(id_of(study)).made
        shown = copy.copy(study)
        shown.system_attrs = {**study.system_attrs, **_saved_note(_note(study)), **figures}
        # its study file and fingerprint would fill the page
        others = {key: value for key, value in study.user_attrs.items() if not key.startswith("ddstudy:")}
        shown.user_attrs = others
        with contextlib.suppress(UserError):  # a study that cannot be read is shown as far as it can
            shown.user_attrs = others | facts_of(study, "this store")
        return shown

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._storage.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._study(study_id).study_name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._study(study_id).directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._study(study_id).user_attrs

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._study(study_id).system_attrs

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, trial_number)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise PermissionError("the dashboard's view of the storage is read-only")

    create_new_study = _refuse
    delete_study = _refuse
    set_study_user_attr = _refuse
    set_study_system_attr = _refuse
    create_new_trial = _refuse
    set_trial_param = _refuse
    set_trial_state_values = _refuse
    set_trial_intermediate_value = _refuse
    set_trial_user_attr = _refuse
    set_trial_system_attr = _refuse


class _Figures:
    """The figures of one study, made anew when trials have arrived.

    Args:
        study: as it is stored.

    Attributes:
        made: the latest, as attributes of a study; see `publish`.
    """

    def __init__(self, study: FrozenStudy) -> None:
        self.made: dict[str, Any] = {}
        self._study = study
        self._drawn = 0  # finished trials in the latest figures
        self._due = 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def follow(self, trials: Sequence[FrozenTrial]) -> None:
        """Begins to draw the trials that a page has just read, unless they are drawn, or others just were."""
        finished = sum(trial.state.is_finished() for trial in trials)
        with self._lock:
            busy = self._thread is not None and self._thread.is_alive()
            if (
                busy
                or finished == self._drawn
                or time.monotonic() < self._due
                or "ddstudy:spec" not in self._study.user_attrs
            ):
                return
            self._drawn = finished
            self._thread = threading.Timer(_FIGURE_DELAY, self._make, (trials,))
            self._thread.daemon = True
            self._thread.start()

    def wait(self) -> None:
        """Returns when the figures that are being made are there."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _make(self, trials: Sequence[FrozenTrial]) -> None:
        begun = time.monotonic()
        with contextlib.suppress(UserError):  # a study of another version: the dashboard is of use without our figures
            self.made = _saved_figures(publish(view_of(self._study, trials, None, "this store")))
        self._due = time.monotonic() + max(_FIGURE_PAUSE, 10 * (time.monotonic() - begun))


def _note(study: FrozenStudy) -> str:
    """What a study is and how it is shown, as Markdown."""
    try:
        spec = stored_spec(study.user_attrs["ddstudy:spec"], "this store")[0]
        description = spec.description + f"\n\n{about_judge(spec)}" * (spec.score == "judge")
    except UserError as error:
        description = str(error)
    return (
        f"{description}\n\nQuality (`psnr`, `ssim`, ...) is that of the ensemble, the mean of the members' outputs; "
        "`psnr_1dd` and so on are means over single members. Unstable trials are shown as infeasible. This dashboard "
        f"is read-only. More views, with images: `ddstudy report {study.study_name}`.\n"
    )


@functools.lru_cache(maxsize=_MOST_CACHED)
def _saved_note(text: str) -> dict[str, Any]:
    return _saved(lambda study: optuna_dashboard.save_note(study, text))


def _saved_figures(figures: Mapping[str, go.Figure]) -> dict[str, Any]:
    def save(study: Study) -> None:
        for name, figure in figures.items():
            optuna_dashboard.save_plotly_graph_object(study, figure, graph_object_id=name)

    return _saved(save)


def _saved(save: Callable[[Study], None]) -> dict[str, Any]:
    """The system attributes of a study in memory that the dashboard's own functions save in it: ours is not written."""
    storage = InMemoryStorage()
    made = storage.create_new_study([StudyDirection.MINIMIZE], "")
    save(load_study(study_name="", storage=storage))
    return storage.get_study_system_attrs(made)


def _as_shown(trial: FrozenTrial) -> FrozenTrial:
    """The trial with its constraints as one list instead of Optuna 5's `constraints:NAME` keys (both would count).

    The members' curves stay behind: they are long, no table can show them, and every page would carry them. So does a
    single intermediate value, which is the trial's own: the study page would draw each as a curve of one point, and of
    2,268 takes half a minute. Where a pruner looked on there are more of them, and they are kept.
    """
    constraints = trial.constraints
    if not constraints and "curve" not in trial.user_attrs:
        return trial
    seen = copy.copy(trial)
    if constraints:
        seen.system_attrs = with_one_list_of_constraints(trial)
    seen.user_attrs = {key: value for key, value in trial.user_attrs.items() if key != "curve"}
    if len(trial.intermediate_values) == 1:
        seen.intermediate_values = {}
    return seen


def _feasible_front(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """The Pareto front of the feasible trials; of all complete ones where none is feasible."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    feasible = [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]
    front = get_pareto_front_trials(trials=feasible or complete, directions=directions)
    return list(front)


def _in_order(system_attrs: dict[str, Any]) -> dict[str, str]:
    """The figures of a study, as the panels are listed; the dashboard's own function goes through a set."""
    return dict(sorted(get_plotly_graph_objects(system_attrs).items()))


def _trials_now(cache: object, storage: BaseStorage, study_id: int) -> list[FrozenTrial]:
    """The trials as they are; the dashboard's own function lets them be ten seconds old."""
    return storage.get_all_trials(study_id, deepcopy=False)


# functions of the dashboard's application in whose place ours are called
_REPLACED: dict[str, Callable[..., Any]] = {
    "get_pareto_front_trials": _feasible_front,  # its own would take in unstable trials
    "get_plotly_graph_objects": _in_order,
    "get_trials": _trials_now,
}
