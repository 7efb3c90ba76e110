"""A study to write: which settings are measured, asking for more, recording results.

A result is written in one transaction where it can be, and what is done is read from finished trials only. Images are
files beside the database, written before the trial that names them.
"""

from __future__ import annotations

import contextlib
import io
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import FrozenTrial, TrialState, create_trial

from ddstudy.errors import counted
from ddstudy.images.metrics import COLUMNS
from ddstudy.images.volumes import Target, Targets, error_png_bytes, png_bytes
from ddstudy.spec.axes import Setting
from ddstudy.spec.schema import StudySpec
from ddstudy.store.leases import Leases
from ddstudy.store.optuna_rows import (
    TrialStorage,
    count_marked,
    distributions,
    enqueued,
    id_of,
    image_attribute,
)
from ddstudy.store.records import REUSED, VERSION, Outcome, Outcomes, Record, records_of
from ddstudy.store.study import StudyView
from ddstudy.study.evaluate import Check, Result
from ddstudy.study.stability import Limits, cv_percent, reason, violations
from ddstudy.tasks.base import Measurement
from ddstudy.tasks.cases import Case, case_of
from ddstudy.tasks.measurements import picture

_DIVERGED = "diverged"
JUDGED = ("fit_id", "shared", "stable", "reason", "images", REUSED)  # attributes that are added to what was measured


