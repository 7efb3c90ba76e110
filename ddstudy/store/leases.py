"""Leases: which driver is fitting what, in a table beside Optuna's.

A driver takes a lease on a fit before it begins. The lease ends at a time on the database's clock and is renewed while
the driver lives, so that the fits of a driver that died are soon free again. A lease only keeps others from doing the
same work meanwhile; what is done is told by finished trials alone, and the database itself keeps a setting from having
two (`ddstudy.store.optuna_rows`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

TELL_SECONDS = 2.0  # until others can see where a fit runs
T = TypeVar("T")
_text = functools.cache(sa.text)  # to make a statement takes longer than to execute it
_table = sa.Table(
    "ddstudy_claims",  # what leases were once called: stores of earlier versions have this table
    sa.MetaData(),
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("fit", sa.Text, primary_key=True),
    sa.Column("driver", sa.String(200), nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("deaths", sa.Integer, nullable=False, server_default="0"),  # of drivers that had it and died
    sa.Column("doing", sa.String(400), nullable=False, server_default=""),  # JSON, as old as the renewal
)
_CLOCKS = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())::double precision",
}


def lengthen(engine: sa.Engine, table: str, column: str) -> None:
    """Lets a column hold texts of any length, which in stores of earlier versions was 100 letters on PostgreSQL."""
    kinds = {each["name"]: each["type"] for each in sa.inspect(engine).get_columns(table)}
    if engine.dialect.name == "postgresql" and getattr(kinds[column], "length", None) is not None:
        with engine.begin() as connection:
            connection.execute(sa.text(f"ALTER TABLE {table} ALTER COLUMN {column} TYPE TEXT"))


def create_table(engine: sa.Engine) -> None:
    """Makes the table where it is missing, and adds the columns that an earlier version did not have."""
    _table.create(engine, checkfirst=True)
    lengthen(engine, _table.name, "fit")
    columns = {column["name"] for column in sa.inspect(engine).get_columns(_table.name)}
    with engine.begin() as connection:
        if "deaths" not in columns:  # made before deaths were counted
            connection.execute(sa.text("ALTER TABLE ddstudy_claims ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0"))
        if "doing" not in columns:  # made before leases told how far a fit is
            connection.execute(sa.text("ALTER TABLE ddstudy_claims ADD COLUMN doing VARCHAR(400) NOT NULL DEFAULT ''"))


@dataclass(frozen=True)
class AtWork:
    """A fit that a driver has, and what it last told of it: at a renewal, so up to a third of a lease ago.

    Attributes:
        fit: its identity.
        driver: host and process that has it.
        worker: where it runs; empty if nothing was told yet.
        iteration: where it is.
        of: its last iteration.
        ends: when its driver expects the study to be done, in seconds since 1970; None if nobody can tell.
    """

    fit: str
    driver: str
    worker: str = ""
    iteration: int = 0
    of: int = 0
    ends: float | None = None


def at_work(engine: sa.Engine, study_id: int) -> list[AtWork]:
    """Fits of a study that living drivers have. A reader makes no table: it may be missing, or have fewer columns."""
    inspector = sa.inspect(engine)
    if not inspector.has_table(_table.name) or "doing" not in {c["name"] for c in inspector.get_columns(_table.name)}:
        return []
    look = (
        "SELECT fit, driver, doing FROM ddstudy_claims "
        f"WHERE study_id = :study AND expires >= {_CLOCKS[engine.dialect.name]} ORDER BY driver, fit"
    )
    with engine.connect() as connection:
        rows = connection.execute(sa.text(look), {"study": study_id}).all()
    return [_at_work(str(row.fit), str(row.driver).rpartition("/")[0], row.doing or "{}") for row in rows]


def _at_work(fit: str, driver: str, doing: str) -> AtWork:
    """A lease as it is stored; what it tells of its fit is left out where this version cannot read that."""
    try:
        told = AtWork(fit, driver, **json.loads(doing))
        ends = told.ends is None or (type(told.ends) in (int, float) and math.isfinite(told.ends))
        if ends and type(told.worker) is str and type(told.iteration) is type(told.of) is int:
            return told
    except (OverflowError, RecursionError, TypeError, ValueError):
        pass
    return AtWork(fit, driver)


class Patience:
    """Tries again while the database's server is away, so that its restart costs no fit.

    Args:
        seconds: for how long, from the first call that it did not answer; then the error is raised.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._silent_since: float | None = None

    def __call__(self, call: Callable[[], T]) -> T:
        """Calls a function, which may be called twice, until the server answers."""
        while True:
            try:
                result = call()
            except Exception as error:  # the database's, or Optuna's around it; raised unless the server is away
                now = time.monotonic()
                self._silent_since = self._silent_since or now
                if not _is_away(error) or now - self._silent_since > self._seconds:
                    raise
                time.sleep(min(0.5, self._seconds / 10))
            else:
                self._silent_since = None
                return result


def _is_away(error: Exception) -> bool:
    """Whether an error, or its cause where a library wrapped it, says that a server is shut down or not reached."""
    cause = error if isinstance(error, sa.exc.DBAPIError) else error.__cause__
    if not isinstance(cause, sa.exc.OperationalError):
        return False
    state = getattr(cause.orig, "sqlstate", "")  # SQLite's errors have none, a broken connection's is None
    return state is None or state[:2] == "08" or state[:3] == "57P"


