"""Everything that relies on private parts of Optuna, above all its tables, which are written and read here.

A trial has some fifty rows. Optuna writes them one by one and counts all earlier trials for each new one; one row that
it cannot read, after an edit by hand or on a bad disk, ends whatever reads the study. `TrialStorage` writes the same
rows with one statement a table, and reads every trial for itself: one that cannot be read is left out, with the reason.
Whether a trial is a result of ours, `ddstudy.store.records` says.

No other module imports or touches a private name of Optuna (tests/test_architecture.py). Each use gives its reason, and
tests/test_canaries.py says by name what another version no longer has.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa
from optuna.artifacts import ArtifactMeta

# `upload_artifact` commits the attribute of each image alone; ours is written with the other rows of its trial
from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.samplers import BaseGASampler, BaseSampler, GPSampler
from optuna.storages import RDBStorage

# the tables: Optuna's storage sends fifty statements a trial, and ends at the first row that it cannot read
from optuna.storages._rdb import models
from optuna.study import Study, StudyDirection

# what a damaged row must not break is looked for under the keys of Optuna's own attributes
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY

# what storages tell of a study: to make the public `StudySummary`, Optuna reads every trial
from optuna.study._frozen import FrozenStudy as FrozenStudy
from optuna.study.study import _SYSTEM_ATTR_METRIC_NAMES
from optuna.trial import FrozenTrial, Trial, TrialState

from ddstudy.spec.axes import Axis, Setting, Space
from ddstudy.store.leases import lengthen
from ddstudy.store.urls import said

T = TypeVar("T")

# parts of keys that Optuna has no name for
_ENQUEUED = "fixed_params"
_GENERATION = ":generation"
_PARENTS = ":parent:"
_QMC = "qmc:"


def id_of(known: Study | FrozenStudy | Trial | FrozenTrial) -> int:
    """The id of a study or a trial, which every method of a storage asks for.

    The public ways to it, by the name of a study and the number of a trial, are a query each.
    """
    return known._study_id if isinstance(known, Study | FrozenStudy) else known._trial_id


class DamagedError(Exception):
    """Why a study or a trial cannot be read, as the end of a sentence about it."""


class TrialStorage(RDBStorage):
    """Optuna's storage, which writes what is known of a trial at once and reads what can be read.

    Attributes:
        judges: id of a study that is open for writing -> whether Optuna and its samplers may see a trial of it.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.judges: dict[int, Callable[[FrozenTrial], bool]] = {}
        try:
            super().__init__(url, **options)
        except BaseException:
            if "scoped_session" in vars(self):  # made after the engine, before it is first used
                self.close()
            raise
        sa.event.listen(self.engine, "handle_error", _name_damage)

    def close(self) -> None:
        """Closes all connections."""
        self.remove_session()
        self.engine.dispose()

    def read_studies(self) -> tuple[list[FrozenStudy], dict[str, str]]:
        """The studies that can be read, in the order of their ids; and name -> why, of those that cannot."""
        found, damaged = _read(self.engine, _STUDIES, "", _study)
        return found, {f"{row[1]}": why for row, why in damaged.values()}

    def read_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None = None,
        *,
        after: int = -1,
        among: Iterable[int] = (),
    ) -> tuple[list[FrozenTrial], dict[str, str]]:
        """The trials of a study that can be read.

        Args:
            study_id: Optuna's.
            states: only trials in these states.
            after: only trials with a greater id,
            among: or with one of these.

        Returns:
            The trials that can be read, in the order of their ids; and number -> why, of those that cannot.
        """
        which = f"study_id = {int(study_id)}"
        if after >= 0:
            wanted = ", ".join(str(trial_id) for trial_id in among if trial_id <= after)
            which += f" AND (trial_id > {int(after)}{f' OR trial_id IN ({wanted})' * bool(wanted)})"
        if states is not None:
            names = ", ".join(f"'{state.name}'" for state in TrialState if state in states)
            which += f" AND state IN ({names})"
        found, damaged = _read(self.engine, _TRIALS, f"WHERE {which}", _trial)
        left_out = {f"{row[1]}": why for row, why in damaged.values()}
        if any(trial.values for trial in found):
            with self.engine.connect() as connection:
                objectives = len(connection.execute(_OBJECTIVES, {"study": study_id}).all())
            odd = {
                trial.number: len(trial.values) for trial in found if trial.values and len(trial.values) != objectives
            }
            found = [trial for trial in found if trial.number not in odd]
            left_out |= {
                f"{number}": f"it has {count} values for {objectives} objectives" for number, count in odd.items()
            }
        return found, left_out

    # what Optuna asks for

    def get_study_id_from_name(self, study_name: str) -> int:
        """Of a study that can be read.

        Raises:
            KeyError: there is none of this name.
        """
        ids = {study.study_name: id_of(study) for study in self.read_studies()[0]}
        if study_name not in ids:
            raise KeyError(models.NOT_FOUND_MSG)
        return ids[study_name]

    def get_all_studies(self) -> list[FrozenStudy]:
        """The studies that can be read."""
        return self.read_studies()[0]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """A trial that can be read.

        Raises:
            KeyError: there is none of this id, or it cannot be read.
        """
        # an id of more than 64 bits is no id of a trial
        which = f"WHERE trial_id = {int(trial_id)}" if abs(trial_id) < 2**63 else "WHERE 1 = 0"
        found, _ = _read(self.engine, _TRIALS, which, _trial)
        if not found:
            raise KeyError(models.NOT_FOUND_MSG)
        return found[0]

    # private: what the public `get_all_trials` and Optuna's cache of trials both read by
    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        trials, _ = self.read_trials(study_id, states, after=trial_id_greater_than, among=included_trial_ids)
        return list(filter(self.judges.get(study_id), trials))

    # private, since the public `set_trial_param` has no place for the distribution to compare with: Optuna would take
    # that of any other trial, which may be foreign or damaged; ours are those of the study
    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        # Optuna takes the previous distribution that it is given, without looking one up
        super()._set_trial_param(trial_id, param_name, param_value_internal, distribution, distribution)

    # writing

    def make_table(self) -> None:
        """Makes the table that keeps a setting from having two results, beside Optuna's, where it is missing."""
        _MEASURED.create(self.engine, checkfirst=True)
        lengthen(self.engine, _MEASURED.name, "setting")
        # of earlier versions: it was over a mark of trials, which in a copied study still named the original
        with self.engine.begin() as connection:
            connection.execute(sa.text("DROP INDEX IF EXISTS ddstudy_results"))

    def add_result(self, study_id: int, trial: FrozenTrial, setting: Setting) -> bool:
        """Adds a finished trial as the result of a setting, in one transaction; False if the setting has one."""
        with self.engine.begin() as connection:
            trial_id = _add(connection, study_id, trial)
            if _take(connection, study_id, setting, trial_id):
                return True
            connection.rollback()
            return False

    def describe_result(self, study_id: int, trial_id: int, known: FrozenTrial, setting: Setting) -> bool | None:
        """Adds attributes and intermediate values to a RUNNING trial, as the result of a setting, in one transaction.

        May be called again: a trial that is the result is left as it is.

        Returns:
            True if the trial only needs Optuna's `tell`, None if it is closed, False if the setting has another result.
        """
        trial, step = models.TrialModel, models.TrialIntermediateValueModel
        with self.engine.begin() as connection:
            connection.execute(_LOCK, {"study": study_id})
            state = connection.scalar(sa.select(trial.state).where(trial.trial_id == trial_id).with_for_update())
            if state != TrialState.RUNNING:
                return None
            described = connection.scalar(_TRIAL_OF, {"study": study_id, "setting": setting.id}) == trial_id
            if not described:
                if not _take(connection, study_id, setting, trial_id):
                    return False
                told = set(connection.scalars(sa.select(step.step).where(step.trial_id == trial_id)))
                known = copy.copy(known)
                known.intermediate_values = {at: it for at, it in known.intermediate_values.items() if at not in told}
                for insert, rows in _descriptions(trial_id, known):
                    connection.execute(insert, rows)
        return True

    def noted_results(self, study_id: int) -> dict[str, int]:
        """Settings that are noted to have a result -> the trial that is it; RUNNING trials are left out."""
        with self.engine.connect() as connection:
            rows = connection.execute(_NOTED, {"study": study_id}).all()
        return {row.setting: row.trial_id for row in rows if row.state != "RUNNING"}

    def note_results(self, study_id: int, wrong: Mapping[str, int], missing: Mapping[str, int]) -> None:
        """Corrects the notes of a study that was copied, edited by hand, or made by an earlier version."""
        with self.engine.begin() as connection:
            for statement, those in ((_FORGET, wrong), (_NOTE, missing)):
                if those:
                    rows = [{"study": study_id, "setting": key, "trial": trial} for key, trial in those.items()]
                    connection.execute(statement, rows)

    def set_distributions(self, study_id: int, new: Mapping[str, BaseDistribution]) -> None:
        """Gives parameters of all trials of a study another distribution, which Optuna has no way to do."""
        with self.engine.begin() as connection:
            for name, distribution in new.items():
                row = {"study": study_id, "name": name, "new": distribution_to_json(distribution)}
                connection.execute(_CHANGE, row)

    def forget_parents(self, study_id: int, trials: Iterable[FrozenTrial]) -> None:
        """Lets a genetic sampler choose parents anew where those that it noted are not among the study's trials."""
        ours = {id_of(trial) for trial in trials}
        for key, parents in self.get_study_system_attrs(study_id).items():
            if _PARENTS in key and parents and not ours.issuperset(parents):
                self.set_study_system_attr(study_id, key, None)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """A trial that is finished already is written with one statement a table, in one transaction."""
        if template_trial is None:
            return super().create_new_trial(study_id)
        with self.engine.begin() as connection:
            return _add(connection, study_id, template_trial)


