"""A study to look at: its facts and its trials as tables, for reports, the notebook and the dashboard.

Nothing here reads or writes a database; `Store.view` makes a `StudyView` of what it has read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX
from optuna.trial import FrozenTrial

from ddstudy.settings import AXES
from ddstudy.spec import StudySpec, parse_spec

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
    "waited_percent",
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
    "disturbed",
    "started",
    "finished",
)


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


def trials_table(trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """Finished trials as a table, one row each, in the order of their numbers.

    Columns: `number`, `state`, the setting, every measurement under its plain name, `stable`, `reason`, `fit_id`,
    `device`, `engine`, `shared`, `disturbed`, `started`, `finished`. Numbers that a trial lacks are NaN.
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
