"""The store: one database that holds every study, and a folder for the images of its trials.

Optuna's tables hold the studies and trials, `ddstudy.leases` says which driver is fitting what. A database is a SQLite
file, which one driver at a time may write, or PostgreSQL, which many may share. A result is written in one
transaction where it can be, and what is done is read from finished trials only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import sqlalchemy as sa
from numpy.typing import NDArray
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX, ArtifactMeta
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import URL

from ddstudy.errors import UserError
from ddstudy.evaluate import Check, Measurement
from ddstudy.leases import RESULT_OF, AtWork, Claims, at_work, create_table, free_result
from ddstudy.settings import AXES, SearchSpace, Setting
from ddstudy.spec import StudySpec, parse_spec
from ddstudy.stability import cv_percent, reason, violations
from ddstudy.target import Target, error_png_bytes, png_bytes
from ddstudy.trials import Result, Results, TrialStorage, count_finished, count_marked

LEASE_SECONDS = 30.0
URLS = "Valid: sqlite:///FILE.db or postgresql://USER:PASSWORD@HOST/DATABASE."
_DIVERGED = "diverged"
_REUSED = "reused_from"
_JUDGED = ("fit_id", "shared", "curve", "stable", "reason", _REUSED)  # of a trial, added to what was measured
_STARTING = 0x64647374  # key of the advisory lock, "ddst"


@dataclass(frozen=True)
class StudyView:
    """What a finished or running study holds, for reports.

    Attributes:
        name: of the study.
        spec: its study file.
        facts: target, versions, commit and creation time, name -> text.
        trials: one row per finished trial, see `trials_table`.
        checks: one row per member and check of every fit, see `checks_table`.
    """

    name: str
    spec: StudySpec
    facts: dict[str, str]
    trials: pd.DataFrame
    _recorded: Sequence[FrozenTrial] = field(default=(), repr=False)
    _artifacts: Path | None = field(default=None, repr=False)

    @property
    def measured(self) -> int:
        """How many trials have a result: COMPLETE or PRUNED."""
        return int(self.trials["state"].isin(["COMPLETE", "PRUNED"]).sum())

    @cached_property
    def checks(self) -> pd.DataFrame:
        """Made when asked for: it is long."""
        return checks_table(self._recorded)

    @cached_property
    def images(self) -> dict[int, dict[str, Path]]:
        """Files of the images that were kept: number of a trial -> `target.png`, `output.png`, `error.png` -> path.

        Whether a file is still there and whole, `is_whole` says.
        """
        if self._artifacts is None:
            return {}
        found = {}
        for trial in self._recorded:
            metas = [json.loads(v) for k, v in trial.system_attrs.items() if k.startswith(ARTIFACTS_ATTR_PREFIX)]
            found[trial.number] = {meta["filename"]: self._artifacts / meta["artifact_id"] for meta in metas}
        return found

    @property
    def logs(self) -> dict[str, tuple[str, str]]:
        """Of every setting that was given up and has no result: why, and all that is known of its last failure."""
        attrs = {trial.number: trial.user_attrs for trial in self._recorded}
        failed = failed_settings(self.trials)
        rows = failed[["number", "fit_id", "iterations", "reason"]].itertuples(index=False, name=None)
        return {f"{fit}-i{budget}": (why, attrs[number].get("log", "")) for number, fit, budget, why in rows}


class NoStudiesError(UserError):
    """There is nothing to look at yet."""


class Store:
    """A database of studies.

    Args:
        url: `sqlite:///FILE.db` or `postgresql://USER:PASSWORD@HOST/DATABASE`.
        artifacts: folder for images; by default `FILE-artifacts` beside the SQLite file, `ddstudy-artifacts` in the
            current folder for PostgreSQL.
        read_only: open for looking only; the database then refuses every write.
        lease_seconds: how long a claim outlives a driver that died.

    Raises:
        UserError: the URL is not valid, the database cannot be reached or is not one of ours.
    """

    def __init__(
        self, url: str, artifacts: Path | None = None, *, read_only: bool = False, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._url = parse_url(url)
        self.lease_seconds = lease_seconds
        self._stack = contextlib.ExitStack()
        self.driver = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self.is_sqlite = self._url.drivername == "sqlite"
        self.path = Path(self._url.database or "").absolute() if self.is_sqlite else None
        beside = self.path.with_name(f"{self.path.stem}-artifacts") if self.path else Path("ddstudy-artifacts")
        self.artifacts = artifacts or beside
        self.storage = self._open(read_only)

    @property
    def shown_url(self) -> str:
        """The URL without password and query, for people."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    def _open(self, read_only: bool) -> TrialStorage:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if self.path is not None and read_only and not self.path.is_file():
            raise NoStudiesError(
                f"{self.path}: no such database", "Make one with `ddstudy run`, or name one with --store."
            )
        if self.path is not None and not self.path.parent.is_dir():
            raise UserError(f"{self.path.parent}: no such folder", "The folder of the database must exist.")
        try:
            if self.path is not None and not read_only:
                with contextlib.closing(sqlite3.connect(self.path, timeout=60)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")  # readers do not block the driver, nor it them
            connect_args = {"timeout": 60} if self.is_sqlite else {"connect_timeout": 10}
            # whoever only looks may look for days: it keeps no connection between looks
            pool = {"poolclass": sa.NullPool} if read_only else {"pool_pre_ping": True}
            url, options = self._engine_url(read_only), {"connect_args": connect_args, **pool}
            if read_only:
                if not sa.inspect(sa.create_engine(url, **options)).has_table("studies"):
                    raise NoStudiesError(f"{self.shown_url}: no studies yet", "Make one with `ddstudy run`.")
                return TrialStorage(url, engine_kwargs=options, skip_table_creation=True)
            with self._alone():
                storage = TrialStorage(url, engine_kwargs=options)
                create_table(storage.engine)
            if self.is_sqlite:
                _lock_from_the_beginning(storage.engine)
            return storage
        except (optuna.exceptions.StorageInternalError, sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            cause = error.__cause__ or error
            line = str(getattr(cause, "orig", cause)).strip().partition("\n")[0]
            raise UserError(f"{self.shown_url}: cannot be opened: {line}", URLS) from None
        except RuntimeError as error:  # tables of another version of Optuna; its message says what to do
            raise UserError(f"{self.shown_url}: cannot be opened", str(error).strip().partition("\n")[0]) from None

    def _engine_url(self, read_only: bool) -> str:
        url = self._url
        if self.path is not None:
            # as a URI, a path survives spaces, '?' and '%', and the braces that RDBStorage would fill in
            mode = {"mode": "ro" if read_only else "rwc", "uri": "true"}
            if read_only and not os.access(self.path.parent, os.W_OK) and not Path(f"{self.path}-wal").exists():
                mode["immutable"] = "1"  # SQLite would want to make files beside it, which no driver does either
            url = url.set(database=self.path.as_uri(), query={**url.query, **mode})
        elif read_only:
            options = " ".join((*url.normalized_query.get("options", ()), "-c default_transaction_read_only=on"))
            url = url.set(query={**url.query, "options": options})
        return url.render_as_string(hide_password=False)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps the drivers that start together from making the same tables or the same study at once."""
        if self.is_sqlite:
            yield
            return
        engine = sa.create_engine(self._engine_url(read_only=False), poolclass=sa.NullPool)
        with engine.connect() as connection:  # the lock ends with the connection, however that ends
            connection.execute(sa.text(f"SELECT pg_advisory_lock({_STARTING})"))
            yield

    def close(self) -> None:
        """Gives the driver's place back and closes all connections."""
        self._stack.close()
        self.storage.remove_session()
        self.storage.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # looking

    def names(self) -> list[str]:
        """Names of our studies, latest first."""
        studies = [s for s in self.storage.get_all_studies() if "ddstudy:spec" in s.user_attrs]
        return [study.study_name for study in sorted(studies, key=lambda s: -s._study_id)]

    def view(self, name: str | None = None) -> StudyView:
        """A study to look at; without a name the latest.

        Raises:
            UserError: there is no such study.
        """
        names = self.names()
        if not names:
            raise NoStudiesError(f"{self.shown_url}: no studies yet", "Make one with `ddstudy run`.")
        if name is not None and name not in names:
            raise UserError(f"{self.shown_url}: no study '{name}'", f"Valid: {', '.join(names)}.")
        study = optuna.load_study(study_name=name or names[0], storage=self.storage)
        trials = study.get_trials(deepcopy=False)
        return view_of(study.study_name, study.user_attrs, trials, self.artifacts, self.shown_url)

    def finished(self, name: str) -> int:
        """How many trials of a study are finished: a count that is quick in a large study, too."""
        return count_finished(self.storage.engine, self.storage.get_study_id_from_name(name))

    def source(self, name: str, spec: StudySpec, target: Target) -> StudyView:
        """Another study, whose results are results of a study of this spec and target.

        Raises:
            UserError: there is no such study, or its target or what changes its numbers is not the same.
        """
        other = self.view(name)
        theirs, ours = other.spec.fingerprint(), spec.fingerprint()
        study = optuna.load_study(study_name=other.name, storage=self.storage)
        stored = json.loads(study.user_attrs["ddstudy:fingerprint"])
        tables = ("target.", "noise.", "fit.")
        differences = [
            f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here"
            for key in sorted(ours.keys() | theirs.keys())
            if key.startswith(tables) and theirs.get(key) != ours.get(key)
        ]
        if stored["target"] != target.digest:
            differences.append(f"target: {other.facts['target']} there, {target.name} here, other pixels")
        if differences:
            raise UserError(
                f"--reuse {name}: its results are not results of study '{spec.name}': {'; '.join(differences)}",
                "Only the results of the same target, noise and fit options can be reused.",
            )
        return other

    def at_work(self, name: str) -> list[AtWork]:
        """The fits of a study that are being done now, by whichever drivers."""
        (study,) = [study for study in self.storage.get_all_studies() if study.study_name == name]
        return at_work(self.storage.engine, study._study_id)

    def lost_images(self, name: str) -> str:
        """How many images of a study are missing or damaged, in words; empty if all are there."""
        (study,) = [study for study in self.storage.get_all_studies() if study.study_name == name]
        trials = self.storage.get_all_trials(study._study_id, deepcopy=False)
        keys = {key for trial in trials for key in trial.system_attrs if key.startswith(ARTIFACTS_ATTR_PREFIX)}
        lost = [key for key in keys if not is_whole(self.artifacts / key.removeprefix(ARTIFACTS_ATTR_PREFIX))]
        kept = f"{len(lost)} of {len(keys)} images are missing or damaged in {self.artifacts}" if lost else ""
        never = sum("images" in trial.user_attrs for trial in trials)
        return ", ".join(filter(None, [kept, f"{never} trials never had theirs kept" * bool(never)]))

    # driving

    def drive(self, spec: StudySpec, target: Target, sampler: optuna.samplers.BaseSampler) -> Driven:
        """Creates the study or goes on with it, as one of its drivers.

        Raises:
            UserError: the study exists with another spec or target; another driver has the SQLite file.
        """
        with contextlib.ExitStack() as stack:  # undone if anything below is refused
            if self.path is not None:
                stack.enter_context(self._file_lock(self.path))
            with self._alone():
                study = optuna.create_study(
                    study_name=spec.name,
                    storage=self.storage,
                    sampler=sampler,
                    directions=self._directions(spec),
                    load_if_exists=True,
                )
                self._check_same(study, spec, target)
                study = optuna.load_study(study_name=spec.name, storage=self.storage, sampler=sampler)
            with warnings.catch_warnings():  # "experimental" since Optuna 3.2
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(spec.objectives))
            driven = Driven(self, study, spec, target)
            stack.callback(driven.claims.end)
            if self.is_sqlite:
                driven.claims.forget_all()  # we hold the file, so whoever held these is dead
            driven.claims.forgive()
            driven.close_abandoned()
            self._stack.push(stack.pop_all())
        return driven

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
                if self._has_trials(study._study_id):
                    return stored  # Optuna would refuse others before we can say what differs
                self.storage.delete_study(study._study_id)
        return wanted

    def _has_trials(self, study_id: int) -> bool:
        with contextlib.suppress(KeyError):  # Optuna's own count reads every trial
            return self.storage.get_trial_id_from_study_id_trial_number(study_id, 0) is not None
        return False

    def _check_same(self, study: optuna.Study, spec: StudySpec, target: Target) -> None:
        ours = {**spec.fingerprint(), "target": target.digest}
        stored = study.user_attrs.get("ddstudy:fingerprint")
        begun = self._has_trials(study._study_id)
        if stored is None and begun:
            raise UserError(
                f"{self.shown_url}: study '{spec.name}' was not made by ddstudy", "Give the study another --name."
            )
        if not begun:  # nothing depends on it yet: the study may still be changed
            facts = {"target": target.name, "target shape": "x".join(map(str, target.image.shape)), **environment()}
            study.set_user_attr("ddstudy:facts", json.dumps({**facts, "target digest": target.digest[:16]}))
            study.set_user_attr("ddstudy:spec", spec.model_dump_json())
            study.set_user_attr("ddstudy:fingerprint", json.dumps(ours))
            return
        theirs = json.loads(stored or "{}")
        changed = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
        grown = [key for key in changed if key.startswith("space.") and _grows(key, theirs.get(key, []), ours[key])]
        differences = [
            f"{key}: stored {theirs.get(key)!r}, now {ours.get(key)!r}"
            for key in changed
            if key not in grown and key != "target"
        ]
        if ours["target"] != theirs.get("target"):
            was = json.loads(study.user_attrs["ddstudy:facts"])["target"]
            differences.append(f"target: stored {was}, now {target.name}{' with other pixels' * (was == target.name)}")
        if differences:
            raise UserError(
                f"study '{spec.name}' in {self.shown_url} differs: {'; '.join(differences)}",
                "Give the changed study another name with --name (--reuse imports results), or run it as it "
                "was stored; lists may grow, noise and tiling at their end.",
            )
        if grown:
            self._grow(study, spec, [key.removeprefix("space.") for key in grown])
            study.set_user_attr("ddstudy:fingerprint", json.dumps(ours))
        study.set_user_attr("ddstudy:spec", spec.model_dump_json())  # the number of trials may have changed

    def _grow(self, study: optuna.Study, spec: StudySpec, axes: list[str]) -> None:
        """Gives the trials of a study the distributions of longer lists.

        Optuna itself would take the new values, but leaves an axis out of its importances when trials disagree on it.
        """
        claims = Claims(self.storage.engine, study._study_id, self.driver, self.lease_seconds)
        busy = not self.is_sqlite and claims.alive()  # whoever held a claim on a SQLite file is dead
        claims.end()
        if busy:
            raise UserError(
                f"study '{spec.name}' in {self.shown_url}: its lists cannot grow while another driver runs it",
                "Stop the others, start one with the longer lists, then the rest.",
            )
        with self.storage.engine.begin() as connection:
            for axis in axes:
                distribution = distribution_to_json(distributions(spec.space.search_space)[axis])
                connection.execute(
                    sa.text(
                        "UPDATE trial_params SET distribution_json = :new WHERE param_name = :axis "
                        "AND trial_id IN (SELECT trial_id FROM trials WHERE study_id = :study)"
                    ),
                    {"new": distribution, "axis": axis, "study": study._study_id},
                )


class Driven:
    """A study as its driver sees it: what is measured, `claims` on fits, asking, recording."""

    def __init__(self, store: Store, study: optuna.Study, spec: StudySpec, target: Target) -> None:
        self.study = study
        self.spec = spec
        self.target = target
        self.space: SearchSpace = spec.space.search_space
        self._store = store
        self._files = store.artifacts
        self.claims = Claims(store.storage.engine, study._study_id, store.driver, store.lease_seconds)
        self._results = Results(store.storage.engine, study._study_id, distributions(self.space))

    @cached_property
    def _target_image(self) -> tuple[str, dict[str, str]]:
        return self._upload("target.png", png_bytes(self.target.image))

    # what is done

    def trials(self) -> list[FrozenTrial]:
        """All trials, without copies: not to be changed."""
        return self.claims.patiently(lambda: self.study.get_trials(deepcopy=False))

    def running(self) -> list[FrozenTrial]:
        """Trials that were asked for, by any driver, and have no result yet."""
        # straight from the database: Optuna's cache would first read all the others
        storage, study, states = self._store.storage, self.study._study_id, (TrialState.RUNNING,)
        return self.claims.patiently(lambda: storage.get_all_trials(study, deepcopy=False, states=states))

    def measured(self) -> dict[Setting, Result]:
        """The settings that have a result by now, whoever measured them: a live view that only grows, at its end."""
        return self.claims.patiently(self._results.read)

    def given_up(self) -> dict[int, Setting]:
        """Trials that tell of settings which could not be measured, as far as `measured` has read."""
        return self._results.given_up

    @property
    def reused(self) -> int:
        """Results that were imported from other studies."""
        return self.claims.patiently(lambda: count_marked(self._store.storage.engine, self.study._study_id, _REUSED))

    # importing

    def reuse(self, other: StudyView, *, device: str, marks: Mapping[str, Any]) -> int:
        """Imports the results of another study that are results of this one.

        They are judged anew by this study's limits, and carry where they come from as `reused_from`. Left out are
        settings outside of this space, those without a metric that is an objective here, fits that another rule
        stopped early, and, where seconds are an objective, results of another device or of a shared one.

        Args:
            other: what `Store.source` gave.
            device: where this study runs, as its trials name it.
            marks: system attributes that the sampler wants on a new trial.

        Returns:
            How many were imported; what has a result already is not imported again.
        """
        same_rule = other.spec.stability == self.spec.stability
        timed = "seconds" in self.spec.objectives
        measured, imported = self.measured(), 0
        for trial in other._recorded:
            if not _has_result(trial) or "pruner" in trial.user_attrs:
                continue
            setting, attrs = setting_of(trial), trial.user_attrs
            stopped = attrs["iterations_done"] < setting.iterations
            comparable = not attrs["shared"] and attrs["device"] == device
            complete = "psnr" not in attrs or all(metric in attrs for metric in self.spec.objectives)
            wanted = setting in self.space and setting not in measured and complete
            if not wanted or (stopped and not same_rule) or (timed and not comparable):
                continue
            values = {key: value for key, value in attrs.items() if key not in _JUDGED}
            result = Measurement(
                setting.iterations, values, np.empty(0, np.float32), json.loads(attrs["curve"]), stopped
            )
            images = {key: meta for key, meta in trial.system_attrs.items() if key.startswith(ARTIFACTS_ATTR_PREFIX)}
            self.record(
                setting,
                result,
                shared=attrs["shared"],
                started=trial.datetime_start or datetime.now(),
                marks={**marks, **images},
                origin=attrs.get(_REUSED, f"{other.name}#{trial.number}"),
            )
            imported += 1
        return imported

    # searching

    def ask(self) -> tuple[optuna.Trial, Setting]:
        """A new trial from the study's sampler, RUNNING until it is recorded."""
        trial = self.claims.patiently(lambda: self.study.ask(fixed_distributions=distributions(self.space)))
        return trial, Setting(**{axis: trial.params[axis] for axis in AXES})

    def close_abandoned(self) -> None:
        """Closes RUNNING trials whose driver died as FAIL, with the reason; their settings are free again."""
        claimed = self.claims.alive()
        for trial in self.running():
            complete = set(AXES) <= trial.params.keys()
            age = datetime.now() - (trial.datetime_start or datetime.min)
            # a trial is claimed right after it is asked for: without a claim it is abandoned only once it is older
            young = not self._store.is_sqlite and age < timedelta(seconds=self.claims.lease_seconds)
            if young or (complete and setting_of(trial).fit.id in claimed):
                continue
            self._fail(trial._trial_id, "the driver of this trial died")

    def fail(self, trial: optuna.Trial, why: str, *, given_up: bool = False, log: str = "") -> None:
        """Closes a trial that was asked for and not measured; its setting is free again, if not `given_up`."""
        self._fail(trial._trial_id, why, **({"given_up": True} if given_up else {}), **({"log": log} if log else {}))

    def _fail(self, trial_id: int, why: str, **marks: Any) -> None:
        def close() -> None:
            for key, value in {"reason": why, **marks}.items():
                self._store.storage.set_trial_user_attr(trial_id, key, value)
            self._store.storage.set_trial_state_values(trial_id, TrialState.FAIL)

        # whoever thought this driver dead may have closed the trial meanwhile
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.claims.patiently(close)

    # recording

    def record(
        self,
        setting: Setting,
        result: Measurement,
        *,
        shared: bool,
        started: datetime,
        trial: optuna.Trial | None = None,
        marks: Mapping[str, Any] | None = None,
        origin: str | None = None,
    ) -> Result | None:
        """Records a result as a trial: COMPLETE, or PRUNED where the study prunes and it is unstable.

        A setting has one result, whoever records at the same time: the database refuses another. Images that cannot
        be written are left out, and the trial says so in its attribute `images`.

        Args:
            setting: what was measured.
            result: its numbers and output.
            shared: the fit shared its device, so its seconds are not comparable.
            started: when its fit began.
            trial: the asked trial that this is the answer to; else a new trial is added, in one transaction.
            marks: system attributes that the sampler wants on a new trial.
            origin: study and number of the trial that it was imported from; its images are in `marks`.

        Returns:
            What a run must know of it; None if the setting has a result already.
        """
        limits, values = self.spec.stability, result.values
        diverged = "psnr" not in values
        attrs: dict[str, Any] = {**values, "fit_id": setting.fit.id, "shared": shared}
        attrs["curve"] = json.dumps(result.curve)
        if diverged:
            attrs |= {"stable": False, "reason": f"a member diverged by iteration {values['iterations_done']}"}
            constraints = {_DIVERGED: 1.0}
        else:
            scores = (float(values["cv_percent"]), float(values["psnr"]), _optional(values.get("vif")), limits)
            why = reason(*scores)
            if result.stopped:
                why = f"stopped at {values['iterations_done']}: {why or 'unstable for too long'}"
            if values.get("dead_members"):
                why += f"{', ' * bool(why)}{values['dead_members']} dead members"
            attrs |= {"stable": not why, "reason": why}
            constraints = violations(*scores)
            if result.stopped:
                # the rule looks at medians: the CV at the stop itself may happen to be below the limit
                constraints["cv_percent"] = max(constraints["cv_percent"], 1e-9)
        pruned = diverged or (limits.prune and not attrs["stable"])
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        objectives = None if diverged else [float(values[metric]) for metric in self.spec.objectives]
        steps = {}
        if len(self.spec.objectives) == 1 and objectives:
            steps = {int(values["iterations_done"]): objectives[0]}  # what Optuna takes as a PRUNED trial's value
        system_attrs = dict(marks or {})
        if self.spec.images and not diverged and not origin:
            try:
                system_attrs |= self._images(result.output)
            except OSError as error:  # a full disk, a folder that is gone: the numbers are kept
                attrs["images"] = f"not kept: {error}"
        if self.spec.search.pruner:
            steps = _means(result.curve)
        if origin:
            attrs[_REUSED] = origin
        frozen = create_trial(
            state=state,
            values=objectives if state == TrialState.COMPLETE or len(objectives or ()) == 1 else None,
            params={axis: getattr(setting, axis) for axis in AXES},
            distributions=distributions(self.space),
            user_attrs=attrs,
            system_attrs=system_attrs,
            intermediate_values=steps,
            constraints=constraints,
        )
        frozen.datetime_start = started
        return self._write(setting, frozen, trial)

    def record_pruned(
        self,
        setting: Setting,
        check: Check,
        steps: Mapping[int, float],
        *,
        started: datetime,
        trial: optuna.Trial | None = None,
        marks: Mapping[str, Any] | None = None,
    ) -> Result | None:
        """Records that the study's pruner stopped a fit before this setting was reached.

        Args:
            setting: what was not reached.
            check: where the fit was stopped.
            steps: mean PSNR of the members at every check so far.
            started: when the fit began.
            trial: the asked trial that this is the answer to; else a new trial is added.
            marks: system attributes that the sampler wants on a new trial.
        """
        name, scores = self.spec.search.pruner, check.psnr_members
        attrs: dict[str, Any] = {
            "fit_id": setting.fit.id,
            "iterations_done": check.iteration,
            "seconds": check.seconds,
            "psnr_1dd": float(np.mean(scores)),
            "cv_percent": cv_percent(scores),
            "pruner": name,
            "reason": f"stopped at {check.iteration} by the {name} pruner: {np.mean(scores):.1f} dB",
        }
        frozen = create_trial(
            state=TrialState.PRUNED,
            values=[float(np.mean(scores))],
            params={axis: getattr(setting, axis) for axis in AXES},
            distributions=distributions(self.space),
            user_attrs=attrs,
            system_attrs=dict(marks or {}),
            intermediate_values=dict(steps),
        )
        frozen.datetime_start = started
        return self._write(setting, frozen, trial)

    def _write(self, setting: Setting, frozen: FrozenTrial, trial: optuna.Trial | None) -> Result | None:
        """Records a result once, whoever else records the same setting; None if another driver was faster."""
        result_of = f"{self.study._study_id}/{setting.id}"
        frozen.system_attrs[RESULT_OF] = result_of  # by which the database refuses another result of the setting

        def write() -> None:
            if trial is not None and storage.describe(trial._trial_id, frozen, RESULT_OF):
                # whoever thinks this driver dead may close the trial between the two
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    complete = frozen.state == TrialState.COMPLETE
                    self.study.tell(trial, frozen.values if complete else None, state=frozen.state)
                    return
            storage.create_new_trial(self.study._study_id, frozen)  # not by the study, which would keep a copy

        storage = self._store.storage
        try:
            self.claims.patiently(write)
        except sa.exc.IntegrityError:
            if not self.claims.patiently(lambda: free_result(storage.engine, json.dumps(result_of))):
                return None
            self.claims.patiently(write)
        value, attrs = frozen.values[0] if frozen.values else None, frozen.user_attrs
        recorded = Result(frozen.state, bool(attrs.get("stable")), value, attrs.get("images", ""))
        self._results.add(setting, recorded)
        return recorded

    def record_failure(self, setting: Setting, why: str, log: str = "") -> None:
        """Adds a FAIL trial that is marked `given_up`: its fit could not be done, however often it was tried."""
        marks: dict[str, Any] = {"given_up": True} | ({"log": log} if log else {})
        frozen = create_trial(
            state=TrialState.FAIL,
            params={axis: getattr(setting, axis) for axis in AXES},
            distributions=distributions(self.space),
            user_attrs={"fit_id": setting.fit.id, "reason": why, "stable": False, **marks},
        )
        self.claims.patiently(lambda: self.study.add_trial(frozen))

    def _images(self, output: NDArray[np.float32]) -> dict[str, Any]:
        """Writes the images of a trial; the system attributes by which Optuna finds them."""
        files = [
            self._target_image,
            self._upload("output.png", png_bytes(output)),
            self._upload("error.png", error_png_bytes(output, self.target.image)),
        ]
        return {ARTIFACTS_ATTR_PREFIX + artifact: json.dumps(meta) for artifact, meta in files}

    def _upload(self, filename: str, content: bytes) -> tuple[str, dict[str, str]]:
        import io

        self._files.mkdir(parents=True, exist_ok=True)
        artifact = str(uuid.uuid4())
        try:
            FileSystemArtifactStore(self._files).write(artifact, io.BytesIO(content))
        except OSError:
            (self._files / artifact).unlink(missing_ok=True)  # half of an image is worth nothing, least on a full disk
            raise
        meta = ArtifactMeta(artifact_id=artifact, filename=filename, mimetype="image/png", encoding=None)
        return artifact, vars(meta)


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
    engine.dispose()  # the connections that were made before


def is_whole(image: Path) -> bool:
    """Whether a file is there and not empty and, where it begins as a PNG, ends as one."""
    try:
        with image.open("rb") as file:
            begins = file.read(8)
            if begins != b"\x89PNG\r\n\x1a\n":
                return bool(begins)
            file.seek(-8, os.SEEK_END)
            return file.read(4) == b"IEND"
    except OSError:
        return False


def parse_url(url: str) -> URL:
    """A store's URL; `postgresql://` means psycopg 3.

    Raises:
        UserError: not a URL of SQLite or PostgreSQL. The message does not repeat it, it may hold a password.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise UserError("the store is not a database URL", URLS) from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise UserError(f"the store is a {parsed.drivername} URL", URLS)
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError("the store's URL names no SQLite file", URLS)
    if "@" in (parsed.host or ""):
        raise UserError("the store's URL has more than one '@'", "In a password, write %40 for '@'.")
    return parsed


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


def view_of(
    name: str, attrs: Mapping[str, Any], trials: Sequence[FrozenTrial], artifacts: Path | None, where: str
) -> StudyView:
    """A study to look at.

    Args:
        name: of the study.
        attrs: its user attributes.
        trials: its trials, which are not changed.
        artifacts: folder of its images.
        where: the store, for messages.

    Raises:
        UserError: its study file is of another version.
        KeyError: it was not made by ddstudy.
    """
    spec = parse_spec(json.loads(attrs["ddstudy:spec"]), f"{where}: study '{name}' of another version")
    return StudyView(name, spec, dict(json.loads(attrs["ddstudy:facts"])), trials_table(trials), trials, artifacts)


def setting_of(trial: FrozenTrial) -> Setting:
    """The setting that a trial measured or is measuring."""
    return Setting(**{axis: trial.params[axis] for axis in AXES})


def _means(curve: dict[str, list[object]]) -> dict[int, float]:
    """Mean PSNR of the members at every check of a curve."""
    steps, members = curve.get("iterations", []), curve.get("psnr_members", [])
    return {int(str(step)): float(np.mean(np.asarray(scores))) for step, scores in zip(steps, members, strict=True)}


def _grows(key: str, old: list[Any], new: list[Any]) -> bool:
    """Whether results over the old list of an axis stay what they are over the new one.

    Optuna stores a noise or tiling by its place in the list.
    """
    return new[: len(old)] == old if key in ("space.noise", "space.tiling") else set(old) <= set(new)


def _has_result(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def trials_table(trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """Finished trials as a table, one row each, in the order of their numbers.

    Columns: `number`, `state`, the setting, every measurement under its plain name, `stable`, `reason`, `fit_id`,
    `device`, `engine`, `shared`, `started`, `finished`. Numbers that a trial lacks are NaN.
    """
    rows = [
        {
            "number": trial.number,
            "state": trial.state.name,
            **trial.params,
            **{key: value for key, value in trial.user_attrs.items() if key not in ("curve", "log")},
            "started": trial.datetime_start,
            "finished": trial.datetime_complete,
        }
        for trial in trials
        if trial.state.is_finished() and set(AXES) <= trial.params.keys()
    ]
    table = pd.DataFrame(rows)
    for column in (*_COLUMNS, *(c for c in table.columns if c not in _COLUMNS)):
        if column not in table:
            table[column] = pd.Series(dtype="float64" if column in _NUMBERS else "object")
    order = [*_COLUMNS, *(c for c in table.columns if c not in _COLUMNS)]
    table = table[order]
    return table.astype(dict.fromkeys(_NUMBERS, "float64"))


def checks_table(trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """The checks of every fit, from the trial of it that went furthest.

    Columns: `fit_id`, `iteration`, `seconds`, `member` and `psnr` (dB); one row per member and check.
    """
    curves: dict[str, dict[str, list[Any]]] = {}
    for trial in trials:
        if "curve" in trial.user_attrs:
            curve, fit = json.loads(trial.user_attrs["curve"]), trial.user_attrs["fit_id"]
            if len(curve["iterations"]) > len(curves.get(fit, {"iterations": []})["iterations"]):
                curves[fit] = curve
    rows = [
        (fit, iteration, seconds, member, score)
        for fit, curve in curves.items()
        for iteration, seconds, scores in zip(curve["iterations"], curve["seconds"], curve["psnr_members"], strict=True)
        for member, score in enumerate(scores)
    ]
    return pd.DataFrame(rows, columns=["fit_id", "iteration", "seconds", "member", "psnr"])


def failed_settings(trials: pd.DataFrame) -> pd.DataFrame:
    """The rows of `trials_table` whose settings were given up and have no result: the last of each."""
    if "given_up" not in trials:
        return trials.iloc[:0]
    results = set(trials.loc[trials["state"] != "FAIL", list(AXES)].itertuples(index=False, name=None))
    given_up = trials[trials["given_up"].eq(True)].drop_duplicates(list(AXES), keep="last")
    missing = [row not in results for row in given_up[list(AXES)].itertuples(index=False, name=None)]
    return given_up[missing]


_QUALITY = ("psnr", "ssim", "ms_ssim", "vif", "psnr_foreground")
_NUMBERS = (
    *_QUALITY,
    *(f"{name}_1dd" for name in _QUALITY),
    *(f"{name}_tiles" for name in ("psnr", "ssim", "vif")),
    "cv_percent",
    "sd_db",
    "seconds",
    "seconds_per_member",
    "parameters",
    "iterations_done",
    "dead_members",
)
_COLUMNS = (
    "number",
    "state",
    *AXES,
    "fit_id",
    *_NUMBERS,
    "stable",
    "reason",
    "device",
    "engine",
    "shared",
    "started",
    "finished",
)


def environment() -> dict[str, str]:
    """Versions and, in a git checkout, the commit of ddstudy."""
    facts = {name: version(name) for name in ("ddstudy", "torch", "optuna", "numpy", "piq")}
    git = shutil.which("git")
    root = Path(__file__).parent.parent
    if git and (root / ".git").exists():
        done = subprocess.run([git, "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True)
        facts["commit"] = done.stdout.strip()
    return {**facts, "created": datetime.now().isoformat(timespec="seconds")}


def _optional(value: float | int | str | None) -> float | None:
    return None if value is None else float(value)
