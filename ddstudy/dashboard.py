"""Optuna's dashboard over our store, for eyes only.

optuna-dashboard has neither a login nor a read-only mode: whoever reaches its port can delete a study. Three layers
keep a study as it is. A `_View` stands between the dashboard and the storage, answers reads and refuses writes; the
WSGI application lets only GET and HEAD pass, and only under a name of this machine (a web page elsewhere that rebinds
its own name to 127.0.0.1 stays outside); and `open_read_only` opens the database so that it refuses writes itself.

The view also translates. Optuna 5 stores each constraint under a key of its own, the dashboard looks for one list, and
would call every unstable trial feasible.
"""

from __future__ import annotations

import contextlib
import copy
import ipaddress
import socket
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna_dashboard
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from ddstudy.errors import UserError

if TYPE_CHECKING:
    from optuna.study._frozen import FrozenStudy  # Optuna has no public name for it

_LOOPBACK = "127.0.0.1"
_EVERYWHERE = ("", "0.0.0.0", "::")  # binding to one of these listens on every interface
_URLS = "valid are sqlite:///FILE.db and postgresql://USER:PASSWORD@HOST/DATABASE"
_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]


def read_only_url(url: str) -> str:
    """The SQLAlchemy URL under which the database at `url` refuses every write.

    Args:
        url: `sqlite:///FILE.db`, `postgresql://...` or `postgresql+psycopg://...`. SQLAlchemy reads it, so that a
            path means the same file here as where studies are written.

    Returns:
        The URL, with the password where there is one: not for display.

    Raises:
        UserError: another kind of URL, or no such SQLite file.
    """
    parsed = _parse(url)
    if parsed.drivername == "sqlite":
        path = Path(parsed.database or "").absolute()
        if not path.is_file():
            raise UserError(
                f"no database at {path}", "make one with `ddstudy run`, or give the path of an existing one"
            )
        # As a URI the path survives spaces, '?', '%' and '#', and the braces that RDBStorage would fill in.
        read_only = parsed.set(database=path.as_uri(), query={**parsed.query, "mode": "ro", "uri": "true"})
    else:
        options = " ".join((*parsed.normalized_query.get("options", ()), "-c default_transaction_read_only=on"))
        read_only = parsed.set(drivername="postgresql+psycopg", query={**parsed.query, "options": options})
    return read_only.render_as_string(hide_password=False)


def open_read_only(url: str) -> RDBStorage:
    """Open the database at `url` for reading only.

    Beside an SQLite database in WAL mode, SQLite may leave its `-wal` and `-shm` files; the database is not touched.

    Args:
        url: see `read_only_url`.

    Raises:
        UserError: the URL is wrong, the database cannot be reached or is not one of this Optuna's.
    """
    # Creating tables would write. The check of the version stays: it only reads where the database is Optuna's.
    target = read_only_url(url)
    shown = _parse(url).set(query={}).render_as_string(hide_password=True)  # a query can hold a password as well
    try:
        # Without a pool no connection outlives its query: nothing to close, nothing that a restarted server breaks.
        return RDBStorage(target, engine_kwargs={"poolclass": NullPool}, skip_table_creation=True)
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", cause)).partition("\n")[0]
        raise UserError(
            f"cannot read studies from {shown}: {reason}", "give a database made by `ddstudy run`"
        ) from error
    except RuntimeError as error:  # the tables are of another version of Optuna; its message says what to do
        raise UserError(f"cannot read studies from {shown}", str(error)) from error


def app(storage: BaseStorage, artifacts: Path | None, host: str = _LOOPBACK) -> WSGIApplication:
    """The dashboard as a WSGI application that cannot change anything.

    Args:
        storage: where the studies are, opened for reading or for writing.
        artifacts: folder of the `FileSystemArtifactStore` that holds the trials' images, or None.
        host: name or address that the server is bound to: beside this machine's loopback, the only one answered to.
    """
    files = None if artifacts is None else FileSystemArtifactStore(artifacts)
    # get_storage adds Optuna's cache of finished trials, without which every refresh reads the whole study again.
    dashboard = optuna_dashboard.wsgi(_View(get_storage(storage)), files)
    dashboard.catchall = False  # a missing image is for us to answer, not a traceback
    is_ours = _host_check(host)

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def refuse(status: str, why: str, *headers: tuple[str, str]) -> list[bytes]:
            body = f"{why}\n".encode()
            length = ("Content-Length", str(len(body)))
            start_response(status, [("Content-Type", "text/plain; charset=utf-8"), length, *headers, *_HEADERS])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

        def secured(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            # The dashboard offers artifacts to every web site; they are this user's.
            kept = [header for header in headers if header[0].lower() != "access-control-allow-origin"]
            return start_response(status, kept + _HEADERS, *exc_info)

        if not is_ours(environ.get("HTTP_HOST", "")):
            return refuse(
                "403 Forbidden", "This dashboard answers only to localhost or to the host it was started with."
            )
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return refuse("405 Method Not Allowed", "This dashboard is read-only.", ("Allow", "GET, HEAD"))
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # the dashboard fails without one
        try:
            return dashboard(environ, secured)  # type: ignore[no-any-return]
        except ArtifactNotFound:
            return refuse("404 Not Found", "The file of this artifact is missing.")

    return guarded


def server(
    storage: BaseStorage,
    artifacts: Path | None,
    host: str = _LOOPBACK,
    port: int = 8080,
    *,
    allow_remote: bool = False,
) -> DashboardServer:
    """A server that is bound and listens; `serve_forever` starts answering, `shutdown` from another thread ends it.

    Args:
        storage: see `app`.
        artifacts: see `app`.
        host: name or address to bind to; "0.0.0.0" is every interface.
        port: 0 picks a free one.
        allow_remote: needed for any host but this machine's loopback.

    Raises:
        UserError: the address is not this machine's, the port is taken, or the host is remote and not allowed.
    """
    if not (allow_remote or _is_loopback(host)):
        raise UserError(
            f"the dashboard has no login: anyone who can reach {host or 'this machine'}:{port} could read all studies",
            f"keep {_LOOPBACK} and reach it from elsewhere through an SSH tunnel, or allow remote readers explicitly",
        )
    try:
        bound = DashboardServer(host, port)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            "give an address of this machine and another --port (0 to 65535; 0 picks a free one)",
        ) from error
    bound.set_app(app(storage, artifacts, host))
    return bound


