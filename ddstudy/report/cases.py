"""A study of several cases -> data: how settings rank over them, what one choice for all costs, and how sure it is.

All of it is made of one matrix, the score of each setting on each case; only settings that are stable over the cases
count, and only cases that all of them were measured on. A regret is what a choice loses against the best that the same
case, or cases, could have had, in the metric and never negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddstudy.images.metrics import METRICS
from ddstudy.report import tables
from ddstudy.report.intervals import mean_of
from ddstudy.spec.options import Value
from ddstudy.spec.schema import CASE
from ddstudy.store.study import StudyView
from ddstudy.study.over_cases import value_over

SETTLED = 0.1  # regret in the metric's unit below which a choice counts as the same
_DRAWS = 500  # of cases, for each number of them
_KINDS = {"file": "subject or file", "slice": "slice", "volume": "volume", "sigma": "noise level", "seed": "seed"}


@dataclass(frozen=True)
class Scores:
    """Scores of settings on cases.

    Attributes:
        settings: one row per setting: its axes, in the order of `values`.
        cases: names of the columns of `values`.
        values: (settings, cases), larger is better: a metric that is minimised comes negated.
        over: score of each setting over all cases, as the study takes it.
        metric: what was measured.
    """

    settings: pd.DataFrame
    cases: list[str]
    values: NDArray[np.float64]
    over: NDArray[np.float64]
    metric: str

    @property
    def common(self) -> int:
        """The row of the setting that is best over all cases."""
        return int(np.argmax(self.over))

    @property
    def sign(self) -> float:
        """What turns a score back into the metric."""
        return -1.0 if METRICS[self.metric].minimized else 1.0


def scores(view: StudyView, metric: str, *, held_out: bool = False) -> Scores | None:
    """The scores of a study's stable settings on its cases; None where there are none.

    Args:
        view: a study with cases.
        metric: of quality.
        held_out: on the held-out cases, those settings that were judged on them.
    """
    if view.by_case is None:
        return None
    axes, cases = list(view.axes), list(view.spec.cases.held_out if held_out else view.spec.cases.chosen_by)
    trials = view.by_case.trials
    measured = trials[trials["state"].isin(["COMPLETE", "PRUNED"])].dropna(subset=[metric])
    wide = measured.pivot_table(index=axes, columns=CASE, values=metric, aggfunc="last", dropna=False, observed=True)
    wide = wide.reindex(columns=cases).dropna()
    stable = view.trials[view.trials["stable"].eq(True)]
    kept = wide.index.isin(pd.MultiIndex.from_frame(stable[axes]))
    if not held_out:
        wide = wide[kept]
    if wide.empty:
        return None
    sign = -1.0 if METRICS[metric].minimized else 1.0
    values = sign * wide.to_numpy(dtype=float)
    over = np.array([value_over(list(row), view.spec.cases) for row in values])
    return Scores(wide.index.to_frame(index=False), cases, values, over, metric)


def by_case(found: Scores) -> pd.DataFrame:
    """What the common choice loses on each case, and how alike the ranks of settings are there.

    Returns:
        One row per case: `case`, `common` and `own`, the scores of the common and of the case's own best setting,
        `regret`, `rank` of the common setting there (1 is best), `correlation` of the settings' scores there with their
        mean over the other cases (Spearman), and the axes of the case's own best setting.
    """
    rows = []
    for place, case in enumerate(found.cases):
        here = found.values[:, place]
        best = int(np.argmax(here))
        others = np.delete(found.values, place, axis=1)
        rows.append(
            {
                "case": case,
                "common": found.sign * here[found.common],
                "own": found.sign * here[best],
                "regret": here[best] - here[found.common],
                "rank": 1 + int((here > here[found.common]).sum()),
                "correlation": _spearman(here, others.mean(axis=1)) if others.size else np.nan,
                **found.settings.iloc[best],
            }
        )
    return pd.DataFrame(rows)


def by_axis(found: Scores) -> pd.DataFrame:
    """How each axis is chosen on each case alone.

    Returns:
        One row per axis with several values: `axis`; `common`, its value in the common choice; `agree`, the share of
        cases whose own best setting has that value; `preferred`, the value with the best mean over all other axes;
        `preferred_agree`, the share of cases that prefer it, too; and `correlation`, the mean over pairs of cases of
        Spearman's correlation of its values' means.
    """
    rows = []
    best = found.values.argmax(axis=0)
    for axis in found.settings:
        column = found.settings[axis].astype(object).where(found.settings[axis].notna(), "does not apply")
        levels = list(column.drop_duplicates())
        if len(levels) < 2:
            continue
        means = np.array([found.values[(column == level).to_numpy()].mean(axis=0) for level in levels])
        preferred = int(means.mean(axis=1).argmax())
        common = column.iloc[found.common]
        rows.append(
            {
                "axis": axis,
                "common": common,
                "agree": float((column.to_numpy()[best] == common).mean()),
                "preferred": levels[preferred],
                "preferred_agree": float((means.argmax(axis=0) == preferred).mean()),
                "correlation": _mean_correlation(means),
            }
        )
    return pd.DataFrame(rows)


def transfer(view: StudyView, found: Scores) -> pd.DataFrame:
    """What is lost when settings are chosen on some cases and used on others that differ in one respect.

    Returns:
        One row per respect in which cases differ, slice, subject, noise level and so on: `differ`; `groups` of cases
        that agree in it; `regret`, the mean over cases of what the best setting of another group loses against the best
        of the case's own group, `low` and `high` of its 95 % interval over cases; `worst`; and `correlation`, the mean
        over pairs of groups of Spearman's correlation of the settings' means.
    """
    own = {name: case.own for name, case in view.spec.cases.by_name.items()}
    paths = {"file": "target.file", "slice": "target.slice", "volume": "target.volume"}
    paths |= {"sigma": "task.sigma", "seed": "task.seed"}
    rows = []
    for respect, words in _KINDS.items():
        levels = [str(own[case].get(paths[respect])) for case in found.cases]
        groups = [np.array([level == one for level in levels]) for one in dict.fromkeys(levels)]
        if len(groups) < 2:
            continue
        means = np.array([found.values[:, group].mean(axis=1) for group in groups]).T
        chosen = means.argmax(axis=0)
        regrets = []
        for place, level in enumerate(levels):
            mine = list(dict.fromkeys(levels)).index(level)
            here = found.values[:, place]
            regrets.append(np.mean([here[chosen[mine]] - here[other] for at, other in enumerate(chosen) if at != mine]))
        mean = mean_of(regrets)
        rows.append(
            {
                "differ": words,
                "groups": len(groups),
                "regret": mean.mean,
                "low": mean.low,
                "high": mean.high,
                "worst": max(regrets),
                "correlation": _mean_correlation(means),
            }
        )
    return pd.DataFrame(rows)


def needed(view: StudyView, found: Scores) -> pd.DataFrame:
    """How sure a choice by fewer cases would have been, by random draws of them.

    Returns:
        One row per number of cases: `cases`; `same`, the share of draws whose choice is that of all cases; `settled`,
        the share whose choice loses at most 0.1 over all cases; `regret`, what it loses on average.
    """
    rng, count = np.random.default_rng(0), len(found.cases)
    rows = []
    for size in range(1, count + 1):
        draws = [rng.permutation(count)[:size] for _ in range(_DRAWS if size < count else 1)]
        chosen = [
            int(np.argmax([value_over(list(row), view.spec.cases) for row in found.values[:, draw]])) for draw in draws
        ]
        regrets = found.over[found.common] - found.over[chosen]
        rows.append(
            {
                "cases": size,
                "same": float(np.mean(np.array(chosen) == found.common)),
                "settled": float((regrets <= SETTLED).mean()),
                "regret": float(regrets.mean()),
            }
        )
    return pd.DataFrame(rows)


def judged(view: StudyView, metric: str) -> pd.DataFrame:
    """The settings that were judged on the held-out cases, the best by the other cases first.

    Returns:
        One row per setting: its axes; `chosen`, its score over the cases that it was chosen by; `held_out`, over those
        held out, with `low` and `high` of the 95 % interval of their mean; and `difference` of the first setting's
        scores minus its own on the same held-out cases, with `difference_low` and `difference_high`.
    """
    found = scores(view, metric, held_out=True)
    if found is None:
        return pd.DataFrame()
    axes, values = list(view.axes), found.sign * found.values
    over = view.trials.dropna(subset=[metric]).drop_duplicates(axes, keep="last")[[*axes, metric]]
    table = found.settings.merge(over.rename(columns={metric: "chosen"}), on=axes, how="left")
    order = (found.sign * table["chosen"]).sort_values(ascending=False, kind="stable", na_position="last").index
    first, rows = values[order[0]], []
    for place in order:
        mean, difference = mean_of(values[place]), mean_of(first - values[place])
        row = {**table.loc[place], "held_out": mean.mean, "low": mean.low, "high": mean.high}
        if place != order[0]:
            row |= {"difference": difference.mean, "difference_low": difference.low, "difference_high": difference.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    ranks = [pd.Series(values).rank().to_numpy() for values in (one, other)]
    if len(one) < 2 or any(np.ptp(each) == 0 for each in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _mean_correlation(columns: NDArray[np.float64]) -> float:
    """Mean over pairs of columns of Spearman's correlation."""
    pairs = [
        _spearman(columns[:, one], columns[:, other])
        for one in range(columns.shape[1])
        for other in range(one + 1, columns.shape[1])
    ]
    found = [each for each in pairs if np.isfinite(each)]
    return float(np.mean(found)) if found else float("nan")


def settings_to_judge(view: StudyView, literature: Sequence[Mapping[str, Value]]) -> pd.DataFrame:
    """The settings that held-out cases are to judge: the best by each objective, the front, and the literature's.

    Args:
        view: a study with cases.
        literature: settings that are published, as axes and values; those that the study does not list are left out.

    Returns:
        Their rows of `StudyView.trials`, the best by the first objective first.
    """
    trials = view.trials[view.trials["stable"].eq(True) & view.trials["state"].eq("COMPLETE")]
    chosen: list[int] = []
    for metric, direction in view.spec.objectives.items():
        ranked = trials.dropna(subset=[metric]).sort_values(metric, ascending=direction == "minimize", kind="stable")
        chosen += list(ranked.index[:1])
    if len(view.spec.objectives) > 1 and len(trials):
        chosen += list(trials.index[tables.pareto_front(trials, view.spec.objectives)])
    for setting in literature:
        same = [view.trials[axis].eq(value) for axis, value in setting.items() if axis in view.trials]
        chosen += list(view.trials.index[np.logical_and.reduce(same)]) if same else []
    return view.trials.loc[list(dict.fromkeys(chosen))]
