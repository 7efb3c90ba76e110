"""Trials as ddstudy has them: the one place that reads the attributes of a trial, and refuses what is no trial of ours.

A store may hold anything: trials that were edited by hand, copied, enqueued or added by Optuna. `records_of` takes what
is sound and says of the rest what is wrong with it. All others - tables, reports, samplers, imports - take its records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ddstudy.images.metrics import COLUMNS, QUALITY
from ddstudy.spec.axes import Setting
from ddstudy.spec.schema import StudySpec
from ddstudy.store.optuna_rows import DamagedError, TrialStorage, id_of, images_of, is_number

VERSION = "version"  # attribute of a trial: the version of ddstudy that measured it; the first ones left none
REUSED = "reused_from"  # study and number of the trial that a result was imported from
_OF_ORACLE = ("oracle_iteration", "oracle_psnr", "oracle_gap")
_OF_TASKS = ("baseline", "chosen_iteration", *_OF_ORACLE)
NUMBERS = (
    *(column for columns in COLUMNS.values() for column in columns.values()),
    "sd_db",
    "seconds_per_member",
    "iterations_done",
    "dead_members",
    "waited_percent",
    *_OF_TASKS,
)
_TEXTS = ("fit_id", "reason", "device", "engine", "pruner", "images", "log", "ended_by", REUSED, VERSION, "commit")
_FLAGS = ("stable", "shared", "disturbed", "given_up")
_OF_ALL_RESULTS = ("fit_id", "iterations_done", "seconds")
_OF_WHOLE_RESULTS = ("stable", "shared", "device", "curve")  # that no pruner stopped
_RESULTS = (TrialState.COMPLETE, TrialState.PRUNED)
_OF_CHECKS = ("spread", "loss", "held_out", "score", "wmv", "emv")  # what the curve of a task has besides


def never_measured(spec: StudySpec) -> set[str]:
    """Those of `NUMBERS` that no trial of a study can have."""
    of_truth = {column for columns in COLUMNS.values() for metric, column in columns.items() if metric in QUALITY}
    of_tasks = {"judge", COLUMNS["members"]["judge"], "spread_percent", *_OF_TASKS}
    return {
        *(() if spec.knows_truth else (*of_truth, *_OF_ORACLE)),
        *(() if spec.is_task else of_tasks),
    }


@dataclass(frozen=True)
class Record:
    """A finished trial of ours.

    Attributes:
        number: Optuna's, in its study.
        trial_id: Optuna's, in its store.
        state: COMPLETE, PRUNED or FAIL.
        setting: what was to be measured.
        attrs: everything measured and judged under its plain name, without `curve` and `log`.
        value: of the first objective, None where there is none.
        constraints: name -> how far it is beyond its limit.
        curve: the checks of its fit, `iterations`, `seconds` and `psnr_members`, and of a task what its stopping rules
            look at: a number for each check, None where it has none; empty where none is kept.
        log: all that is known of a failure.
        images: system attribute -> what it says of the image, see `ddstudy.store.optuna_rows.artifact_of`.
        started: when, naive local time; in a trial of the first version, of the machine that ran it.
        finished: the same of its end.
    """

    number: int
    trial_id: int
    state: TrialState
    setting: Setting
    attrs: Mapping[str, Any]
    value: float | None
    constraints: Mapping[str, float]
    curve: Mapping[str, list[Any]]
    log: str
    images: Mapping[str, Mapping[str, Any]]
    started: datetime
    finished: datetime

    @property
    def has_result(self) -> bool:
        """COMPLETE or PRUNED."""
        return self.state in _RESULTS


def records_of(trials: Sequence[FrozenTrial], spec: StudySpec) -> tuple[list[Record], dict[str, str]]:
    """The finished trials of a study that are ours.

    Args:
        trials: of the study; they are not changed.
        spec: the study.

    Returns:
        The records in the order of the trials; and number -> why, of the finished trials that are not ours. A FAIL
        without all parameters is neither: its driver died before it had asked for them.
    """
    records: dict[int, Record] = {}
    refused: dict[str, str] = {}
    asked: dict[str, int] = {}  # fit -> the most iterations that were asked for so far
    for trial in trials:
        setting = spec.search_space.setting(trial.params)
        passed = False
        if setting is not None:
            # a search asks for the last budget of a fit, then adds those that the fit passes on its way
            passed = setting.budget < asked.get(setting.fit.id, 0)
            asked[setting.fit.id] = max(asked.get(setting.fit.id, 0), setting.budget)
        failed_early = trial.state == TrialState.FAIL and not set(spec.search_space.names) <= trial.params.keys()
        if not trial.state.is_finished() or failed_early:
            continue
        added = passed or spec.search.sampler == "grid" or REUSED in trial.user_attrs
        try:
            if trial.number in records:
                raise DamagedError("another trial has its number")
            records[trial.number] = _record(trial, setting, spec, added=added)
        except DamagedError as error:
            refused[str(trial.number)] = str(error)
    return list(records.values()), refused


def is_sound(trial: FrozenTrial, spec: StudySpec) -> bool:
    """Whether a trial of a study is ours: finished with a record, or not finished."""
    return not records_of([trial], spec)[1]


def _record(trial: FrozenTrial, setting: Setting | None, spec: StudySpec, *, added: bool) -> Record:
    attrs, has_result = trial.user_attrs, trial.state in _RESULTS
    if setting is None:
        raise DamagedError("its parameters are not those of a setting")
    if has_result:
        if outside := [axis for axis, value in setting.items() if value not in spec.search_space[axis]]:
            raise DamagedError(f"{outside[0]} = {setting[outside[0]]} is not in the lists of the study")
        wanted = _OF_ALL_RESULTS + _OF_WHOLE_RESULTS * ("pruner" not in attrs)
        if missing := [key for key in wanted if key not in attrs]:
            raise DamagedError(f"it is no result of ddstudy: it has no attribute '{missing[0]}'")
    kinds = ((NUMBERS, is_number, "number"), (_TEXTS, _is_text, "text"), (_FLAGS, _is_flag, "flag"))
    for keys, is_right, what in kinds:
        if odd := [key for key in keys if key in attrs and not is_right(attrs[key])]:
            raise DamagedError(f"its attribute '{odd[0]}' is no {what}")
    if has_result and attrs["fit_id"] != setting.fit.id:
        raise DamagedError("its attribute 'fit_id' is of another fit")
    if trial.state == TrialState.COMPLETE:
        if spec.score not in attrs or "pruner" in attrs:
            raise DamagedError(f"it is COMPLETE and no result of ddstudy: it has no attribute '{spec.score}'")
        if len(trial.values) != len(spec.objectives):
            raise DamagedError(f"it has {len(trial.values)} values, the study {len(spec.objectives)} objectives")
    if trial.datetime_start is None or trial.datetime_complete is None:
        raise DamagedError("it has no times")
    # the first version wrote what it added in local time; what it asked for and all of later ones is in UTC
    time = _as_stored if added and has_result and VERSION not in attrs else _as_read
    images = images_of(trial)
    return Record(
        trial.number,
        id_of(trial),
        trial.state,
        setting,
        {key: _plain(value) for key, value in attrs.items() if key not in ("curve", "log")},
        trial.values[0] if trial.values else None,
        trial.constraints,
        _curve(attrs["curve"]) if "curve" in attrs else {},
        attrs.get("log", ""),
        images,
        time(trial.datetime_start),
        time(trial.datetime_complete),
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A number, text or flag for a table; any other JSON, which others may have added to a trial, as text."""
    return value if value is None or isinstance(value, str | bool) or is_number(value) else json.dumps(value)