class Leases:
    """The leases of one driver on the fits of one study.

    Args:
        engine: of the database.
        study_id: Optuna's.
        driver: name of this driver, unique.
        lease_seconds: how long a lease outlives its driver; it is renewed three times as often.

    Attributes:
        deaths: of each fit that we took, how many drivers in a row died while they had it. A driver that gives a fit
            back, done or given up, ends the count.
        patiently: calls something again while the database's server is away, for as long as a lease.
    """

    def __init__(self, engine: sa.Engine, study_id: int, driver: str, lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._engine = engine
        self._common = {"study": study_id, "driver": driver, "lease": lease_seconds}
        self._clock = _CLOCKS[engine.dialect.name]
        self._renewal = (
            f"UPDATE ddstudy_claims SET expires = {self._clock} + :lease, doing = :doing "
            "WHERE study_id = :study AND fit = :fit AND driver = :driver RETURNING fit, deaths"
        )
        self.deaths: dict[str, int] = {}
        self.patiently = Patience(lease_seconds)
        self._doing: dict[str, str] = {}
        self._untold: set[str] = set()
        self._held: set[str] = set()
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)
        self._renewer.start()

    def take(self, fit_id: str) -> bool:
        """Takes a fit, unless a driver that lives has it."""
        taken = self._patient_rows(
            "INSERT INTO ddstudy_claims (study_id, fit, driver, expires) "
            f"VALUES (:study, :fit, :driver, {self._clock} + :lease) "
            "ON CONFLICT (study_id, fit) DO UPDATE SET driver = excluded.driver, expires = excluded.expires, "
            "doing = '', "
            "deaths = ddstudy_claims.deaths + CASE WHEN ddstudy_claims.driver = excluded.driver THEN 0 ELSE 1 END "
            f"WHERE ddstudy_claims.expires < {self._clock} RETURNING fit, deaths",
            fit_id,
        )
        if taken:
            self._held.add(fit_id)
            self.deaths.update(taken)
        return bool(taken)

    def holds(self, fit_id: str) -> bool:
        """Whether a fit is ours for half a lease more; after a longer pause of ours, another driver may have it."""
        # mostly the regular renewals keep it so, and a read costs less than another write
        look = (
            "SELECT fit, deaths FROM ddstudy_claims WHERE study_id = :study AND fit = :fit AND driver = :driver "
            f"AND expires >= {self._clock} + :lease * 0.5"
        )
        return bool(self._patient_rows(look, fit_id) or self._patient_rows(self._renewal, fit_id))

    def tell(self, fit_id: str, worker: str, iteration: int, of: int, left: float | None = None) -> None:
        """Lets others see where a fit that is ours runs, and from the next renewal on how far it is.

        Args:
            fit_id: the fit.
            worker: where it runs.
            iteration: where it is.
            of: its last iteration.
            left: seconds until the study is done, if we can tell.
        """
        if fit_id not in self._doing:
            self._untold.add(fit_id)
        self._doing[fit_id] = json.dumps(
            {"worker": worker[:200], "iteration": iteration, "of": of}
            | ({} if left is None else {"ends": round(time.time() + left, 1)})
        )

    def release(self, fit_id: str) -> None:
        """Gives a fit back; nothing happens to another driver's lease."""
        self._held.discard(fit_id)
        self._doing.pop(fit_id, None)
        self._untold.discard(fit_id)
        self._patient_rows(
            "DELETE FROM ddstudy_claims WHERE study_id = :study AND fit = :fit AND driver = :driver "
            "RETURNING fit, deaths",
            fit_id,
        )

    def alive(self) -> set[str]:
        """Fits of the study that any living driver has."""
        return set(
            self._patient_rows(
                f"SELECT fit, deaths FROM ddstudy_claims WHERE study_id = :study AND expires >= {self._clock}"
            )
        )

    def expire_others(self) -> None:
        """Ends the leases of all other drivers, which are known to be dead; who takes such a fit counts a death."""
        self._rows(
            "UPDATE ddstudy_claims SET expires = 0 WHERE study_id = :study AND driver <> :driver RETURNING fit, deaths"
        )

    def orphans(self) -> set[str]:
        """Fits whose driver died and that nobody has taken since."""
        return set(
            self._patient_rows(
                f"SELECT fit, deaths FROM ddstudy_claims WHERE study_id = :study AND expires < {self._clock}"
            )
        )

    def end(self) -> None:
        """Stops renewing and gives back what is held."""
        self._ended.set()
        self._renewer.join()
        for fit_id in list(self._held):
            self.release(fit_id)

    def _renew(self) -> None:
        period, last = self.lease_seconds / 3, time.monotonic()
        while not self._ended.wait(min(period, TELL_SECONDS)):
            # where a fit runs is told soon, how far it is with every renewal
            due = time.monotonic() - last >= period
            last = time.monotonic() if due else last
            fits = self._held if due else self._untold
            # a database that is away for a moment is tried again; if it stays away, recording will say so
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                for fit_id in list(fits):
                    self._rows(self._renewal, fit_id)
                    self._untold.discard(fit_id)

    def _patient_rows(self, statement: str, fit_id: str | None = None) -> dict[str, int]:
        return self.patiently(lambda: self._rows(statement, fit_id))

    def _rows(self, statement: str, fit_id: str | None = None) -> dict[str, int]:
        """The fits that a statement concerned, and how many drivers died with each."""
        values: dict[str, Any] = {**self._common, "fit": fit_id, "doing": self._doing.get(fit_id or "", "")}
        used = {name: value for name, value in values.items() if f":{name}" in statement}
        with self._engine.begin() as connection:
            return {row.fit: row.deaths for row in connection.execute(_text(statement), used)}