def has_tables(engine: sa.Engine) -> bool:
    """Whether a database has Optuna's tables; its storage would make them where they are missing."""
    return sa.inspect(engine).has_table(models.StudyModel.__tablename__)


_CHANGE = sa.text(
    "UPDATE trial_params SET distribution_json = :new WHERE param_name = :name "
    "AND trial_id IN (SELECT trial_id FROM trials WHERE study_id = :study)"
)
_MEASURED = sa.Table(
    "ddstudy_measured",
    sa.MetaData(),
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("setting", sa.Text, primary_key=True),
    sa.Column("trial_id", sa.Integer, nullable=False),
)
_TRIAL_OF = sa.text("SELECT trial_id FROM ddstudy_measured WHERE study_id = :study AND setting = :setting")
_NOTED = sa.text(
    "SELECT setting, ddstudy_measured.trial_id, state FROM ddstudy_measured "
    "LEFT JOIN trials ON trials.trial_id = ddstudy_measured.trial_id WHERE ddstudy_measured.study_id = :study"
)
_FORGET = sa.text("DELETE FROM ddstudy_measured WHERE study_id = :study AND setting = :setting AND trial_id = :trial")
_NOTE = sa.text("INSERT INTO ddstudy_measured VALUES (:study, :setting, :trial) ON CONFLICT DO NOTHING")
# a trial that was closed as FAIL, or that is gone, is no result
_TAKE = sa.text(
    "INSERT INTO ddstudy_measured (study_id, setting, trial_id) VALUES (:study, :setting, :trial) "
    "ON CONFLICT (study_id, setting) DO UPDATE SET trial_id = excluded.trial_id WHERE NOT EXISTS (SELECT 1 FROM trials "
    "WHERE trials.trial_id = ddstudy_measured.trial_id AND trials.study_id = ddstudy_measured.study_id "
    "AND trials.state <> 'FAIL') RETURNING trial_id"
)


