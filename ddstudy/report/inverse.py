"""Studies of inverse tasks -> data: what levels of a task do to the best setting, what judges and stopping rules cost.

The axes of such a study are of two kinds. Those of the task and of the target say what is measured: each combination of
their values is a case, whose scores are compared with each other only. All others are the setting's, which somebody
chooses. As in `tables`, quality counts stable trials only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ddstudy.images.metrics import METRICS
from ddstudy.report.tables import comparable, curves_of_tasks, finished, in_order
from ddstudy.spec.axes import Fit
from ddstudy.study.stopping import NAMES, audit

if TYPE_CHECKING:
    from ddstudy.spec.schema import StudySpec
    from ddstudy.store.records import Record
    from ddstudy.store.study import StudyView

LEVELS = ("task.sigma", "task.acceleration", "task.share", "task.factor")  # that make a task harder or easier
_CHOSEN = ("task.loss_filter", "task.sensitivities", "task.consistency")  # how a measurement is used, not what it is
_REPEATS = ("task.seed",)  # and axes of the target: over these, a setting is averaged


def case_axes(axes: Sequence[str]) -> list[str]:
    """Those of some axes that say what is measured; the others are the setting's."""
    return [axis for axis in axes if axis.startswith(("task.", "target.")) and axis not in _CHOSEN]


def setting_axes(axes: Sequence[str]) -> list[str]:
    """Those of some axes that somebody chooses."""
    return [axis for axis in axes if axis not in case_axes(axes)]


def levels_of(view: StudyView) -> list[str]:
    """The axes of a task over whose values settings are not compared; empty where a study has one value of each."""
    space = view.spec.search_space
    found = [axis for axis in case_axes(view.axes) if axis.startswith("task.") and axis not in _REPEATS]
    return [axis for axis in found if len(space[axis]) > 1]


def by_level(
    trials: pd.DataFrame, level: str, metric: str, axes: Mapping[str, Sequence[Any]], groups: Sequence[str] = ()
) -> pd.DataFrame:
    """The best setting at each level of a task, over all other axes of the setting.

    Settings are averaged over measurement seeds and targets; one that is not stable on all of them does not count.

    Args:
        trials: the table of trials.
        level: axis of the task.
        metric: of image quality, that is best.
        axes: all of the study, with their values.
        groups: other axes of the task, for each of whose values levels are told apart.

    Returns:
        One row per group and level, in their order: these axes, `settings` that were compared, `cases` that each is a
        mean over, the metric, `baseline` (of the measurement itself, NaN where it is not known), `gain` over that, the
        best setting (the axes), and in `ends` the axes on whose first or last listed value it stands, so that a value
        beyond might be better; lists of one or two values have no inside.
    """
    means = _means(trials, level, metric, list(axes), groups)
    setting = setting_axes(list(axes))
    rows = []
    for _, at_level in means.groupby([*groups, level], dropna=False, observed=True, sort=False):
        scores = at_level[metric]
        place = scores.argmin() if METRICS[metric].minimized else scores.argmax()
        best = at_level.iloc[int(place)].to_dict()
        ends = ends_of(best, {axis: axes[axis] for axis in setting})
        gain = best[metric] - best["baseline"]
        rows.append({**best, "settings": len(at_level), "gain": gain, "ends": ", ".join(ends)})
    columns = [*groups, level, "settings", "cases", metric, "baseline", "gain", *setting, "ends"]
    return pd.DataFrame(rows, columns=columns)


def ends_of(setting: Mapping[Any, Any], axes: Mapping[str, Sequence[Any]]) -> list[str]:
    """The axes on whose first or last listed value a setting stands; lists of one or two values have no inside."""
    ordered = [axis for axis, values in axes.items() if len(values) > 2 and not isinstance(values[0], str)]
    return [axis for axis in ordered if setting[axis] in (min(axes[axis]), max(axes[axis]))]


def carried(
    trials: pd.DataFrame, level: str, metric: str, axes: Mapping[str, Sequence[Any]], groups: Sequence[str] = ()
) -> pd.DataFrame:
    """What the best setting of each level is worth at all of them; arguments are those of `by_level`.

    Returns:
        One row per group, level `chosen_at` and level: these, the metric (NaN where it was not measured or is not
        stable), and the setting.
    """
    means, setting = _means(trials, level, metric, list(axes), groups), setting_axes(list(axes))
    best = by_level(trials, level, metric, axes, groups)[[*groups, level, *setting]]
    chosen = best.rename(columns={level: "chosen_at"})
    places = means[[*groups, level]].drop_duplicates()
    wanted = chosen.merge(places, on=list(groups)) if groups else chosen.merge(places, how="cross")
    found = wanted.merge(means[[*groups, level, *setting, metric]], on=[*groups, level, *setting], how="left")
    return found[[*groups, "chosen_at", level, metric, *setting]]


