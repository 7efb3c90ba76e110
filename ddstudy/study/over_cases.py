"""From cases to settings: what a setting is over all the cases that a study chooses by.

A study of cases is two studies of Optuna's. In one, named `NAME.cases`, a trial is a setting on one case: what is
fitted, recorded exactly once, resumed and spread over workers as any grid is. In the other, `NAME`, a trial is a
setting, with every number taken over its cases; samplers, Pareto fronts and reports look at that one. It is written
when the last case of a setting is there, by whichever driver finds that first, and can be made again from the cases.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from ddstudy.images.metrics import COLUMNS, METRICS
from ddstudy.spec.axes import Fit, Setting
from ddstudy.spec.cases import CasesSpec
from ddstudy.spec.schema import CASE, on, setting_of
from ddstudy.store.records import Record
from ddstudy.store.writer import JUDGED, StudyWriter
from ddstudy.study.evaluate import Result
from ddstudy.study.samplers import marks

_MEANS = {
    "seconds",
    "seconds_per_member",
    "iterations_done",
    "parameters",
    "waited_percent",
    "chosen_iteration",
    "oracle_iteration",
    "baseline",
}
_SMALLER_IS_BETTER = {
    "sd_db",
    "oracle_gap",
    *(
        column
        for columns in COLUMNS.values()
        for metric, column in columns.items()
        if METRICS[metric].better == "minimize"
    ),
}


def value_over(values: Sequence[float], how: CasesSpec, *, smaller_is_better: bool = False) -> float:
    """A number of a setting over its cases: their mean, the worst, or a quantile counted from the worst.

    Args:
        values: one of each case.
        how: of the study.
        smaller_is_better: of this number.
    """
    if how.objective == "mean":
        return float(np.mean(values))
    quantile = 0.0 if how.objective == "worst" else how.quantile
    return float(np.quantile(values, 1 - quantile if smaller_is_better else quantile))


def values_over(results: Sequence[Mapping[str, Any]], how: CasesSpec) -> dict[str, float | int | str]:
    """What is recorded of a setting, from what was measured on each case.

    What tells of quality is taken as the study says; time, iterations and the number of weights as means. A number
    that one case lacks is left out.

    Args:
        results: the attributes of the trial of each case.
        how: of the study.
    """
    found: dict[str, float | int | str] = {}
    for name in results[0]:
        values = [result.get(name) for result in results]
        if any(value is None for value in values):
            continue
        if name == "dead_members":
            found[name] = sum(values)  # type: ignore[arg-type]  # numbers
        elif any(isinstance(value, bool) for value in values):
            found[name] = any(values)
        elif all(isinstance(value, int | float) for value in values):
            if name in _MEANS:
                mean = float(np.mean(values))  # type: ignore[arg-type]
                found[name] = int(mean) if mean.is_integer() else mean
            else:
                found[name] = value_over(values, how, smaller_is_better=name in _SMALLER_IS_BETTER)  # type: ignore[arg-type]
        else:
            found[name] = ", ".join(dict.fromkeys(map(str, filter(None, values))))
    return found


def curve_over(curves: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, list[object]]:
    """The checks that all cases have, scores and seconds of each member as their mean over cases."""
    iterations = [
        step for step in curves[0].get("iterations", []) if all(step in c.get("iterations", []) for c in curves)
    ]
    places = [[list(curve["iterations"]).index(step) for step in iterations] for curve in curves]
    rows: dict[str, list[object]] = {"iterations": list(iterations)}
    for name in ("seconds", "psnr_members"):
        each = [[curve[name][place] for place in where] for curve, where in zip(curves, places, strict=True)]
        rows[name] = np.mean(each, axis=0).tolist() if iterations else []
    return rows


class OverCases:
    """A study whose settings are measured on several cases, to write; what is fitted goes to its study of cases.

    Args:
        over: the study whose trials are settings.
        by_case: the study whose trials are settings on cases.

    Attributes:
        asked: settings that the sampler proposed and that are on their way through the cases -> their trials.
    """

    def __init__(self, over: StudyWriter, by_case: StudyWriter) -> None:
        self.over = over
        self.by_case = by_case
        self.cases = over.spec.cases
        self.asked: dict[Setting, optuna.Trial] = {}

    @property
    def pruner(self) -> optuna.pruners.BasePruner | None:
        """What ends a setting before all its cases were measured."""
        return self.over.study.pruner if self.over.spec.search.pruner else None

    def settle(self) -> list[Setting]:
        """Records every setting whose cases are all there.

        Returns:
            Settings of which some cases are there: the largest budget of each fit.
        """
        done, over = self.by_case.measured(), self.over.measured()
        begun: dict[Fit, Setting] = {}
        for setting in dict.fromkeys(map(setting_of, done)):
            if setting in over or setting not in self.over.space or self.complete(setting):
                continue
            if any(on(setting, case) in done for case in self.cases.chosen_by):
                begun[setting.fit] = max(setting, begun.get(setting.fit, setting), key=lambda each: each.budget)
        return list(begun.values())

    def complete(self, setting: Setting) -> bool:
        """Records a setting if it has a result on each case, and none itself; whether it is recorded."""
        done = self.by_case.measured()
        if setting in self.over.measured():
            return True
        if not all(on(setting, case) in done for case in self.cases.chosen_by):
            return False
        records = self.by_case.records([on(setting, case) for case in self.cases.chosen_by])
        if len(records) < len(self.cases.chosen_by):  # one of them was damaged since
            return False
        diverged = any("cv_percent" not in record.attrs for record in records)
        values = values_over([record.attrs for record in records], self.cases)
        if diverged:
            values.pop("cv_percent", None)
            values["iterations_done"] = min(int(record.attrs["iterations_done"]) for record in records)
        whole = self.by_case.spec.iterations_of
        stopped = any(
            record.attrs["iterations_done"] < whole(record.setting) and "ended_by" not in record.attrs
            for record in records
        )
        result = Result(
            setting.budget,
            {key: value for key, value in values.items() if key not in JUDGED},
            np.empty(0, np.float32),
            curve_over([record.curve for record in records]),
            stopped,
        )
        shown = {key: json.dumps(meta) for key, meta in records[0].images.items()}
        self.over.record(
            setting,
            result,
            shared=any(record.attrs["shared"] for record in records),
            started=min(record.started for record in records),
            trial=(asked := self.asked.pop(setting, None)),
            marks=shown | ({} if asked else marks(self.over)),
            steps=self.steps(records),
        )
        return True

    def steps(self, records: Sequence[Record]) -> dict[int, float]:
        """The first objective on each case, by the place of the case: what the pruner compares settings by."""
        metric, places = next(iter(self.over.spec.objectives)), self.cases.chosen_by
        return {
            places.index(record.setting[CASE]): float(record.attrs[metric])
            for record in records
            if metric in record.attrs
        }

    def prune(self, fit: Fit, budgets: Sequence[int]) -> str:
        """Ends a fit whose every budget is surely worse than the best setting on the cases that it was measured on.

        Args:
            fit: that was measured on some cases.
            budgets: of it, the last of which was asked for.

        Returns:
            A line for the log; empty if it goes on.
        """
        pruner = self.pruner
        if pruner is None:
            return ""
        done = self.by_case.measured()
        measured = {
            budget: self.by_case.records(
                [on(fit.at(budget), case) for case in self.cases.chosen_by if on(fit.at(budget), case) in done]
            )
            for budget in budgets
        }
        for records in measured.values():
            trial = create_trial(state=TrialState.RUNNING, intermediate_values=self.steps(records))
            with warnings.catch_warnings():  # of Wilcoxon, about a best trial with fewer cases
                warnings.simplefilter("ignore")
                if not records or not pruner.prune(self.over.study, trial):
                    return ""
        for budget, records in measured.items():
            setting = fit.at(budget)
            self.over.record_pruned_over_cases(
                setting,
                values_over([record.attrs for record in records], self.cases),
                self.steps(records),
                started=min(record.started for record in records),
                trial=(asked := self.asked.pop(setting, None)),
                marks={} if asked else marks(self.over),
            )
        count = len(next(iter(measured.values())))
        return f"{fit.id}: PRUNED after {count} of {len(self.cases.chosen_by)} cases by {self.over.spec.search.pruner}"