def _take(connection: sa.Connection, study_id: int, setting: Setting, trial_id: int) -> bool:
    """Notes a trial as the result of a setting, if it has none; under the lock on the study, which others wait for."""
    row = {"study": study_id, "setting": setting.id, "trial": trial_id}
    return connection.execute(_TAKE, row).first() is not None


def _add(connection: sa.Connection, study_id: int, trial: FrozenTrial) -> int:
    """Writes a finished trial and returns its id."""
    times = {"datetime_start": _utc(trial.datetime_start), "datetime_complete": _utc(trial.datetime_complete)}
    row: dict[str, Any] = {"study_id": study_id, "state": trial.state, **times}
    connection.execute(_LOCK, {"study": study_id})  # as Optuna does it: no other driver takes the same number meanwhile
    latest = connection.scalar(_LATEST, {"study": study_id})
    made = connection.execute(_NEW, {**row, "number": 0 if latest is None else latest + 1})
    trial_id = int(made.inserted_primary_key[0])  # type: ignore[index]  # there is one
    for insert, rows in (*_outcomes(trial_id, trial), *_descriptions(trial_id, trial)):
        connection.execute(insert, rows)
    return trial_id


# statements are made once: to make one takes longer than to execute it
_NEW = sa.insert(models.TrialModel.__table__)
_LOCK = (
    sa.select(models.StudyModel.study_id).where(models.StudyModel.study_id == sa.bindparam("study")).with_for_update()
)
_LATEST = (
    sa.select(models.TrialModel.number)
    .where(models.TrialModel.study_id == sa.bindparam("study"))
    .order_by(models.TrialModel.trial_id.desc())
    .limit(1)
)
_OBJECTIVES = sa.text("SELECT objective FROM study_directions WHERE study_id = :study")
_INSERTS = {
    model: sa.insert(model.__table__)
    for model in (
        models.TrialParamModel,
        models.TrialValueModel,
        models.TrialUserAttributeModel,
        models.TrialSystemAttributeModel,
        models.TrialIntermediateValueModel,
    )
}
_Rows = tuple[sa.Insert, Sequence[Mapping[str, Any]]]