def serve(
    storage: BaseStorage,
    artifacts: Path | None,
    host: str = _LOOPBACK,
    port: int = 8080,
    *,
    ready: Callable[[str], object] | None = None,
    allow_remote: bool = False,
) -> None:
    """Serve the dashboard until Ctrl-C.

    Args:
        storage: see `app`.
        artifacts: see `app`.
        host: see `server`.
        port: see `server`.
        ready: called once with the address to open, when the server listens.
        allow_remote: see `server`.

    Raises:
        UserError: see `server`.
    """
    with (
        server(storage, artifacts, host, port, allow_remote=allow_remote) as bound,
        contextlib.suppress(KeyboardInterrupt),
    ):
        if ready is not None:
            ready(bound.url)
        bound.serve_forever()


class DashboardServer(ThreadingMixIn, WSGIServer):
    """The standard library's WSGI server, a thread per request, without a request log."""

    daemon_threads = True  # a browser that keeps a connection open does not keep us from ending

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._host = host
        super().__init__((host, port), _QuietHandler)

    @property
    def url(self) -> str:
        """The address to open in a browser."""
        name = socket.gethostname() if self._host in _EVERYWHERE else self._host
        return f"http://{f'[{name}]' if ':' in name else name}:{self.server_port}"


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the command line."""


class _View(BaseStorage):
    """A storage as the dashboard should see it: constraints where it looks for them, and nothing to write to.

    Trials are copied before they are changed: those of the wrapped storage may be its cache.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return _with_listed_constraints(self._storage.get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [_with_listed_constraints(t) for t in self._storage.get_all_trials(study_id, deepcopy, states)]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best feasible trial, which Optuna's storages do not look for; the best of all where none is feasible."""
        (direction,) = self.get_study_directions(study_id)
        complete = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        feasible = [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]
        best = max if direction == StudyDirection.MAXIMIZE else min
        return best(feasible or complete, key=lambda trial: trial.values[0])

    def get_all_studies(self) -> list[FrozenStudy]:
        return sorted(self._storage.get_all_studies(), key=lambda study: study._study_id)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._storage.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._storage.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._storage.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._storage.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._storage.get_study_system_attrs(study_id)

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


def _with_listed_constraints(trial: FrozenTrial) -> FrozenTrial:
    """The trial with its constraints as one list, replacing Optuna 5's `constraints:NAME` keys (both would count)."""
    constraints = trial.constraints
    if not constraints:
        return trial
    others = {key: value for key, value in trial.system_attrs.items() if not key.startswith("constraints:")}
    seen = copy.copy(trial)
    seen.system_attrs = {**others, "constraints": list(constraints.values())}
    return seen


def _parse(url: str) -> URL:
    """Parse and check the kind of `url`. The messages never repeat it: a badly written one shows its password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise UserError("the storage is not a database URL", _URLS) from None
    if parsed.drivername not in ("sqlite", "postgresql", "postgresql+psycopg"):
        raise UserError(f"no such kind of storage: {parsed.drivername}", _URLS)
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError("the storage's URL names no SQLite file", "write sqlite:///FILE.db, with three slashes")
    if "@" in (parsed.host or ""):
        raise UserError("the storage's URL has more than one '@'", "in a password, write %40 for '@'")
    return parsed


def _host_check(bound: str) -> Callable[[str], bool]:
    """Whether a Host header names this machine, for a server bound to `bound`."""
    names = {"localhost", bound.lower()}
    everywhere = bound in _EVERYWHERE
    if everywhere:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def is_ours(header: str) -> bool:
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        # An address, unlike a name, cannot be rebound: when every interface is served, each one may stand there.
        return bool(name) and (name in names or _is_loopback(name) or (everywhere and _address(name) is not None))

    return is_ours


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
