"""Optuna reads the history of its tables for each store that is opened: programs that define classes, 50 ms each time.

Where this module is imported, it is read once.
"""

from optuna.storages._rdb.storage import _VersionManager

_any_store = object.__new__(_VersionManager)
_any_store.url = ""
_script = _any_store._create_alembic_script()
_script.get_current_head()  # reads it
_VersionManager._create_alembic_script = lambda self: _script  # type: ignore[method-assign]