def _outcomes(trial_id: int, trial: FrozenTrial) -> Iterator[_Rows]:
    """Rows of parameters and values, none empty."""
    params = [
        {
            "param_name": name,
            "param_value": axis.to_internal_repr(trial.params[name]),
            "distribution_json": distribution_to_json(axis),
        }
        for name, axis in trial.distributions.items()
    ]
    stored = [models.TrialValueModel.value_to_stored_repr(value) for value in trial.values or ()]
    values = [{"objective": index, "value": value, "value_type": kind} for index, (value, kind) in enumerate(stored)]
    yield from _with_id(trial_id, {models.TrialParamModel: params, models.TrialValueModel: values})


def _descriptions(trial_id: int, trial: FrozenTrial) -> Iterator[_Rows]:
    """Rows of attributes and intermediate values, none empty."""
    user, system = (
        [{"key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
        for attrs in (trial.user_attrs, trial.system_attrs)
    )
    stored = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    steps = [
        {"step": step, **dict(zip(("intermediate_value", "intermediate_value_type"), stored(value), strict=True))}
        for step, value in trial.intermediate_values.items()
    ]
    yield from _with_id(
        trial_id,
        {
            models.TrialUserAttributeModel: user,
            models.TrialSystemAttributeModel: system,
            models.TrialIntermediateValueModel: steps,
        },
    )


def _with_id(trial_id: int, tables: Mapping[type[Any], list[dict[str, Any]]]) -> Iterator[_Rows]:
    for model, rows in tables.items():
        if rows:
            yield _INSERTS[model], [{"trial_id": trial_id, **row} for row in rows]


# what is read: a table, its columns, and the tables that say more of a row: the column they are ordered by, then others
_STUDIES = (
    "studies",
    "study_id, study_name",
    {
        "study_directions": "study_direction_id, direction, objective",
        "study_user_attributes": "study_user_attribute_id, key, value_json",
        "study_system_attributes": "study_system_attribute_id, key, value_json",
    },
)
_TRIALS = (
    "trials",
    "trial_id, number, state, datetime_start, datetime_complete",
    {
        "trial_params": "param_id, param_name, param_value, distribution_json",
        "trial_values": "trial_value_id, objective, value, value_type",
        "trial_user_attributes": "trial_user_attribute_id, key, value_json",
        "trial_system_attributes": "trial_system_attribute_id, key, value_json",
        "trial_intermediate_values": "trial_intermediate_value_id, step, intermediate_value, intermediate_value_type",
    },
)
_Described = tuple[str, str, Mapping[str, str]]
_Row = Sequence[Any]
_FEW = 500  # from so many rows on, a statement has a range of ids instead of a list


def _read(
    engine: sa.Engine, described: _Described, which: str, make: Callable[[_Row, Mapping[str, list[_Row]]], T]
) -> tuple[list[T], dict[int, tuple[_Row, str]]]:
    """What the rows describe; and id -> row and why, of the rows that are damaged.

    Values are taken as the database has them: a conversion by SQLAlchemy that fails would end the reading of all.
    """
    table, columns, _ = described
    key = columns.partition(",")[0]
    made: list[T] = []
    damaged: dict[int, tuple[_Row, str]] = {}
    try:
        rows = list(_fetch(engine, described, which))
    except Exception as error:  # drivers raise many for bytes that are no text, no time, no page of a database
        if not _is_damage(error):
            raise
        rows = []
        with engine.connect() as connection:
            ids = list(connection.scalars(sa.text(f"SELECT {key} FROM {table} {which} ORDER BY {key}")))
        for one in ids:
            try:
                rows += _fetch(engine, described, f"WHERE {key} = {one}")
            except Exception as error:  # as above, and again only damage is kept
                if not _is_damage(error):
                    raise
                damaged[one] = ((one, f"of id {one}"), f"the database cannot read it: {said(error, engine.url)}")
    for row, parts in rows:
        try:
            made.append(make(row, parts))
        except DamagedError as error:
            damaged[row[0]] = (row, str(error))
        except Exception as error:  # a stored value of a kind that nobody thought of
            damaged[row[0]] = (row, f"it cannot be read: {type(error).__name__}: {said(error, engine.url)}")
    return made, damaged


def _fetch(engine: sa.Engine, described: _Described, which: str) -> Iterator[tuple[_Row, Mapping[str, list[_Row]]]]:
    table, columns, parts = described
    key = columns.partition(",")[0]
    with engine.connect() as connection:
        heads = [tuple(row) for row in connection.execute(sa.text(f"SELECT {columns} FROM {table} {which}"))]
        found: dict[int, dict[str, list[_Row]]] = {head[0]: defaultdict(list) for head in heads}
        if not found:
            return iter(())
        few = f"{key} IN ({', '.join(map(str, found))})"
        these = few if len(found) < _FEW else f"{key} BETWEEN {min(found)} AND {max(found)}"
        for part, those in parts.items():
            order = those.partition(",")[0]
            rows = connection.execute(sa.text(f"SELECT {key}, {those} FROM {part} WHERE {these} ORDER BY {order}"))
            for one, _, *values in rows:
                if one in found:
                    found[one][part].append(values)
    return ((head, found[head[0]]) for head in sorted(heads, key=lambda head: int(head[0])))


def _is_damage(error: Exception) -> bool:
    """Whether an error is about what is stored; else it is about the connection."""
    if not isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, OverflowError | TypeError | ValueError)  # Python's, about bytes, numbers and times
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", None) in (None, sqlite3.SQLITE_CORRUPT)
    return isinstance(error, sa.exc.DataError)


def _name_damage(context: sa.ExceptionContext) -> None:
    """Turns Python's error about the bytes of a damaged file into an error of the database."""
    if isinstance(context.original_exception, UnicodeError):
        cause = sqlite3.DatabaseError("a text in it is not UTF-8")
        context.chained_exception = sa.exc.DatabaseError(context.statement, None, cause)


def _study(row: _Row, parts: Mapping[str, list[_Row]]) -> FrozenStudy:
    study_id, name = row
    directions = sorted(parts["study_directions"], key=lambda row: int(row[1]))
    if not isinstance(name, str) or not name:
        raise DamagedError(f"its name is {name!r}")
    if not directions or [objective for _, objective in directions] != list(range(len(directions))):
        raise DamagedError("the directions of its objectives are not complete")
    if unknown := [direction for direction, _ in directions if direction not in StudyDirection.__members__]:
        raise DamagedError(f"the direction of an objective is {unknown[0]!r}")
    system_attrs = _attributes(parts["study_system_attributes"])
    names = system_attrs.get(_SYSTEM_ATTR_METRIC_NAMES, [""] * len(directions))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) != len(directions):
        raise DamagedError("the names of its objectives cannot be read")
    for key, value in system_attrs.items():  # what samplers keep
        is_right = True
        if _PARENTS in key:
            is_right = value is None or (isinstance(value, list) and all(type(trial) is int for trial in value))
        if key.startswith(_QMC):
            is_right = type(value) is int
        if not is_right:
            raise DamagedError(f"its attribute '{key}' is not what a sampler keeps")
    return FrozenStudy(
        study_name=name,
        direction=None,
        directions=[StudyDirection[direction] for direction, _ in directions],
        user_attrs=_attributes(parts["study_user_attributes"]),
        system_attrs=system_attrs,
        study_id=study_id,
    )