def regret(trials: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """What it costs to choose a setting by a judge that is not the truth, told by the truth, case by case.

    Args:
        trials: the table of trials, with `psnr` and `judge`.
        axes: of the study.

    Returns:
        One row per case with stable trials that have both: the axes of the case, `n` settings, `oracle` (PSNR of the
        truth's best setting, dB), `chosen` (PSNR of the judge's best), their difference `regret` (never negative),
        `spearman` (rank correlation of judge and PSNR over the settings, NaN below three), and the numbers of the two
        trials, `oracle_number` and `chosen_number`. Of equal settings the one with the lowest number.
    """
    cases = case_axes(axes)
    rows = comparable(trials, "judge").dropna(subset=["psnr"]).sort_values("number")
    groups = rows.groupby(cases, dropna=False, observed=True) if cases else [((), rows)]
    found = []
    for case, alike in groups:
        if alike.empty:
            continue
        oracle, chosen = (alike.iloc[int(alike[column].argmax())] for column in ("psnr", "judge"))
        scores = oracle["psnr"], chosen["psnr"], oracle["psnr"] - chosen["psnr"]
        ranks = alike[["judge", "psnr"]].rank()
        known = len(alike) >= 3 and (ranks.nunique() > 1).all()
        spearman = ranks["judge"].corr(ranks["psnr"]) if known else math.nan
        found.append((*case, len(alike), *scores, spearman, oracle["number"], chosen["number"]))
    columns = [*cases, "n", "oracle", "chosen", "regret", "spearman", "oracle_number", "chosen_number"]
    return pd.DataFrame(found, columns=columns)


def stopping(trials: pd.DataFrame, rules: Sequence[str]) -> pd.DataFrame:
    """What the stopping rules of a study cost against the best check of each fit, over all measured trials.

    Args:
        trials: the table of trials.
        rules: of the study; where there are several, they are values of the axis `fit.stop`.

    Returns:
        One row per rule: `rule`, `n` trials, `ended` (how many of them the rule ended before their budget),
        `mean_gap` and `worst_gap` to the oracle in dB, NaN where the truth is not known.
    """
    rows = finished(trials)
    found = []
    for rule in rules:
        ours = rows[rows["fit.stop"].eq(rule)] if len(rules) > 1 else rows
        ended = int(ours["ended_by"].notna().sum()) if "ended_by" in ours else 0
        found.append((rule, len(ours), ended, ours["oracle_gap"].mean(), ours["oracle_gap"].max()))
    return pd.DataFrame(found, columns=["rule", "n", "ended", "mean_gap", "worst_gap"])


def replayed(records: Sequence[Record], spec: StudySpec) -> pd.DataFrame:
    """What the stopping rules that a study did not run would have cost, replayed on its fits that ran to their end.

    Args:
        records: of the study, as in `StudyView.records`.
        spec: its study file, whose patience the rules have.

    Returns:
        The columns of `stopping`, `n` fits instead of trials; without rules that look at what was not recorded.
    """
    run, curves = spec.values_of("fit.stop"), curves_of_tasks(records, spec)
    audits = [audit(curves, name, spec.fit.patience) for name in NAMES if name not in run and "budget" in run]
    rows = [(one.rule, one.fits, one.fits - one.never, one.mean_gap, one.worst_gap) for one in audits if one.fits]
    return pd.DataFrame(rows, columns=["rule", "n", "ended", "mean_gap", "worst_gap"])


def curve_of(records: Sequence[Record], fit: Fit) -> pd.DataFrame:
    """How the ensemble of a fit did at its checks, from the trial that went furthest.

    Returns:
        Columns `iteration` and `score` (dB: by the truth where it is known, else the judge's), ascending; empty where
        no check has a score.
    """
    curves = [record.curve for record in records if record.setting.fit == fit and "score" in record.curve]
    longest = max(curves, key=lambda curve: len(curve["iterations"]), default={"iterations": [], "score": []})
    table = pd.DataFrame({"iteration": longest["iterations"], "score": longest["score"]}).dropna()
    return table.astype({"iteration": int, "score": float}).reset_index(drop=True)


def _means(trials: pd.DataFrame, level: str, metric: str, axes: Sequence[str], groups: Sequence[str]) -> pd.DataFrame:
    """Settings with their mean over repeated cases, those that were stable in as many as any at their level."""
    keys = [*groups, level, *setting_axes(axes)]
    rows = comparable(trials, metric)
    found = rows.groupby(keys, dropna=False, sort=False).agg(
        **{metric: (metric, "mean"), "baseline": ("baseline", "mean"), "cases": (metric, "size")}
    )
    table = found.reset_index()
    if table.empty:
        return table
    whole = table.groupby([*groups, level], dropna=False)["cases"].transform("max")
    table = table[table["cases"] == whole]
    return in_order(table, [*groups, level]).reset_index(drop=True)
