"""A study to look at: its facts and its trials as tables, for reports, the notebook and the dashboard.

Nothing here reads or writes a database; `Store.view` makes a `StudyView` of what it has read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial

from ddstudy.errors import UserError
from ddstudy.spec.axes import setting_id
from ddstudy.spec.files import stored_spec
from ddstudy.spec.schema import CASE, StudySpec
from ddstudy.store.optuna_rows import FrozenStudy
from ddstudy.store.records import NUMBERS, Record, records_of
from ddstudy.store.urls import shown_path

_SHOWN = 10  # trials that are named one by one

_OF_RESULTS = (
    "fit_id",
    *NUMBERS,
    "stable",
    "reason",
    "device",
    "engine",
    "shared",
    "disturbed",
    "version",
    "commit",
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
        left_out: finished trials that are in none of these: number -> what is wrong with it.
        records: what the tables are made of.
        by_case: of a study with cases, its study of cases, whose trials are settings on one case.
    """

    name: str
    spec: StudySpec
    facts: dict[str, str]
    trials: pd.DataFrame
    left_out: Mapping[str, str] = field(default_factory=dict, repr=False)
    records: Sequence[Record] = field(default=(), repr=False)
    _artifacts: Path | None = field(default=None, repr=False)
    by_case: StudyView | None = field(default=None, repr=False)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the options that it searches: columns of `trials`, missing there where an option does not apply."""
        return self.spec.search_space.names

    @cached_property
    def each_case(self) -> list[StudyView]:
        """The study as it is on each of its cases alone, without held-out ones; empty where it has none."""
        if self.by_case is None:
            return []
        trials, facts = self.by_case.trials, self.by_case.facts
        targets = json.loads(facts.get("targets", "{}"))
        return [
            replace(
                self,
                name=f"{self.name} {case}",
                spec=self.spec.at({CASE: case}),
                facts={**facts, "target": targets.get(case, case)},
                trials=trials[trials[CASE] == case].drop(columns=CASE).reset_index(drop=True),
                left_out={},
                records=[record for record in self.by_case.records if record.setting[CASE] == case],
                by_case=None,
            )
            for case in self.spec.cases.chosen_by
        ]

    @property
    def measured(self) -> int:
        """How many trials have a result: COMPLETE or PRUNED."""
        return int(self.trials["state"].isin(["COMPLETE", "PRUNED"]).sum())

    @property
    def is_over(self) -> bool:
        """Whether no result is to come unless someone runs it again: each is there, was given up or was damaged."""
        return self.measured + len(failed_settings(self.trials, self.axes)) + len(self.left_out) >= self.spec.trials

    @cached_property
    def checks(self) -> pd.DataFrame:
        """Made when asked for: it is long."""
        return checks_table(self.records)

    @cached_property
    def images(self) -> dict[int, dict[str, Path]]:
        """Files of the images that were kept: number of a trial -> `target.png`, `output.png`, `error.png` -> path.

        Whether a file is still there and whole, `is_whole` says.
        """
        if self._artifacts is None:
            return {}
        folder = self._artifacts
        return {
            record.number: {meta["filename"]: folder / meta["artifact_id"] for meta in record.images.values()}
            for record in self.records
        }

    @property
    def lost_images(self) -> str:
        """How many images are missing or damaged, in words; empty if all are there."""
        files = {path for images in self.images.values() for path in images.values()}
        lost = sum(not is_whole(path) for path in files)
        where = shown_path(self._artifacts)
        kept = f"{lost} of {len(files)} images are missing or damaged in {where}" if lost else ""
        never = sum("images" in record.attrs for record in self.records)
        return ", ".join(filter(None, [kept, f"{never} trials never had theirs kept" * bool(never)]))

    @property
    def complaints(self) -> list[str]:
        """What is left out, a line a trial, of many only the first."""
        lines = [f"{self.name}: trial {number} is left out: {why}" for number, why in self.left_out.items()]
        more = len(lines) - _SHOWN
        return [*lines[:_SHOWN], f"{self.name}: {more:,} trials more are left out"] if more > 0 else lines

    @property
    def logs(self) -> dict[str, tuple[str, str]]:
        """Of every setting that was given up and has no result: why, and all that is known of its last failure."""
        logs = {record.number: record.log for record in self.records}
        failed = failed_settings(self.trials, self.axes)
        rows = failed[["number", "fit_id", "iterations", "reason"]].itertuples(index=False, name=None)
        return {setting_id(fit, budget): (why, logs[number]) for number, fit, budget, why in rows}


def view_of(
    study: FrozenStudy,
    trials: Sequence[FrozenTrial],
    artifacts: Path | None,
    where: str,
    damaged: Mapping[str, str] | None = None,
) -> StudyView:
    """A study to look at.

    Args:
        study: as it is stored.
        trials: its trials, which are not changed.
        artifacts: folder of its images.
        where: the store, for messages.
        damaged: trials that could not be read: number -> why.

    Raises:
        UserError: it cannot be read, as one that was not made by ddstudy.
    """
    source = f"{where}: study '{study.study_name}'"
    spec, _ = stored_spec(study.user_attrs.get("ddstudy:spec", ""), source)
    if len(study.directions) != len(spec.objectives):
        raise UserError(f"{source}: its objectives are not those of its study file", "It was damaged.")
    records, refused = records_of(trials, spec)
    left_out = {**(damaged or {}), **refused}
    return StudyView(
        study.study_name,
        spec,
        facts_of(study, source),
        trials_table(records, spec.search_space.names),
        left_out,
        records,
        artifacts,
    )


def facts_of(study: FrozenStudy, source: str) -> dict[str, str]:
    """What is known of how a study was made, name -> text; the name of its target at least.

    Raises:
        UserError: it cannot be read.
    """
    try:
        facts = {str(key): str(value) for key, value in json.loads(study.user_attrs["ddstudy:facts"]).items()}
        if re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){2}", facts.get("target shape", "1x1x1")):
            return {"target": "an unknown target", **facts}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        pass
    raise UserError(f"{source}: its facts cannot be read", "They were damaged or not stored by ddstudy.")


def trials_table(records: Sequence[Record], axes: Sequence[str]) -> pd.DataFrame:
    """Finished trials as a table, one row each, in the order of their numbers.

    Columns: `number`, `state`, the setting, everything measured under its plain name, `stable`, `reason`, `fit_id`,
    `device`, `engine`, `shared`, `disturbed`, `version`, `commit`, `started`, `finished`. Numbers that a trial lacks
    are NaN.
    """
    rows = [
        {
            **record.attrs,
            "number": record.number,
            "state": record.state.name,
            "iterations": record.setting.budget,  # 0 of priors without weights, so that it can be compared
            **record.setting,
            "started": record.started,
            "finished": record.finished,
        }
        for record in records
    ]
    table = pd.DataFrame(rows)
    known = ("number", "state", *axes, *_OF_RESULTS)
    for column in known:
        if column not in table:
            table[column] = pd.Series(dtype="float64" if column in NUMBERS else "object")
    order = [*known, *(column for column in table.columns if column not in known)]
    table = table[order]
    for column in set(order) - set(known):  # of others' attributes, whose kinds may differ from trial to trial
        if table[column].dropna().map(_kind).nunique() > 1:
            table[column] = table[column].map(str, na_action="ignore")
    return table.astype(dict.fromkeys(NUMBERS, "float64"))


def _kind(value: object) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def checks_table(records: Sequence[Record]) -> pd.DataFrame:
    """The checks of every fit, from the trial of it that went furthest.

    Columns: `fit_id`, `iteration`, `seconds`, `member` and `psnr` (dB); one row per member and check.
    """
    curves: dict[str, Mapping[str, list[Any]]] = {}
    for record in records:
        fit = record.setting.fit.id
        if record.curve and len(record.curve["iterations"]) > len(curves.get(fit, {"iterations": []})["iterations"]):
            curves[fit] = record.curve
    rows = [
        (fit, iteration, seconds, member, score)
        for fit, curve in curves.items()
        for iteration, seconds, scores in zip(curve["iterations"], curve["seconds"], curve["psnr_members"], strict=True)
        for member, score in enumerate(scores)
    ]
    return pd.DataFrame(rows, columns=["fit_id", "iteration", "seconds", "member", "psnr"])


def failed_settings(trials: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """The rows of `trials_table` whose settings were given up and have no result: the last of each."""
    if "given_up" not in trials:
        return trials.iloc[:0]
    values = trials[list(axes)].astype(object)
    settings = pd.Series(
        list(values.where(values.notna(), None).itertuples(index=False, name=None)), index=trials.index, dtype=object
    )
    results = set(settings[trials["state"] != "FAIL"])
    given_up = settings[trials["given_up"].eq(True)].drop_duplicates(keep="last")
    return trials.loc[[place for place, setting in given_up.items() if setting not in results]]


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