def _trial(row: _Row, parts: Mapping[str, list[_Row]]) -> FrozenTrial:
    trial_id, number, state, start, complete = row
    if type(number) is not int or number < 0:
        raise DamagedError(f"its number is {number!r}")
    if state not in TrialState.__members__:
        raise DamagedError(f"its state is {state!r}")
    distributions = {name: _distribution_of(name, stored) for name, _, stored in parts["trial_params"]}
    values = {objective: _number(value, kind) for objective, value, kind in parts["trial_values"]}
    if set(values) != set(range(len(values))):
        raise DamagedError("its values are not complete")
    trial = FrozenTrial(
        number=number,
        state=TrialState[state],
        value=None,
        values=[values[objective] for objective in range(len(values))] or None,
        datetime_start=_local(start),
        datetime_complete=_local(complete),
        params={name: _param(name, distributions[name], value) for name, value, _ in parts["trial_params"]},
        distributions=distributions,
        user_attrs=_attributes(parts["trial_user_attributes"]),
        system_attrs=_attributes(parts["trial_system_attributes"]),
        intermediate_values={
            _step(step): _number(value, kind) for step, value, kind in parts["trial_intermediate_values"]
        },
        trial_id=trial_id,
    )
    _check(trial)
    return trial


def _check(trial: FrozenTrial) -> None:
    """Checks what Optuna and its dashboard take for granted of a trial.

    Raises:
        DamagedError: it is not.
    """
    finished = trial.state.is_finished()
    if trial.state != TrialState.WAITING and trial.datetime_start is None:
        raise DamagedError("it has no time of its start")
    if finished != (trial.datetime_complete is not None):
        raise DamagedError(f"it is {trial.state.name} and has {'no' if finished else 'a'} time of its end")
    if trial.state == TrialState.COMPLETE and (trial.values is None or any(value != value for value in trial.values)):
        raise DamagedError("it is COMPLETE and has no value")
    for key, value in trial.system_attrs.items():
        if key == _CONSTRAINTS_KEY or key.startswith(f"{_CONSTRAINTS_KEY}:"):
            limits = value if key == _CONSTRAINTS_KEY else [value]
            if not isinstance(limits, list) or not all(is_number(limit) for limit in limits):
                raise DamagedError(f"its constraint '{key.partition(':')[2]}' is no number")
        if key.endswith(_GENERATION) and type(value) is not int:
            raise DamagedError(f"its generation is {value!r}")
        if key == _ENQUEUED and not isinstance(value, dict):
            raise DamagedError("what it was enqueued with is no table")
        if key.startswith(ARTIFACTS_ATTR_PREFIX):
            artifact_of(value)


