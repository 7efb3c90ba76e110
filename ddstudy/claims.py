"""Claims: which driver is fitting what, in a table beside Optuna's.

A claim is a lease on the database's clock. It is renewed while its driver lives, so that the fits of a driver that died
are free again when the lease ends. A claim only keeps others from doing the same work meanwhile; what is done is
told by finished trials alone.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import sqlalchemy as sa

_table = sa.Table(
    "ddstudy_claims",
    sa.MetaData(),
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("fit", sa.String(100), primary_key=True),
    sa.Column("driver", sa.String(200), nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
)
_CLOCKS = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())::double precision",
}


def create_table(engine: sa.Engine) -> None:
    """Makes the table where it is missing."""
    _table.create(engine, checkfirst=True)


class Claims:
    """The claims of one driver on the fits of one study.

    Args:
        engine: of the database.
        study_id: Optuna's.
        driver: name of this driver, unique.
        lease_seconds: how long a claim outlives its driver; it is renewed three times as often.
    """

    def __init__(self, engine: sa.Engine, study_id: int, driver: str, lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._engine = engine
        self._common = {"study": study_id, "driver": driver, "lease": lease_seconds}
        self._clock = _CLOCKS[engine.dialect.name]
        self._renewal = (
            f"UPDATE ddstudy_claims SET expires = {self._clock} + :lease "
            "WHERE study_id = :study AND fit = :fit AND driver = :driver RETURNING fit"
        )
        self._held: set[str] = set()
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)
        self._renewer.start()

    def take(self, fit_id: str) -> bool:
        """Takes a fit, unless a driver that lives has it."""
        taken = self._rows(
            "INSERT INTO ddstudy_claims (study_id, fit, driver, expires) "
            f"VALUES (:study, :fit, :driver, {self._clock} + :lease) "
            "ON CONFLICT (study_id, fit) DO UPDATE SET driver = excluded.driver, expires = excluded.expires "
            f"WHERE ddstudy_claims.expires < {self._clock} RETURNING fit",
            fit_id,
        )
        if taken:
            self._held.add(fit_id)
        return bool(taken)

    def holds(self, fit_id: str) -> bool:
        """Whether a claim is ours for half a lease more; False as after a pause longer than the lease."""
        # mostly the renewals see to that, and a look costs less than one more write to the disk
        look = (
            "SELECT fit FROM ddstudy_claims WHERE study_id = :study AND fit = :fit AND driver = :driver "
            f"AND expires >= {self._clock} + :lease * 0.5"
        )
        return bool(self._rows(look, fit_id) or self._rows(self._renewal, fit_id))

    def release(self, fit_id: str) -> None:
        """Gives a fit back; nothing happens to another driver's claim."""
        self._held.discard(fit_id)
        self._rows(
            "DELETE FROM ddstudy_claims WHERE study_id = :study AND fit = :fit AND driver = :driver RETURNING fit",
            fit_id,
        )

    def alive(self) -> set[str]:
        """Fits of the study that any living driver has."""
        return self._rows(f"SELECT fit FROM ddstudy_claims WHERE study_id = :study AND expires >= {self._clock}")

    def forget_all(self) -> None:
        """Drops every driver's claims on the study."""
        self._rows("DELETE FROM ddstudy_claims WHERE study_id = :study RETURNING fit")

    def end(self) -> None:
        """Stops renewing and gives back what is held."""
        self._ended.set()
        self._renewer.join()
        for fit_id in list(self._held):
            self.release(fit_id)

    def _renew(self) -> None:
        while not self._ended.wait(self.lease_seconds / 3):
            # a database that is away for a moment is tried again; if it stays away, recording will say so
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                for fit_id in list(self._held):
                    self._rows(self._renewal, fit_id)

    def _rows(self, statement: str, fit_id: str | None = None) -> set[str]:
        """The fits that a statement concerned."""
        values: dict[str, Any] = {**self._common, "fit": fit_id}
        used = {name: value for name, value in values.items() if f":{name}" in statement}
        with self._engine.begin() as connection:
            return {row.fit for row in connection.execute(sa.text(statement), used)}
