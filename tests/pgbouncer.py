"""PgBouncer before a PostgreSQL server, where it is installed (Debian: `apt-get install pgbouncer`)."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

SETTINGS = """
[databases]
* = host={host} port={port} user={user} password={password}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 20
query_wait_timeout = 20
logfile = {folder}/log
"""


@contextmanager
def bouncer(url: str, mode: str) -> Iterator[str]:
    """Runs one; URL of the same database through it.

    Args:
        url: of a database.
        mode: `session`, or `transaction`: each transaction may have another connection to the server.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed")
    server = urlsplit(url)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ddstudy-bouncer-") as name:
        folder = Path(name)
        values = {"host": server.hostname, "port": server.port, "user": server.username, "password": server.password}
        (folder / "settings").write_text(SETTINGS.format(listen=listen, mode=mode, folder=folder, **values))
        command = [program, folder / "settings"]
        if os.geteuid() == 0:  # which it refuses to run as
            folder.chmod(0o755)
            shutil.chown(folder, "nobody")
            command[1:1] = ["-u", "nobody"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            through = f"postgresql://anyone@127.0.0.1:{listen}{server.path}"
            try:
                deadline = time.monotonic() + 30
                while True:
                    try:
                        with closing(psycopg.connect(through, connect_timeout=5)):
                            break
                    except psycopg.OperationalError:
                        assert process.poll() is None, (folder / "log").read_text()
                        assert time.monotonic() < deadline
                        time.sleep(0.05)  # it has no event to wait for but an answer
                yield through
            finally:
                process.terminate()