def _is_of_checks(values: object, checks: int) -> bool:
    """Whether there is a number for each check, or None; what is damaged is left out, since a result does without."""
    is_long = isinstance(values, list) and len(values) == checks
    return is_long and all(value is None or is_number(value) for value in values)  # type: ignore[attr-defined]


def _curve(text: object) -> dict[str, list[Any]]:
    """The checks of a fit.

    Raises:
        DamagedError: they are not what a fit tells.
    """
    try:
        curve = json.loads(text)  # type: ignore[arg-type]  # what else it may be, it raises for
        iterations, seconds, members = (curve[key] for key in ("iterations", "seconds", "psnr_members"))
        rows = [(*row, *scores) for *row, scores in zip(iterations, seconds, members, strict=True)]
        is_sound = len({len(row) for row in rows}) <= 1 and all(is_number(value) for row in rows for value in row)
        if is_sound and all(type(iteration) is int for iteration in iterations):
            known = {"iterations": iterations, "seconds": seconds, "psnr_members": members}
            return known | {key: curve[key] for key in _OF_CHECKS if _is_of_checks(curve.get(key), len(iterations))}
    except (KeyError, RecursionError, TypeError, ValueError):
        pass
    raise DamagedError("its attribute 'curve' is not that of a fit")


def _as_read(time: datetime) -> datetime:
    return time


def _as_stored(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(tzinfo=None)


@dataclass(frozen=True, slots=True)
class Outcome:
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


class Outcomes:
    """What came of the settings of one study, whichever driver measured them; each trial is read once.

    Args:
        storage: that holds it.
        study_id: Optuna's.
        spec: the study.

    Attributes:
        given_up: trials that tell of settings which could not be measured.
        trials: identity of a setting that has a result -> id of the trial that is it.
    """

    def __init__(self, storage: TrialStorage, study_id: int, spec: StudySpec) -> None:
        self._storage = storage
        self._study_id = study_id
        self._spec = spec
        self.given_up: dict[int, Setting] = {}
        self.trials: dict[str, int] = {}
        self._known: dict[Setting, Outcome] = {}
        self._finished = -1  # every trial up to this id is finished and read

    def add(self, setting: Setting, outcome: Outcome) -> None:
        """Notes what this driver has recorded itself."""
        self._known.setdefault(setting, outcome)

    def read(self) -> dict[Setting, Outcome]:
        """All that is recorded by now, in the order in which it became known; a live view that only ever grows.

        Drivers add and ask for trials under a lock on the study, so that trials appear in the order of their ids.
        """
        trials, _ = self._storage.read_trials(self._study_id, after=self._finished)
        for trial in trials:
            if not trial.state.is_finished():
                break
            self._finished = id_of(trial)
        for record in records_of(trials, self._spec)[0]:
            if record.attrs.get("given_up"):
                self.given_up[record.trial_id] = record.setting
            if record.has_result:
                self.trials.setdefault(record.setting.id, record.trial_id)
                self.add(record.setting, Outcome(record.state, record.attrs.get("stable", False), record.value))
        return self._known
