"""The store: one database that holds every study, and a folder for the images of its trials.

Optuna's tables hold the studies and trials, `ddstudy.store.leases` says which driver is fitting what. A database is a
SQLite file, which one driver at a time may write, or PostgreSQL, which many may share. A `Store` opens it and gives a
study to look at, `ddstudy.store.study.StudyView`, or one to write, `ddstudy.store.writer.StudyWriter`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa

from ddstudy.errors import UserError, WorkError
from ddstudy.images.volumes import Target, Targets, short_digest
from ddstudy.spec.files import stored_spec
from ddstudy.spec.options import OPTIONS
from ddstudy.spec.schema import CASE, OF_CASES, StudySpec
from ddstudy.store.leases import AtWork, Leases, at_work, create_table
from ddstudy.store.optuna_rows import FrozenStudy, TrialStorage, count_finished, distributions, has_tables, id_of
from ddstudy.store.records import VERSION, is_sound
from ddstudy.store.study import StudyView, facts_of, view_of
from ddstudy.store.urls import VALID, parse_url, said, shown, shown_path
from ddstudy.store.writer import StudyWriter

LEASE_SECONDS = 30.0
SPEC, _FACTS, _FINGERPRINT = "ddstudy:spec", "ddstudy:facts", "ddstudy:fingerprint"
_OTHER_NUMERICS = "its results are of arithmetic {}, this version has {} (see NUMERICS in ddstudy/spec/schema.py)"
_STARTING = 0x64647374  # key of the advisory lock, "ddst"


# what is raised for a damaged database, or a server that is away
_FAILURES = (optuna.exceptions.StorageInternalError, sa.exc.SQLAlchemyError)
READ_ERRORS = (*_FAILURES, sqlite3.Error, UnicodeError)


class NoStudiesError(UserError):
    """There is nothing to look at yet."""


class Store:
    """A database of studies.

    Args:
        url: `sqlite:///FILE.db` or `postgresql://USER:PASSWORD@HOST/DATABASE`.
        artifacts: folder for images; by default `FILE-artifacts` beside the SQLite file, `ddstudy-artifacts` in the
            current folder for PostgreSQL.
        read_only: open for looking only; the database then refuses every write.
        lease_seconds: how long a lease outlives a driver that died.

    Raises:
        UserError: the URL is not valid, the database cannot be reached or is not one of ours.
    """

    def __init__(
        self, url: str, artifacts: Path | None = None, *, read_only: bool = False, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._url = parse_url(url)
        self.lease_seconds = lease_seconds
        self._stack = contextlib.ExitStack()
        self._driving = False
        self.driver = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self.is_sqlite = self._url.drivername == "sqlite"
        self.path = Path(self._url.database or "").absolute() if self.is_sqlite else None
        beside = self.path.with_name(f"{self.path.stem}-artifacts") if self.path else Path("ddstudy-artifacts")
        self.artifacts = artifacts or beside
        self.storage = self._open(read_only)

    @property
    def shown_url(self) -> str:
        """The URL without password and options, for people."""
        return shown(self._url)

    def _open(self, read_only: bool) -> TrialStorage:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if self.path is not None and os.path.exists(self.path) and not os.path.isfile(self.path):
            raise UserError(f"{shown_path(self.path)}: is no regular file", VALID)  # SQLite would leave files beside it
        if self.path is not None and read_only and not os.path.isfile(self.path):
            raise NoStudiesError(
                f"{shown_path(self.path)}: no such database", "Make one with `ddstudy run`, or name one with --store."
            )
        if self.path is not None and not self.path.parent.is_dir():
            raise UserError(f"{shown_path(self.path.parent)}: no such folder", "The folder of the database must exist.")
        try:
            if self.path is not None and not read_only:
                with contextlib.closing(sqlite3.connect(self.path, timeout=60)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")  # readers do not block the driver, nor it them
            url, options = self._engine_url(read_only), self._engine_options(read_only)
            if read_only:
                if not has_tables(sa.create_engine(url, **options)):
                    raise self._no_studies()
                return TrialStorage(url, engine_kwargs=options, skip_table_creation=True)
            with self._alone(), contextlib.ExitStack() as opened:
                storage = TrialStorage(url, engine_kwargs=options)
                opened.callback(storage.close)
                create_table(storage.engine)
                storage.make_table()
                opened.pop_all()
            if self.is_sqlite:
                _lock_from_the_beginning(storage.engine)
            return storage
        except READ_ERRORS as error:
            raise UserError(f"{self.shown_url}: cannot be opened: {said(error, self._url)}", VALID) from None
        except AssertionError:  # Optuna's, where the row with its version is missing
            raise UserError(
                f"{self.shown_url}: cannot be opened: it does not say which version of Optuna made it",
                "It was damaged.",
            ) from None
        except RuntimeError as error:  # tables of another version of Optuna; its message says what to do
            raise UserError(f"{self.shown_url}: cannot be opened", said(error, self._url)) from None

    def _engine_url(self, read_only: bool) -> str:
        url = self._url
        if self.path is not None:
            # as a URI, a path survives spaces, '?' and '%', and the braces that RDBStorage would fill in
            mode = {"mode": "ro" if read_only else "rwc", "uri": "true"}
            if read_only and not os.access(self.path.parent, os.W_OK) and not Path(f"{self.path}-wal").exists():
                mode["immutable"] = "1"  # SQLite would want to make files beside it, which no driver does either
            url = url.set(database=self.path.as_uri(), query={**url.query, **mode})
        return url.render_as_string(hide_password=False)

    def _engine_options(self, read_only: bool) -> dict[str, Any]:
        # a reader may stay open for days: it keeps no connection between reads
        options: dict[str, Any] = {"poolclass": sa.NullPool} if read_only else {"pool_pre_ping": True}
        if self.is_sqlite:
            return {**options, "connect_args": {"timeout": 60}}
        # behind PgBouncer a connection may be another one after each transaction: no statement is prepared in it, and
        # reading only is said of each transaction
        options["connect_args"] = {"connect_timeout": 10, "prepare_threshold": None}
        return options | ({"execution_options": {"postgresql_readonly": True}} if read_only else {})

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps the drivers that start together from making the same tables or the same study at once."""
        if self.is_sqlite:
            yield
            return
        options = self._engine_options(read_only=False) | {"pool_pre_ping": False, "poolclass": sa.NullPool}
        engine = sa.create_engine(self._engine_url(read_only=False), **options)
        ask = sa.text(f"SELECT pg_try_advisory_xact_lock({_STARTING})")
        while True:
            with engine.connect() as connection:  # the lock ends with the transaction, however that ends
                if connection.scalar(ask):
                    yield
                    return
            time.sleep(0.1)  # a wait inside the database would hold a pooler's connection, which the other may need

    def said(self, error: BaseException) -> str:
        """What the database says first in an error, without its password."""
        return said(error, self._url)

    def close(self) -> None:
        """Gives the driver's place back and closes all connections."""
        self._stack.close()
        self.storage.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self.close()
        except _FAILURES as while_closing:
            error = error or while_closing
        if isinstance(error, _FAILURES):
            again = "What was finished is kept; the same command goes on."
            raise WorkError(f"the store failed: {said(error, self._url)}\n{again}") from error

    # looking

    def names(self) -> list[str]:
        """Names of our studies, latest first; without those of cases, which the study they are of has."""
        names = [study.study_name for study in self._ours()]
        return [
            name for name in names if name.removesuffix(OF_CASES) == name or name.removesuffix(OF_CASES) not in names
        ]

    def _ours(self) -> list[FrozenStudy]:
        studies = [s for s in self.storage.get_all_studies() if SPEC in s.user_attrs]
        return sorted(studies, key=lambda s: -id_of(s))

    @property
    def damaged(self) -> dict[str, str]:
        """Studies that cannot be read: name -> what is wrong with it."""
        return self.storage.read_studies()[1]

    @property
    def complaints(self) -> list[str]:
        """The same, a line a study."""
        return [f"study '{name}' cannot be read: {why}" for name, why in self.damaged.items()]

    def view(self, name: str | None = None) -> StudyView:
        """A study to look at; without a name the latest.

        Raises:
            UserError: there is no such study, or it cannot be read.
        """
        studies = {study.study_name: study for study in self._ours()}
        damaged = self.damaged if name not in studies else {}
        for one in damaged:
            if name == one or (name is None and not studies):
                raise self._cannot_read(one, damaged[one])
        if not studies:
            raise self._no_studies()
        if name is not None and name not in studies:
            raise self._unknown(name, studies)
        study = studies[name or self.names()[0]]
        trials, left_out = self.storage.read_trials(id_of(study))
        view = view_of(study, trials, self.artifacts, self.shown_url, left_out)
        if view.spec.by_case is not None and view.spec.by_case.name in studies:
            return replace(view, by_case=self.view(view.spec.by_case.name))
        return view

    def _unknown(self, name: str, known: Iterable[str]) -> UserError:
        return UserError(f"{self.shown_url}: no study '{shown_path(name)}'", f"Valid: {', '.join(known)}.")

    def _no_studies(self) -> NoStudiesError:
        return NoStudiesError(f"{self.shown_url}: no studies yet", "Make one with `ddstudy run`.")

    def _cannot_read(self, name: str, why: str) -> UserError:
        return UserError(
            f"{self.shown_url}: study '{name}' cannot be read: {why}", "It was damaged; the other studies go on."
        )

    def finished(self, name: str) -> int:
        """How many trials of a study and of its cases are finished: a count that is quick in a large study, too.

        Raises:
            UserError: there is no such study.
        """
        return sum(count_finished(self.storage.engine, part) for part in self._parts(name))

    def source(self, name: str, spec: StudySpec, target: Target | Targets) -> StudyView:
        """Another study, whose results can be imported into a study of this spec and target.

        Raises:
            UserError: there is no such study, or its target or what changes its numbers is not the same.
        """
        other = self.view(name)
        if other.by_case is not None and CASE in spec.search_space.names:
            other = other.by_case
        study = next(study for study in self._ours() if study.study_name == other.name)
        theirs, _ = self._stored_fingerprint(study)
        ours = spec.fingerprint()
        tables = ("prior.", "target.", "task.", "judge.", "noise.", "fit.")
        both = ours.keys() & theirs.keys()
        differences = [
            f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here"
            for key in sorted(ours.keys() | theirs.keys())
            if key.startswith(tables)
            and theirs.get(key) != ours.get(key)
            # an axis of one study, which its fingerprint leaves out, may have its default in the other: identities say
            # which settings are the same
            and (key in both or key not in OPTIONS or OPTIONS[key].default != theirs.get(key, ours.get(key)))
        ]
        if theirs["numerics"] != ours["numerics"]:
            differences.append(_OTHER_NUMERICS.format(theirs["numerics"], ours["numerics"]))
        stacks = [each.is_linked and each.cases.stacks for each in (spec, other.spec)]
        if stacks[0] != stacks[1]:
            differences.append("cases: slices that are fitted with their neighbours, and others")
        there = other.spec.cases.by_name
        for name, case in spec.cases.by_name.items():
            # their pixels are compared, wherever they lie
            own, known = (one.model_copy(update={"file": None}).own for one in (case, there.get(name, case)))
            if own != known:
                differences.append(f"case {name}: {known} there, {own} here")
        if not _same_pixels(theirs["target"], target.digest):
            differences.append(f"target: {other.facts['target']} there, {target.name} here, other pixels")
        if differences:
            raise UserError(
                f"--reuse {name}: its results are not results of study '{spec.name}': {'; '.join(differences)}",
                "Only the results of the same prior, target, task, judge, noise and fit options can be reused.",
            )
        return other

    def at_work(self, name: str) -> list[AtWork]:
        """The fits of a study that are being done now, by whichever drivers; of one with cases, those of its cases.

        Raises:
            UserError: there is no such study.
        """
        return at_work(self.storage.engine, self._parts(name)[-1])

    def _parts(self, name: str) -> list[int]:
        """The ids of a study and, where there is one, of its study of cases."""
        stored = {study.study_name: id_of(study) for study in self._ours()}
        if name not in stored:
            raise self._unknown(name, stored)
        return [stored[each] for each in (name, name + OF_CASES) if each in stored]

    # driving

    def drive(self, spec: StudySpec, target: Target | Targets, sampler: optuna.samplers.BaseSampler) -> StudyWriter:
        """Creates the study or goes on with it, as one of its drivers.

        Raises:
            UserError: the study exists with another spec or target; another driver has the SQLite file.
        """
        with contextlib.ExitStack() as stack:  # undone if anything below is refused
            if self.path is not None and not self._driving:
                stack.enter_context(self._file_lock(self.path))
            with self._alone():
                grown = self.check(spec, target)
                study = optuna.create_study(
                    study_name=spec.name,
                    storage=self.storage,
                    sampler=sampler,
                    directions=self._directions(spec),
                    load_if_exists=True,
                )
                self._note(study, spec, target, grown)
                self.storage.judges[id_of(study)] = functools.partial(is_sound, spec=spec)
                study = optuna.load_study(study_name=spec.name, storage=self.storage, sampler=sampler)
            with warnings.catch_warnings():  # "experimental" since Optuna 3.2
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(spec.objectives))
            leases = Leases(self.storage.engine, id_of(study), self.driver, self.lease_seconds)
            stack.callback(leases.end)
            if self.is_sqlite:
                leases.expire_others()  # we have the file's lock, so the drivers that had these are dead
            made_by = {VERSION: version("ddstudy")} | ({"commit": commit()} if commit() else {})
            writer = StudyWriter(
                study, self.storage, spec, target, self.artifacts, leases, made_by, alone=self.is_sqlite
            )
            with self._alone():
                writer.settle()
            writer.close_abandoned()
            self._stack.push(stack.pop_all())
            self._driving = True
        return writer

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps drivers from a SQLite file meanwhile.

        Raises:
            UserError: one is at work.
        """
        with self._file_lock(self.path) if self.path is not None else contextlib.nullcontext():
            yield

    def _file_lock(self, path: Path) -> contextlib.AbstractContextManager[object]:
        import filelock

        try:
            return filelock.FileLock(f"{path}.lock", timeout=0).acquire()
        except filelock.Timeout:
            raise UserError(
                f"{self.shown_url}: another ddstudy run is writing to this file",
                "Wait for it or stop it; several drivers at once need a PostgreSQL store.",
            ) from None

    def _directions(self, spec: StudySpec) -> list[Any]:
        wanted = list(spec.objectives.values())
        for study in self.storage.get_all_studies():
            stored = [direction.name.lower() for direction in study.directions]
            if study.study_name == spec.name and stored != wanted:
                if self._has_trials(id_of(study)):
                    return stored  # Optuna would refuse others before we can say what differs
                self.storage.delete_study(id_of(study))
        return wanted

    def _has_trials(self, study_id: int) -> bool:
        with contextlib.suppress(KeyError):  # Optuna's own count reads every trial
            return self.storage.get_trial_id_from_study_id_trial_number(study_id, 0) is not None
        return False

    def check(self, spec: StudySpec, target: Target | Targets) -> list[str] | None:
        """Whether a study can go on, or begin, with this spec and target; nothing is written.

        Returns:
            Axes whose lists are longer than the stored ones; None where no trial depends on what is stored.

        Raises:
            UserError: it cannot be read, or differs.
        """
        if why := self.damaged.get(spec.name):
            raise self._cannot_read(spec.name, why)
        frozen = next((study for study in self.storage.get_all_studies() if study.study_name == spec.name), None)
        if frozen is None or not self._has_trials(id_of(frozen)):
            return None
        if SPEC not in frozen.user_attrs:
            raise UserError(
                f"{self.shown_url}: study '{spec.name}' was not made by ddstudy", "Give the study another --name."
            )
        ours = {**spec.fingerprint(), "target": target.digest}
        theirs, unknown = self._stored_fingerprint(frozen)
        if unknown:
            raise UserError(
                f"study '{spec.name}' in {self.shown_url} was stored by a later version, with options that this one "
                f"does not know: {', '.join(unknown)}",
                "Go on with it in that version, or give the study another name with --name.",
            )
        changed = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
        grown = [key for key in changed if key in theirs.keys() & ours.keys() and _grows(key, theirs[key], ours[key])]
        differences = [
            f"{key}: stored {theirs.get(key)!r}, now {ours.get(key)!r}"
            for key in changed
            if key not in (*grown, "target", "numerics")
        ]
        if not _same_pixels(ours["target"], theirs["target"]):
            was = facts_of(frozen, self.shown_url)["target"]
            differences.append(f"target: stored {was}, now {target.name}{' with other pixels' * (was == target.name)}")
        if differences:
            raise UserError(
                f"study '{spec.name}' in {self.shown_url} differs: {'; '.join(differences)}",
                "Give the changed study another name with --name (--reuse imports results), or run it as it "
                "was stored; lists may grow, those of words at their end.",
            )
        if theirs["numerics"] != ours["numerics"]:
            other = _OTHER_NUMERICS.format(theirs["numerics"], ours["numerics"])
            raise UserError(
                f"study '{spec.name}' in {self.shown_url}: {other}, and a study must not mix them",
                "Give the study another name with --name, or go on with it in the version that made it; its results "
                "can be looked at as before.",
            )
        return [key.removeprefix("space.") for key in grown]

    def _note(self, study: optuna.Study, spec: StudySpec, target: Target | Targets, grown: list[str] | None) -> None:
        """Stores what a study is, as far as `check` allows it to change."""
        if grown is None:
            facts = {"target": target.name, "target shape": "x".join(map(str, target.image.shape)), **environment()}
            if isinstance(target, Targets) and target.axes == (CASE,):
                facts["targets"] = json.dumps({values[0]: each.name for values, each in target.images.items()})
            study.set_user_attr(_FACTS, json.dumps({**facts, "target digest": short_digest(target)}))
        elif grown:
            self._grow(study, spec, grown)
        study.set_user_attr(SPEC, spec.stored())  # the number of trials may have changed
        study.set_user_attr(_FINGERPRINT, json.dumps({**spec.fingerprint(), "target": target.digest}))

    def _stored_fingerprint(self, study: FrozenStudy) -> tuple[dict[str, Any], list[str]]:
        """The fingerprint of a stored study, and the keys of its study file that this version does not know.

        The study file is read anew, since an option that came later has its default there; what a study file does not
        say, the digest of the target and the number of the arithmetic, is taken from what was stored.
        """
        source = f"{self.shown_url}: study '{study.study_name}'"
        spec, unknown = stored_spec(study.user_attrs.get(SPEC, ""), source)
        try:
            stored = json.loads(study.user_attrs[_FINGERPRINT])
            digest, numerics = stored["target"], stored.get("numerics")
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            raise UserError(f"{source}: its fingerprint cannot be read", "Give the study another --name.") from None
        if numerics is None:
            numerics = _numerics_without_number(facts_of(study, source))
        return {**spec.fingerprint(), "target": digest, "numerics": numerics}, unknown

    def _grow(self, study: optuna.Study, spec: StudySpec, axes: list[str]) -> None:
        """Gives the trials of a study the distributions of longer lists.

        Optuna itself would take the new values, but leaves an axis out of its importances when trials disagree on it.
        """
        leases = Leases(self.storage.engine, id_of(study), self.driver, self.lease_seconds)
        busy = not self.is_sqlite and leases.alive()  # we have the lock of a SQLite file: all others are dead
        leases.end()
        if busy:
            raise UserError(
                f"study '{spec.name}' in {self.shown_url}: its lists cannot grow while another driver runs it",
                "Stop the others, start one with the longer lists, then the rest.",
            )
        new = distributions(spec.search_space)
        self.storage.set_distributions(id_of(study), {axis: new[axis] for axis in axes if axis in new})


def _lock_from_the_beginning(engine: sa.Engine) -> None:
    """Makes every transaction on a SQLite file take its lock at once, and so wait for those of other threads.

    One that reads first and writes then would fail without waiting if another thread has written in between.
    """

    def leave_beginning_to_us(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None

    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sa.event.listen(engine, "connect", leave_beginning_to_us)
    sa.event.listen(engine, "begin", begin)
    engine.dispose()  # drops the connections that were made before


def _grows(key: str, old: list[Any], new: list[Any]) -> bool:
    """Whether results over the old list of an axis stay what they are over the new one.

    Optuna stores a word by its place in the list.
    """
    table, _, _ = key.partition(".")
    if table != "space":
        return False
    if key == "space.prior":  # a union: parts may be added, and their lists may grow
        return all(
            one.keys() == other.keys() and all(_grows("space", one[path], other[path]) for path in one)
            for one, other in zip(old, new, strict=False)
        ) and len(new) >= len(old)
    words = any(isinstance(value, str) for value in [*old, *new])
    return new[: len(old)] == old if words else set(old) <= set(new)


def _same_pixels(one: str | dict[str, str], other: str | dict[str, str]) -> bool:
    """Whether the digests of the targets of two studies agree: of several images, those that both have."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(one[key] == other[key] for key in one.keys() & other.keys())
    return one == other


def _numerics_without_number(facts: Mapping[str, str]) -> int:
    """`NUMERICS` of a study that was stored before studies noted it: 2 since commit a6b599d, 1 before."""
    if facts.get("commit", "").removesuffix("-dirty") in ("a6b599d", "61b977d", "dc64bf9", "87a1aef"):
        return 2
    return 1 if facts.get("created", "9") < "2026-11-26T08:36" else 2


def environment() -> dict[str, str]:
    """Versions and, in a git checkout, the commit of ddstudy."""
    facts = {name: version(name) for name in ("ddstudy", "torch", "optuna", "numpy", "piq")}
    return {**facts, "commit": commit(), "created": datetime.now().isoformat(timespec="seconds")}


@functools.cache
def commit() -> str:
    """The commit of this ddstudy; empty where it does not run from a git checkout."""
    git, root = shutil.which("git"), Path(__file__).parents[2]
    if not git or not (root / ".git").exists():
        return ""
    done = subprocess.run([git, "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip()