def artifact_of(value: Any) -> dict[str, Any]:
    """What the system attribute of an image says: `artifact_id`, `filename`, `mimetype`.

    Raises:
        DamagedError: it is no text of a table of these, or the id is no name of a file.
    """
    meta = _parsed(value, "an image of it")
    named = [meta.get(key) for key in ("artifact_id", "filename", "mimetype")] if isinstance(meta, dict) else [None]
    # a name, no path: what it names is shown
    if not all(isinstance(name, str) and name for name in named) or set(str(named[0])) & set("/\\\0"):
        raise DamagedError("an image of it has no name")
    if str(named[0]).startswith("."):
        raise DamagedError("an image of it has no name")
    return dict(meta)


def is_number(value: object) -> bool:
    """Whether a value is a number that fits a float; True and False are none."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _parsed(text: object, what: str) -> Any:
    try:
        return json.loads(text)  # type: ignore[arg-type]  # what else it may be, it raises for
    except (TypeError, ValueError, RecursionError):
        raise DamagedError(f"{what} is no JSON") from None


def _attributes(rows: list[_Row]) -> dict[str, Any]:
    if unnamed := [key for key, _ in rows if not isinstance(key, str)]:
        raise DamagedError(f"an attribute of it is called {unnamed[0]!r}")
    return {key: _parsed(value, f"its attribute '{key}'") for key, value in rows}


@functools.lru_cache(maxsize=256)
def _distribution(stored: Any) -> BaseDistribution:
    distribution = json_to_distribution(stored)
    hash(distribution)  # as Optuna will: lists and tables among the choices cannot be hashed
    return distribution


def _distribution_of(name: object, stored: object) -> BaseDistribution:
    try:
        return _distribution(stored)
    except Exception:  # Optuna raises whatever its classes do for odd arguments
        raise DamagedError(f"the distribution of its parameter '{name}' cannot be read") from None


def _param(name: object, distribution: BaseDistribution, value: Any) -> Any:
    odd = not isinstance(name, str) or not is_number(value) or value != value or abs(value) == float("inf")
    # of choices, Optuna itself would take place -1 for the last and 1.5 for the second
    if odd or (isinstance(distribution, CategoricalDistribution) and value not in range(len(distribution.choices))):
        raise DamagedError(f"its parameter '{name}' is {value!r}")
    try:
        shown = distribution.to_external_repr(value)
        distribution.to_internal_repr(shown)  # as samplers and dashboards will
        return shown
    except (OverflowError, ValueError):
        raise DamagedError(f"its parameter '{name}' is {value!r}") from None


def _number(value: Any, kind: object) -> float:
    odd = {"INF_POS": float("inf"), "INF_NEG": float("-inf"), "NAN": float("nan")}
    if kind in odd and value is None:
        return odd[str(kind)]
    if kind != "FINITE" or not is_number(value):
        raise DamagedError(f"a value of it is {value!r}, {kind}")
    return float(value)


def _step(step: Any) -> int:
    if type(step) is not int:
        raise DamagedError(f"a step of its intermediate values is {step!r}")
    return step


def _local(stored: Any) -> datetime | None:
    """A stored time, naive and in UTC, as Optuna has it: naive and local."""
    if stored is None:
        return None
    try:
        time = stored if isinstance(stored, datetime) else datetime.fromisoformat(stored)
        return time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
    except (TypeError, ValueError, OverflowError, OSError):
        raise DamagedError(f"a time of it is {stored!r}") from None


def _utc(local: datetime | None) -> datetime | None:
    return None if local is None else local.astimezone(UTC).replace(tzinfo=None)


# attributes that Optuna keeps of its own


def enqueued(trial: FrozenTrial) -> Mapping[str, Any]:
    """The parameters that a WAITING trial will have, as far as it was enqueued with them."""
    fixed: Mapping[str, Any] = trial.system_attrs.get(_ENQUEUED, trial.params)
    return fixed


def with_one_list_of_constraints(trial: FrozenTrial) -> dict[str, Any]:
    """The system attributes of a trial as they were before Optuna 5 gave each constraint one of its own.

    Both would count; its dashboard reads the list only.
    """
    others = {k: value for k, value in trial.system_attrs.items() if not k.startswith(f"{_CONSTRAINTS_KEY}:")}
    return {**others, _CONSTRAINTS_KEY: list(trial.constraints.values())}


def latest_generation(sampler: BaseSampler, trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """The system attribute that puts a new trial into the latest generation; samplers that are not genetic have none.

    A genetic sampler chooses parents by the generation that is written on a trial. The public `get_trial_generation`
    writes it to a trial that is stored already; ours is written with the other rows.
    """
    if not isinstance(sampler, BaseGASampler):
        return {}
    key = sampler._get_generation_key()
    return {key: max((trial.system_attrs.get(key, 0) for trial in trials), default=0)}


def images_of(trial: FrozenTrial) -> dict[str, dict[str, Any]]:
    """The images of a trial: system attribute -> what it says, see `artifact_of`.

    The public `get_all_artifact_meta` reads each trial anew from its storage.

    Raises:
        DamagedError: one has no name.
    """
    attrs: Mapping[str, Any] = trial.system_attrs
    return {key: artifact_of(value) for key, value in attrs.items() if key.startswith(ARTIFACTS_ATTR_PREFIX)}


def image_attribute(artifact: str, filename: str) -> dict[str, str]:
    """The system attribute by which Optuna finds a PNG that is in the artifact store."""
    meta = ArtifactMeta(artifact_id=artifact, filename=filename, mimetype="image/png", encoding=None)
    return {ARTIFACTS_ATTR_PREFIX + artifact: json.dumps(vars(meta))}


def image_files(engine: sa.Engine, study_id: int) -> set[str]:
    """Names of the files of a study's images, in the folder of its store; what is damaged names none."""
    row = {"study": study_id, "prefix": f"{ARTIFACTS_ATTR_PREFIX}%"}
    with engine.connect() as connection:
        values = connection.execute(_IMAGES, row).scalars().all()
    found = set()
    for value in values:
        with contextlib.suppress(DamagedError, ValueError):
            found.add(str(artifact_of(json.loads(value))["artifact_id"]))
    return found