class StudyWriter:
    """A study to write: asks its sampler for settings and records results; `Store.drive` makes it.

    Args:
        study: Optuna's, with its sampler.
        storage: that it is in.
        spec: its study file.
        target: its image, or images.
        files: folder for the images of trials.
        leases: ours on its fits.
        made_by: version and, where it is known, commit of this ddstudy, which trials carry.
        alone: no other driver can be at work on it.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: TrialStorage,
        spec: StudySpec,
        target: Target | Targets,
        files: Path,
        leases: Leases,
        made_by: Mapping[str, str],
        *,
        alone: bool,
    ) -> None:
        self.study = study
        self.spec = spec
        self.target = target
        self.space = spec.search_space
        self.leases = leases
        self._storage = storage
        self._files = files
        self._alone = alone
        self._made_by = made_by
        self._outcomes = Outcomes(storage, id_of(study), spec)
        self._images_of_cases: dict[Case, dict[str, str]] = {}

    def _images_of_case(self, case: Case, target: Target) -> dict[str, str]:
        """Target and measurement, which are written once for all their settings."""
        if case not in self._images_of_cases:
            images = self._upload("target.png", png_bytes(target.image))
            if case.task.kind != "represent":
                images |= self._upload("measurement.png", png_bytes(picture(case.measurement)))
                images |= self._upload("measurement.npz", _packed(case.measurement))
            self._images_of_cases[case] = images
        return self._images_of_cases[case]

    # what is done

    def trials(self) -> list[FrozenTrial]:
        """All trials, without copies: not to be changed."""
        return self.leases.patiently(lambda: self.study.get_trials(deepcopy=False))

    def running(self) -> list[FrozenTrial]:
        """Trials that were asked for, by any driver, and have no result yet."""
        # straight from the database: Optuna's cache would first read all the others
        study, states = id_of(self.study), (TrialState.RUNNING,)
        return self.leases.patiently(lambda: self._storage.get_all_trials(study, deepcopy=False, states=states))

    def measured(self) -> dict[Setting, Outcome]:
        """The settings that have a result by now, whoever measured them: a live view that only grows, at its end."""
        return self.leases.patiently(self._outcomes.read)

    def records(self, settings: Iterable[Setting]) -> list[Record]:
        """The results of settings that `measured` has read, in this order."""
        ids = [self._outcomes.trials[setting.id] for setting in settings]
        trials = self.leases.patiently(lambda: [self._storage.get_trial(trial) for trial in ids])
        return records_of(trials, self.spec)[0]

    def given_up(self) -> dict[int, Setting]:
        """Trials that tell of settings which could not be measured, as far as `measured` has read."""
        return self._outcomes.given_up

    def settle(self) -> None:
        """Corrects which settings are noted to have a result: a copied, edited or damaged study may be wrong about it.

        The notes are read first, so that a result which another driver records meanwhile is among the results.
        """
        noted = self._storage.noted_results(id_of(self.study))
        self.measured()
        results = self._outcomes.trials
        wrong = {setting: trial for setting, trial in noted.items() if results.get(setting) != trial}
        missing = {setting: trial for setting, trial in results.items() if noted.get(setting) != trial}
        if wrong or missing:
            self._storage.note_results(id_of(self.study), wrong, missing)
        if self.spec.search.sampler.startswith("nsga"):
            # in a copied study, parents are trials of the original
            self._storage.forget_parents(id_of(self.study), self.trials())

    @property
    def reused(self) -> int:
        """Results that were imported from other studies."""
        return self.leases.patiently(lambda: count_marked(self._storage.engine, id_of(self.study), REUSED))

    # importing

    def reuse(self, other: StudyView, *, device: str, marks: Mapping[str, Any]) -> int:
        """Imports the results of another study that are results of this one.

        They are judged anew by this study's limits, and carry where they come from as `reused_from`. Left out are
        settings outside of this space, those without a metric that is an objective here, fits that another rule
        stopped early, and, where seconds are an objective, results of another device, or of a fit that others ran
        beside or disturbed.

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
        for record in other.records:
            attrs, theirs = record.attrs, other.spec.search_space
            setting = self.space.setting({**theirs.base, **theirs.params(record.setting)})
            if setting is None or setting.id != record.setting.id or not record.has_result or "pruner" in attrs:
                continue
            stopped = attrs["iterations_done"] < self.spec.iterations_of(setting) and "ended_by" not in attrs
            comparable = not attrs["shared"] and not attrs.get("disturbed") and attrs["device"] == device
            complete = "cv_percent" not in attrs or all(metric in attrs for metric in self.spec.objectives)
            wanted = setting in self.space and setting not in measured and complete
            if not wanted or (stopped and not same_rule) or (timed and not comparable):
                continue
            values = {key: value for key, value in attrs.items() if key not in JUDGED}
            if VERSION not in values:  # left out by the first version; this one has not measured what it imports
                values |= {VERSION: other.facts.get("ddstudy", "unknown"), "commit": other.facts.get("commit", "")}
            curve = {key: list(rows) for key, rows in record.curve.items()}
            result = Result(setting.budget, values, np.empty(0, np.float32), curve, stopped)
            images = {key: json.dumps(meta) for key, meta in record.images.items()}
            self.record(
                setting,
                result,
                shared=attrs["shared"],
                started=record.started,
                marks={**marks, **images},
                origin=attrs.get(REUSED, f"{other.name}#{record.number}"),
            )
            imported += 1
        return imported

    # searching

    def ask(self) -> tuple[optuna.Trial, Setting]:
        """A new trial from the study's sampler, RUNNING until it is recorded.

        Enqueued trials come first; one that is no setting of the study, or has a result, is closed with the reason.
        """
        self.leases.patiently(self._refuse_enqueued)
        trial = self.leases.patiently(lambda: self.study.ask(fixed_distributions=distributions(self.space)))
        setting = self.space.setting(trial.params)
        assert setting is not None
        return trial, setting

    def ask_for(self, setting: Setting) -> None:
        """Has a setting asked for next, before what the sampler proposes."""
        params = self.space.params(setting)
        waiting = self._storage.read_trials(id_of(self.study), (TrialState.WAITING,))[0]
        if params not in [enqueued(trial) for trial in waiting]:
            self.leases.patiently(lambda: self.study.enqueue_trial(params))

    def _refuse_enqueued(self) -> None:
        """Closes enqueued trials whose values are not listed, which Optuna would accept, or that have a result."""
        names = self.space.names
        for trial in self._storage.read_trials(id_of(self.study), (TrialState.WAITING,))[0]:
            fixed = enqueued(trial)
            odd = [axis for axis in fixed if axis in names and not _is_listed(fixed[axis], self.space[axis])]
            if odd:
                why = f"enqueued with {odd[0]} = {fixed[odd[0]]}, which the study does not list"
            elif self.space.setting(fixed) in self.measured():
                why = "its setting has a result already"
            else:
                continue
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # another driver was faster
                if self._storage.set_trial_state_values(id_of(trial), TrialState.RUNNING):
                    self._fail(id_of(trial), why)

    def close_abandoned(self) -> None:
        """Closes RUNNING trials whose driver died as FAIL, with the reason; their settings are free again."""
        leased = self.leases.alive()
        for trial in self.running():
            setting, started = self.space.setting(trial.params), trial.datetime_start or datetime.min
            # a lease is taken right after a trial is asked for: without one it is abandoned only once it is older
            young = not self._alone and datetime.now() - started < timedelta(seconds=self.leases.lease_seconds)
            if young or (setting is not None and setting.fit.id in leased):
                continue
            self._fail(id_of(trial), "the driver of this trial died")

    def fail(self, trial: optuna.Trial | FrozenTrial, why: str, *, given_up: bool = False, log: str = "") -> None:
        """Closes a trial that was asked for and not measured; its setting is free again, if not `given_up`."""
        self._fail(id_of(trial), why, **({"given_up": True} if given_up else {}), **({"log": log} if log else {}))

    def _fail(self, trial_id: int, why: str, **marks: Any) -> None:
        def close() -> None:
            for key, value in {"reason": why, **self._made_by, **marks}.items():
                self._storage.set_trial_user_attr(trial_id, key, value)
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

        # a driver that took this one for dead may have closed the trial meanwhile
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.leases.patiently(close)

    # recording

    def record(
        self,
        setting: Setting,
        result: Result,
        *,
        shared: bool,
        started: datetime,
        trial: optuna.Trial | None = None,
        marks: Mapping[str, Any] | None = None,
        origin: str | None = None,
        steps: Mapping[int, float] | None = None,
    ) -> Outcome | None:
        """Records a result as a trial: COMPLETE, or PRUNED where the study prunes and it is unstable.

        A fit in which a member diverged has no quality, and is PRUNED whether the study prunes or not.

        A setting has one result: the database refuses a second, also from another driver. Images that cannot be
        written are left out, and the trial says so in its attribute `images`.

        Args:
            setting: what was measured.
            result: its numbers and output.
            shared: the fit shared its device, so its seconds are not comparable.
            started: when its fit began.
            trial: the asked trial that this is the answer to; else a new trial is added, in one transaction.
            marks: system attributes that the sampler wants on a new trial.
            origin: study and number of the trial that it was imported from; its images are in `marks`.
            steps: intermediate values, where they are not those of the fit's checks.

        Returns:
            What a run must know of it; None if the setting has a result already.
        """
        table, values = self.spec.stability, result.values
        limits = Limits(table.cv_percent, table.min_psnr, table.max_vif, table.spread_percent)
        diverged = "cv_percent" not in values
        attrs: dict[str, Any] = {**(self._made_by if not origin else {}), **values}
        attrs |= {"fit_id": setting.fit.id, "shared": shared}
        attrs["curve"] = json.dumps(result.curve)
        if diverged:
            attrs |= {"stable": False, "reason": f"a member diverged by iteration {values['iterations_done']}"}
            constraints = {_DIVERGED: 1.0}
        else:
            judged = ("cv_percent", "psnr", "vif") if self.spec.score == "psnr" else ("spread_percent",)
            measured = {name: float(values[name]) for name in judged if name in values}
            why = reason(measured, limits)
            if result.stopped:
                why = f"stopped at {values['iterations_done']}: {why or 'unstable for too long'}"
            if values.get("dead_members"):
                why += f"{', ' * bool(why)}{values['dead_members']} dead members"
            attrs |= {"stable": not why, "reason": why}
            constraints = violations(measured, limits)
            if result.stopped:
                # the rule looks at medians: the number at the stop itself may happen to be below the limit
                constraints[judged[0]] = max(constraints[judged[0]], 1e-9)
        pruned = diverged or (table.prune and not attrs["stable"])
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        objectives = None if diverged else [float(values[metric]) for metric in self.spec.objectives]
        told = dict(steps or {})
        if steps is None and len(self.spec.objectives) == 1 and objectives:
            told = {int(values["iterations_done"]): objectives[0]}  # what Optuna takes as a PRUNED trial's value
        system_attrs = dict(marks or {})
        if self.spec.images and not diverged and result.output.size:  # else they are in `marks`
            try:
                system_attrs |= self._images(setting, result)
            except OSError as error:  # a full disk, a folder that is gone: the numbers are kept
                attrs["images"] = f"not kept: {error}"
        if steps is None and self.spec.search.pruner:
            told = _means(result.curve)
        if origin:
            attrs[REUSED] = origin
        frozen = create_trial(
            state=state,
            values=objectives if state == TrialState.COMPLETE or len(objectives or ()) == 1 else None,
            params=self.space.params(setting),
            distributions=distributions(self.space),
            user_attrs=attrs,
            system_attrs=system_attrs,
            intermediate_values=told,
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
    ) -> Outcome | None:
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
            **self._made_by,
            "fit_id": setting.fit.id,
            "iterations_done": check.iteration,
            "seconds": check.seconds,
            COLUMNS["members"][self.spec.score]: float(np.mean(scores)),
            "cv_percent": cv_percent(scores),
            "pruner": name,
            "reason": f"stopped at {check.iteration} by the {name} pruner: 1DD {np.mean(scores):.1f} dB",
        }
        return self._write_pruned(setting, attrs, float(np.mean(scores)), steps, started, trial, marks)

    def record_pruned_over_cases(
        self,
        setting: Setting,
        values: Mapping[str, Any],
        steps: Mapping[int, float],
        *,
        started: datetime,
        trial: optuna.Trial | None = None,
        marks: Mapping[str, Any] | None = None,
    ) -> Outcome | None:
        """Records that the study's pruner ended a setting before it was measured on all cases.

        Args:
            setting: that is surely worse than the best one.
            values: over the cases that it was measured on.
            steps: the objective on each of these, by the place of the case.
            started: when its first fit began.
            trial: the asked trial that this is the answer to; else a new trial is added.
            marks: system attributes that the sampler wants on a new trial.
        """
        score, count = float(np.mean(list(steps.values()))), counted(len(steps), "case")
        attrs = {
            **self._made_by,
            **{key: value for key, value in values.items() if key not in JUDGED},
            "fit_id": setting.fit.id,
            "pruner": self.spec.search.pruner,
            "reason": f"stopped after {count} by the {self.spec.search.pruner} pruner: {score:.1f} dB",
        }
        return self._write_pruned(setting, attrs, score, steps, started, trial, marks)

    def _write_pruned(
        self,
        setting: Setting,
        attrs: Mapping[str, Any],
        value: float,
        steps: Mapping[int, float],
        started: datetime,
        trial: optuna.Trial | None,
        marks: Mapping[str, Any] | None,
    ) -> Outcome | None:
        frozen = create_trial(
            state=TrialState.PRUNED,
            values=[value],
            params=self.space.params(setting),
            distributions=distributions(self.space),
            user_attrs=dict(attrs),
            system_attrs=dict(marks or {}),
            intermediate_values=dict(steps),
        )
        frozen.datetime_start = started
        return self._write(setting, frozen, trial)

    def _write(self, setting: Setting, frozen: FrozenTrial, trial: optuna.Trial | None) -> Outcome | None:
        """Records a result once, whoever else records the same setting; None if another driver was faster."""
        study = id_of(self.study)

        def write() -> bool:
            if trial is not None:
                described = self._storage.describe_result(study, id_of(trial), frozen, setting)
                if described is False:
                    return False
                # a driver that takes this one for dead may close the trial between the two
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    if described:
                        complete = frozen.state == TrialState.COMPLETE
                        self.study.tell(trial, frozen.values if complete else None, state=frozen.state)
                        return True
            return self._storage.add_result(study, frozen, setting)  # not by Optuna's study, which would keep a copy

        if not self.leases.patiently(write):
            return None
        value, attrs = frozen.values[0] if frozen.values else None, frozen.user_attrs
        outcome = Outcome(frozen.state, bool(attrs.get("stable")), value, attrs.get("images", ""))
        self._outcomes.add(setting, outcome)
        return outcome

    def record_failure(self, setting: Setting, why: str, log: str = "") -> None:
        """Adds a FAIL trial that is marked `given_up`: its fit could not be done, however often it was tried."""
        marks: dict[str, Any] = {**self._made_by, "given_up": True} | ({"log": log} if log else {})
        frozen = create_trial(
            state=TrialState.FAIL,
            params=self.space.params(setting),
            distributions=distributions(self.space),
            user_attrs={"fit_id": setting.fit.id, "reason": why, "stable": False, **marks},
        )
        self.leases.patiently(lambda: self.study.add_trial(frozen))

    def _images(self, setting: Setting, result: Result) -> dict[str, Any]:
        """Writes the images of a trial; the system attributes by which Optuna finds them."""
        case, target = case_of(self.spec, self.target, setting), self.target.of(setting)
        images = {**self._images_of_case(case, target), **self._upload("output.png", png_bytes(result.output))}
        if case.judge.truth is not None:
            images |= self._upload("error.png", error_png_bytes(result.output, case.judge.truth))
        if result.residual is not None:
            images |= self._upload("residual.png", error_png_bytes(result.residual, np.zeros_like(result.residual)))
        return images

    def _upload(self, filename: str, content: bytes) -> dict[str, str]:
        self._files.mkdir(parents=True, exist_ok=True)
        artifact = str(uuid.uuid4())
        try:
            FileSystemArtifactStore(self._files).write(artifact, io.BytesIO(content))
        except OSError:
            (self._files / artifact).unlink(missing_ok=True)  # half an image is of no use, and the disk may be full
            raise
        return image_attribute(artifact, filename)


def _means(curve: dict[str, list[object]]) -> dict[int, float]:
    """Mean PSNR of the members at every check of a curve."""
    steps, members = curve.get("iterations", []), curve.get("psnr_members", [])
    return {int(str(step)): float(np.mean(np.asarray(scores))) for step, scores in zip(steps, members, strict=True)}


def _packed(measurement: Measurement) -> bytes:
    """The numbers that a solver is handed, and those that are held out, as .npz."""
    file, held_out = io.BytesIO(), measurement.held_out
    if held_out is None:
        np.savez_compressed(file, samples=measurement.samples)
    else:
        np.savez_compressed(file, samples=measurement.samples, held_out=held_out)
    return file.getvalue()


def _is_listed(value: object, values: Sequence[object]) -> bool:
    return any(type(value) is type(listed) and value == listed for listed in values)
