"""A small web server for one reader on this machine, who can change nothing.

Whoever reaches its port reads all that it shows, so it answers only GET and HEAD, and only under a name of this machine
(a web page elsewhere that rebinds its own name to 127.0.0.1 stays outside); bodies are not read, since one that is
announced and never sent would be waited for; and the number of connections and their time are limited. What it shows is
a WSGI application that it is given: `ddstudy.dashboard` and `ddstudy.live` have one each.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, cast
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from ddstudy.errors import UserError

LOOPBACK = "127.0.0.1"
_ALL_INTERFACES = ("", "0.0.0.0", "::")  # binding to one of these listens on every interface
_MOST_CONNECTIONS = 128  # a thread each
_REQUEST_SECONDS = 15.0  # seconds for a request to be sent
_ANSWER_SECONDS = 300.0  # for an answer to be made and taken
_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]


class RefusedError(Exception):
    """What an application raises instead of an answer: a status and the reason in words."""

    def __init__(self, status: str, why: str, *headers: tuple[str, str]) -> None:
        super().__init__(why)
        self.status = status
        self.headers = headers


def read_only(application: WSGIApplication, what: str, host: str = LOOPBACK) -> WSGIApplication:
    """An application behind the checks of this module.

    Args:
        application: what answers; it may raise `RefusedError`.
        what: it is, for messages: "dashboard".
        host: name or address that the server is bound to: beside this machine's loopback, the only one answered to.
    """
    is_ours = _host_check(host)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def secured(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            kept = [
                (name, re.sub(r"[^ -~]", "?", value))  # names of studies stand in headers, too, in any alphabet
                for name, value in headers
                if name.lower() != "access-control-allow-origin"  # what is shown is this user's, no other web site's
            ]
            return start_response(status, kept + _HEADERS, *exc_info)

        environ |= {"wsgi.input": io.BytesIO(), "CONTENT_LENGTH": "0"}
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        environ["PATH_INFO"] = environ["PATH_INFO"].rstrip("/")
        try:
            if not is_ours(environ.get("HTTP_HOST", "")):
                names = "localhost or to the host it was started with"
                raise RefusedError("403 Forbidden", f"This {what} answers only to {names}.")
            if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
                raise RefusedError("405 Method Not Allowed", f"This {what} is read-only.", ("Allow", "GET, HEAD"))
            return application(environ, secured)
        except RefusedError as refused:
            body = f"{refused}\n".encode()
            length = ("Content-Length", str(len(body)))
            secured(refused.status, [("Content-Type", "text/plain; charset=utf-8"), length, *refused.headers])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return answer


class Server(ThreadingMixIn, WSGIServer):
    """The standard library's WSGI server, bound and listening, a thread per request, without a request log.

    `serve_forever` starts answering, `shutdown` from another thread ends it. Connections without a request are closed
    after `_REQUEST_SECONDS`, and the oldest of them at once where there are too many, so that idle ones never keep
    others from being answered.

    Args:
        application: what answers, `read_only`.
        what: it is, for messages: "dashboard".
        host: name or address to bind to; "0.0.0.0" is every interface.
        port: 0 picks a free one.
        allow_remote: needed for any host but this machine's loopback.

    Raises:
        UserError: the address is not this machine's, the port is taken, or the host is remote and not allowed.
    """

    daemon_threads = True  # a browser that keeps a connection open does not keep us from ending
    request_queue_size = 128

    def __init__(
        self,
        application: WSGIApplication,
        what: str,
        host: str = LOOPBACK,
        port: int = 0,
        *,
        allow_remote: bool = False,
    ) -> None:
        if not (allow_remote or _is_loopback(host)):
            raise UserError(
                f"the {what} has no login: anyone who can reach {host or 'this machine'}:{port} could read all studies",
                f"keep {LOOPBACK} and reach it from elsewhere by an SSH tunnel, or allow remote readers explicitly",
            )
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._host = host
        self._idle: dict[Any, float] = {}  # connection -> when it was made, the oldest first
        self._active: dict[Any, float] = {}  # connection -> when it had sent its request
        self._lock = threading.Lock()
        try:
            super().__init__((host, port), _QuietHandler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
                "give an address of this machine and another --port (0 to 65535; 0 picks a free one)",
            ) from error
        self.set_app(read_only(application, what, host))

    def serve_until_ctrl_c(self, ready: Callable[[str], object] | None = None) -> None:
        """Answers until Ctrl-C.

        Args:
            ready: called once with the address to open.
        """
        with contextlib.suppress(KeyboardInterrupt):
            if ready is not None:
                ready(self.url)
            self.serve_forever()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Gives a connection its thread; where there are too many, the one that has been idle longest is closed."""
        with self._lock:
            crowded = len(self._idle) + len(self._active) >= _MOST_CONNECTIONS
            oldest = next(iter(self._idle), None) if crowded else None
            if oldest is not None:
                del self._idle[oldest]
                _disconnect(oldest)
            if not crowded or oldest is not None:
                self._idle[request] = time.monotonic()
        if crowded and oldest is None:
            with contextlib.suppress(OSError):
                request.send(b"HTTP/1.0 503 Service Unavailable\r\n\r\nToo many requests at a time.\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def mark_active(self, request: Any) -> None:
        """Records that a connection has sent its request."""
        with self._lock:
            if self._idle.pop(request, None) is not None:
                self._active[request] = time.monotonic()

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection."""
        with self._lock:
            self._idle.pop(request, None)
            self._active.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Closes connections that have been idle, or are being answered, for too long; their threads end."""
        now = time.monotonic()
        with self._lock:
            for connections, patience in ((self._idle, _REQUEST_SECONDS), (self._active, _ANSWER_SECONDS)):
                for request in [request for request, since in connections.items() if now - since > patience]:
                    del connections[request]
                    _disconnect(request)

    @property
    def url(self) -> str:
        """The address to open in a browser."""
        name = socket.gethostname() if self._host in _ALL_INTERFACES else self._host
        return f"http://{f'[{name}]' if ':' in name else name}:{self.server_port}"


def _disconnect(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


class _QuietHandler(WSGIRequestHandler):
    def handle(self) -> None:
        """Answers one request; a connection that breaks, or that we broke, is no error."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def parse_request(self) -> bool:
        """Reads the headers of a request."""
        understood = super().parse_request()
        cast(Server, self.server).mark_active(self.request)
        return understood

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the command line."""


def _host_check(bound: str) -> Callable[[str], bool]:
    """Whether a Host header names this machine, for a server bound to `bound`."""
    names = {"localhost", bound.lower()}
    all_interfaces = bound in _ALL_INTERFACES
    if all_interfaces:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def is_ours(header: str) -> bool:
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        # An address, unlike a name, cannot be rebound: when every interface is served, each one may stand there.
        return bool(name) and (name in names or _is_loopback(name) or (all_interfaces and _address(name) is not None))

    return is_ours


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