# whole studies


def rename_studies(engine: sa.Engine, names: Mapping[int, str], attribute: str) -> None:
    """Gives studies other names, in one transaction; also in what a user attribute of theirs, a table, calls `name`."""
    with engine.begin() as connection:
        for study, name in names.items():
            connection.execute(_RENAME, {"study": study, "name": name})
            value = connection.execute(_ATTRIBUTE, {"study": study, "key": attribute}).scalar_one()
            told = json.dumps(json.dumps({**json.loads(json.loads(value)), "name": name}))
            connection.execute(_SET_ATTRIBUTE, {"study": study, "key": attribute, "value": told})


def forget_study(engine: sa.Engine, study_id: int) -> None:
    """Takes out what is noted beside Optuna's tables of a study that is deleted."""
    with engine.begin() as connection:
        for table in ("ddstudy_claims", "ddstudy_measured"):
            connection.execute(sa.text(f"DELETE FROM {table} WHERE study_id = :study"), {"study": study_id})


_IMAGES = sa.text(
    "SELECT DISTINCT value_json FROM trial_system_attributes JOIN trials USING (trial_id) "
    "WHERE study_id = :study AND key LIKE :prefix"
)
_RENAME = sa.text("UPDATE studies SET study_name = :name WHERE study_id = :study")
_ATTRIBUTE = sa.text("SELECT value_json FROM study_user_attributes WHERE study_id = :study AND key = :key")
_SET_ATTRIBUTE = sa.text("UPDATE study_user_attributes SET value_json = :value WHERE study_id = :study AND key = :key")


