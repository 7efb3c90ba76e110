"""Trials in Optuna's tables, so that the cost of one does not depend on how many there are.

A trial has some fifty rows. Optuna writes them one by one, counts all earlier trials for each new one, and reads every
row of every trial to tell what is done. `TrialStorage` writes the same rows with one statement a table; `Results` reads
only what a driver must know of a trial, and only until it has read that the trial is finished.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import aliased

from ddstudy.settings import AXES, SearchSpace, Setting


class TrialStorage(RDBStorage):
    """Optuna's storage, with a faster way to write what is known of a trial at once."""

    def describe(self, trial_id: int, known: FrozenTrial, mark: str) -> bool:
        """Adds attributes and intermediate values to a RUNNING trial in one transaction; False if it is closed.

        May be called again: a trial that has the system attribute `mark` is left as it is.
        """
        trial, attr, step = models.TrialModel, models.TrialSystemAttributeModel, models.TrialIntermediateValueModel
        marked = sa.select(attr.key).where(attr.trial_id == trial_id, attr.key == mark)
        with self.engine.begin() as connection:
            state = connection.scalar(sa.select(trial.state).where(trial.trial_id == trial_id).with_for_update())
            if state != TrialState.RUNNING:
                return False
            if connection.scalar(marked) is None:
                told = set(connection.scalars(sa.select(step.step).where(step.trial_id == trial_id)))
                known = copy.copy(known)
                known.intermediate_values = {at: it for at, it in known.intermediate_values.items() if at not in told}
                for insert, rows in _descriptions(trial_id, known):
                    connection.execute(insert, rows)
        return True

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """A trial that is finished already is written with one statement a table, in one transaction."""
        if template_trial is None:
            return super().create_new_trial(study_id)
        trial = {
            "study_id": study_id,
            "state": template_trial.state,
            "datetime_start": template_trial.datetime_start,
            "datetime_complete": template_trial.datetime_complete,
        }
        with self.engine.begin() as connection:
            connection.execute(_LOCK, {"study": study_id})  # as Optuna has it: the latest trial is that of any driver
            latest = connection.scalar(_LATEST, {"study": study_id})
            made = connection.execute(_NEW, {**trial, "number": 0 if latest is None else latest + 1})
            trial_id = int(made.inserted_primary_key[0])  # type: ignore[index]  # there is one
            for insert, rows in (*_outcomes(trial_id, template_trial), *_descriptions(trial_id, template_trial)):
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


@dataclass(frozen=True, slots=True)
class Result:
    """What a run must know of a setting that has a result.

    Attributes:
        state: COMPLETE or PRUNED.
        stable: whether it met the study's limits.
        value: of the first objective, None where there is none.
        images_lost: why its images could not be kept, known to who recorded it; empty if they were.
    """

    state: TrialState
    stable: bool
    value: float | None
    images_lost: str = ""


class Results:
    """The results of one study, ours and those of other drivers, each read once.

    Args:
        engine: of the database.
        study_id: Optuna's.
        distributions: of the study's axes.

    Attributes:
        given_up: trials that tell of settings which could not be measured.
    """

    def __init__(self, engine: sa.Engine, study_id: int, distributions: Mapping[str, BaseDistribution]) -> None:
        self._engine = engine
        self._distributions = distributions
        self.given_up: dict[int, Setting] = {}
        self._known: dict[Setting, Result] = {}
        self._finished = 0  # every trial up to this id is finished and read
        trial, value, param = models.TrialModel, models.TrialValueModel, models.TrialParamModel
        attr, mark = models.TrialUserAttributeModel, aliased(models.TrialUserAttributeModel)
        new = (trial.study_id == study_id, trial.trial_id > sa.bindparam("finished"))
        self._of_results = (
            sa.select(trial.trial_id, trial.state, value.value, value.value_type, attr.value_json, mark.value_json)
            .outerjoin(value, (value.trial_id == trial.trial_id) & (value.objective == 0))
            .outerjoin(attr, (attr.trial_id == trial.trial_id) & (attr.key == "stable"))
            .outerjoin(mark, (mark.trial_id == trial.trial_id) & (mark.key == "given_up"))
            .where(*new)
            .order_by(trial.trial_id)
        )
        self._of_params = sa.select(param.trial_id, param.param_name, param.param_value).join(trial).where(*new)

    def add(self, setting: Setting, result: Result) -> None:
        """Notes what this driver has recorded itself."""
        self._known.setdefault(setting, result)

    def read(self) -> dict[Setting, Result]:
        """All that is recorded by now, in the order in which it became known; a live view that only ever grows.

        Drivers add and ask for trials under a lock on the study, so that trials appear in the order of their ids.
        """
        finished, value = {"finished": self._finished}, models.TrialValueModel
        with self._engine.connect() as connection:
            rows = connection.execute(self._of_results, finished).all()
            settings: dict[int, dict[str, Any]] = {}
            if rows:
                for trial_id, name, number in connection.execute(self._of_params, finished):
                    settings.setdefault(trial_id, {})[name] = self._distributions[name].to_external_repr(number)
        unbroken = True
        for trial_id, state, number, kind, stable, given_up in rows:
            unbroken = unbroken and state.is_finished()
            if unbroken:
                self._finished = trial_id
            if state == TrialState.FAIL and given_up == "true":
                self.given_up[trial_id] = Setting(**{axis: settings[trial_id][axis] for axis in AXES})
            if state in (TrialState.COMPLETE, TrialState.PRUNED):
                setting = Setting(**{axis: settings[trial_id][axis] for axis in AXES})
                score = None if kind is None else value.stored_repr_to_value(number, kind)
                self.add(setting, Result(state, stable == "true", score))
        return self._known


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


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The space for Optuna, real values under their own names.

    Ordered axes are integers on a logarithmic scale (blocks: linear), so that samplers know their order and every
    view shows true values; the sampler snaps to the listed ones.
    """
    return {
        "k": IntDistribution(space.k[0], space.k[-1], log=True),
        "s": IntDistribution(space.s[0], space.s[-1], log=True),
        "l": IntDistribution(space.l[0], space.l[-1]),
        "iterations": IntDistribution(space.iterations[0], space.iterations[-1], log=True),
        "noise": CategoricalDistribution(space.noise),
        "tiling": CategoricalDistribution(space.tiling),
    }


def setting_of(trial: FrozenTrial) -> Setting:
    """The setting that a trial measured or is measuring."""
    return Setting(**{axis: trial.params[axis] for axis in AXES})
