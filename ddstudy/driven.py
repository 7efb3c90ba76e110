"""A study as its driver sees it: what is measured, asking for more, and recording it.

A result is written in one transaction where it can be, and what is done is read from finished trials only. Images are
files beside the database, written before the trial that names them.
"""

from __future__ import annotations

import contextlib
import io
import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy as sa
from numpy.typing import NDArray
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX, ArtifactMeta
from optuna.trial import FrozenTrial, TrialState, create_trial

from ddstudy.evaluate import Check, Measurement
from ddstudy.leases import RESULT_OF, Claims, free_result
from ddstudy.settings import AXES, SearchSpace, Setting
from ddstudy.spec import StudySpec
from ddstudy.stability import cv_percent, reason, violations
from ddstudy.target import Target, error_png_bytes, png_bytes
from ddstudy.trials import Result, Results, TrialStorage, count_marked, distributions, setting_of
from ddstudy.view import StudyView

_DIVERGED = "diverged"
_REUSED = "reused_from"
_JUDGED = ("fit_id", "shared", "curve", "stable", "reason", _REUSED)  # of a trial, added to what was measured


class Driven:
    """A study, open for recording; `Store.drive` makes it.

    Args:
        study: Optuna's, with its sampler.
        storage: that it is in.
        spec: its study file.
        target: its image.
        files: folder for the images of trials.
        claims: ours on its fits.
        alone: no other driver can be at work on it.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: TrialStorage,
        spec: StudySpec,
        target: Target,
        files: Path,
        claims: Claims,
        *,
        alone: bool,
    ) -> None:
        self.study = study
        self.spec = spec
        self.target = target
        self.space: SearchSpace = spec.space.search_space
        self.claims = claims
        self._storage = storage
        self._files = files
        self._alone = alone
        self._results = Results(storage.engine, study._study_id, distributions(self.space))

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
        study, states = self.study._study_id, (TrialState.RUNNING,)
        return self.claims.patiently(lambda: self._storage.get_all_trials(study, deepcopy=False, states=states))

    def measured(self) -> dict[Setting, Result]:
        """The settings that have a result by now, whoever measured them: a live view that only grows, at its end."""
        return self.claims.patiently(self._results.read)

    def given_up(self) -> dict[int, Setting]:
        """Trials that tell of settings which could not be measured, as far as `measured` has read."""
        return self._results.given_up

    @property
    def reused(self) -> int:
        """Results that were imported from other studies."""
        return self.claims.patiently(lambda: count_marked(self._storage.engine, self.study._study_id, _REUSED))

    # importing

    def reuse(self, other: StudyView, *, device: str, marks: Mapping[str, Any]) -> int:
        """Imports the results of another study that are results of this one.

        They are judged anew by this study's limits, and carry where they come from as `reused_from`. Left out are
        settings outside of this space, those without a metric that is an objective here, fits that another rule
        stopped early, and, where seconds are an objective, results of another device, or with
        seconds that others had a part in.

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
            comparable = not attrs["shared"] and not attrs.get("disturbed") and attrs["device"] == device
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
            young = not self._alone and age < timedelta(seconds=self.claims.lease_seconds)
            if young or (complete and setting_of(trial).fit.id in claimed):
                continue
            self._fail(trial._trial_id, "the driver of this trial died")

    def fail(self, trial: optuna.Trial, why: str, *, given_up: bool = False, log: str = "") -> None:
        """Closes a trial that was asked for and not measured; its setting is free again, if not `given_up`."""
        self._fail(trial._trial_id, why, **({"given_up": True} if given_up else {}), **({"log": log} if log else {}))

    def _fail(self, trial_id: int, why: str, **marks: Any) -> None:
        def close() -> None:
            for key, value in {"reason": why, **marks}.items():
                self._storage.set_trial_user_attr(trial_id, key, value)
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

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
            if trial is not None and self._storage.describe(trial._trial_id, frozen, RESULT_OF):
                # whoever thinks this driver dead may close the trial between the two
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    complete = frozen.state == TrialState.COMPLETE
                    self.study.tell(trial, frozen.values if complete else None, state=frozen.state)
                    return
            self._storage.create_new_trial(self.study._study_id, frozen)  # not by the study, which would keep a copy

        try:
            self.claims.patiently(write)
        except sa.exc.IntegrityError:
            if not self.claims.patiently(lambda: free_result(self._storage.engine, json.dumps(result_of))):
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
        self._files.mkdir(parents=True, exist_ok=True)
        artifact = str(uuid.uuid4())
        try:
            FileSystemArtifactStore(self._files).write(artifact, io.BytesIO(content))
        except OSError:
            (self._files / artifact).unlink(missing_ok=True)  # half of an image is worth nothing, least on a full disk
            raise
        meta = ArtifactMeta(artifact_id=artifact, filename=filename, mimetype="image/png", encoding=None)
        return artifact, vars(meta)


def _means(curve: dict[str, list[object]]) -> dict[int, float]:
    """Mean PSNR of the members at every check of a curve."""
    steps, members = curve.get("iterations", []), curve.get("psnr_members", [])
    return {int(str(step)): float(np.mean(np.asarray(scores))) for step, scores in zip(steps, members, strict=True)}


def _has_result(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _optional(value: float | int | str | None) -> float | None:
    return None if value is None else float(value)