# counting without reading


def count_marked(engine: sa.Engine, study_id: int, attribute: str) -> int:
    """How many trials of a study have a user attribute."""
    trial, attr = models.TrialModel, models.TrialUserAttributeModel
    of_study = sa.select(sa.func.count()).select_from(attr).join(trial, trial.trial_id == attr.trial_id)
    with engine.connect() as connection:
        count = connection.scalar(of_study.where(trial.study_id == study_id, attr.key == attribute))
    return int(count or 0)


def count_finished(engine: sa.Engine, study_id: int) -> int:
    """How many trials of a study are over, however they ended."""
    trial, over = models.TrialModel, (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    of_study = sa.select(sa.func.count()).where(trial.study_id == study_id, trial.state.in_(over))
    with engine.connect() as connection:
        return int(connection.scalar(of_study) or 0)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space for Optuna, real values under their own names.

    Numbers are on a logarithmic scale where their option says so, so that samplers know their order and every view
    shows true values; the sampler snaps to the listed ones.
    """
    return {axis.name: _distribution_over(axis) for axis in space.axes}


def _distribution_over(axis: Axis) -> BaseDistribution:
    if not axis.is_ordered:
        return CategoricalDistribution(axis.values)
    low, high = axis.values[0], axis.values[-1]
    if axis.option.kind is float:
        return FloatDistribution(float(low), float(high), log=axis.option.log)
    return IntDistribution(int(low), int(high), log=axis.option.log)


class ListedGP(GPSampler):
    """Optuna's GP, which decides between listed candidates instead of searching between all values.

    Attributes:
        candidates: the parameters of each, name -> value.
        looks: most candidates that are judged; of more, so many are drawn at random.
    """

    candidates: Sequence[dict[str, Any]] = ()
    looks = 2000

    # private, but meant to be overridden; the public sampler knows no list, and where several parameters have many
    # values, what it finds is listed by chance only
    def _optimize_acqf(self, acqf: Any, best_params: Any) -> Any:
        listed = list(self.candidates)
        if len(listed) > self.looks:  # by the sampler's generator, so that the seed of the study decides
            listed = [listed[i] for i in self._rng.rng.choice(len(listed), self.looks, replace=False)]
        points = acqf.search_space.get_normalized_params(listed, listed)
        return points[np.argmax(acqf.eval_acqf_no_grad(points))]
