"""Stores that open and commit sooner, where this module is imported.

Optuna reads the history of its tables for each store that is opened: programs that define classes, 50 ms each time;
here it is read once. SQLite waits for the disk at each commit; what the system has outlives all that tests kill.
"""

import contextlib
import sqlite3
from typing import Any

from optuna.storages._rdb.storage import _VersionManager
from sqlalchemy import Engine, event

_any_store = object.__new__(_VersionManager)
_any_store.url = ""
_script = _any_store._create_alembic_script()
_script.get_current_head()  # reads it
_VersionManager._create_alembic_script = lambda self: _script  # type: ignore[method-assign]


@event.listens_for(Engine, "connect")
def _do_not_wait_for_the_disk(connection: Any, _: Any) -> None:
    with contextlib.suppress(sqlite3.Error):  # of a damaged file, which is then read
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")
