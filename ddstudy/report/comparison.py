"""Several studies -> data: the same settings on different slices, subjects, devices or versions, side by side.

Only settings that two studies both measured are compared with each other, and by the rules of `tables`: quality counts
stable trials only.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from ddstudy.images.metrics import METRICS
from ddstudy.report.tables import comparable, widened
from ddstudy.report.words import axes_of
from ddstudy.spec.axes import SERVED

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


def matched(views: Sequence[StudyView], trials: Callable[[pd.DataFrame], pd.DataFrame], metric: str) -> pd.DataFrame:
    """A metric of the settings that any study measured: one row per setting, one column per study, named by it.

    Args:
        views: the studies, their names all different.
        trials: what is taken of each table of trials.
        metric: NaN where a study has no comparable trial of a setting.
    """
    axes = list(axes_of(*views))
    columns = {
        view.name: comparable(trials(widened(view, axes).trials), metric)
        .groupby(axes, observed=True, dropna=False)[metric]
        .mean()
        for view in views
    }
    return pd.DataFrame(columns)


def rank_correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of the settings' metric for each two studies.

    Args:
        table: of `matched`.

    Returns:
        `one`, `other`, `n` settings that both have, and `spearman`, NaN below three settings.
    """
    rows = []
    for one, other in itertools.combinations(table.columns, 2):
        both = table[[one, other]].dropna()
        ranks = both.rank()
        known = len(both) >= 3 and (ranks.nunique() > 1).all()
        rows.append((one, other, len(both), ranks[one].corr(ranks[other]) if known else math.nan))
    return pd.DataFrame(rows, columns=["one", "other", "n", "spearman"])


def transfer(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """What the best setting of each study is worth in the others.

    Args:
        table: of `matched`: quality counts stable trials, so a setting that is unstable elsewhere has no value there.
        metric: that is best.

    Returns:
        One row per ordered pair of studies: `source`, its best setting (the axes), `target`, `value` there (NaN: not
        measured or not stable there), `own_best` of the target, `loss` against it (never negative), `rank` among
        the `n` settings of the target, 1 is the best. Last, with an empty `source`, the setting whose greatest loss
        over all studies is least: one row per study.
    """
    minimize = METRICS[metric].minimized
    table = table.dropna(axis="columns", how="all")
    # places, since what is missing in a setting cannot be looked up
    best_of = {name: int(table[name].argmin() if minimize else table[name].argmax()) for name in table.columns}
    losses = (table - (table.min() if minimize else table.max())).abs().max(axis=1, skipna=False)
    if losses.notna().any() and len(table.columns) > 1:
        best_of[""] = int(losses.argmin())
    rows = []
    for source, best in best_of.items():
        for target in table.columns:
            if target == source:
                continue
            there = table[target].dropna()
            value = float(table[target].iloc[best])
            own = there.min() if minimize else there.max()
            better = (there < value).sum() if minimize else (there > value).sum()
            rank = None if math.isnan(value) else int(better) + 1
            rows.append((source, *table.index[best], target, value, own, abs(own - value), rank, len(there)))
    columns = ["source", *table.index.names, "target", "value", "own_best", "loss", "rank", "n"]
    return pd.DataFrame(rows, columns=columns).astype({"rank": "Int64"})


def slices(views: Sequence[StudyView], trials: Callable[[pd.DataFrame], pd.DataFrame], metric: str) -> pd.DataFrame:
    """What becomes of a metric away from the slice for which the setting is chosen (thesis Fig. 5.1).

    That slice is the middle one (`slice = "mid"`), else the first study's. Studies of other volumes or planes than this
    one's are left out. Slices are compared over the same settings, since the best of a larger search is better by that
    alone; the budgets of a fit depend on each other, so a fit counts once.

    Returns:
        One row per study, by slice: `study`, `slice`, `distance` from the chosen one, `n` settings that are comparable
        on both, the metric's mean over their fits `here` and on the `chosen` slice, and their difference `change`;
        with the setting that is best on the chosen slice the metric here, `best`, and its difference `best_change` (NaN
        where not measured or unstable); and that setting (the axes). Empty with fewer than two slices.
    """
    known = [(view, place) for view in views if (place := _slice_of(view)) is not None]
    axes = list(axes_of(*views))
    columns = ["study", "slice", "distance", "n", "here", "chosen", "change", "best", "best_change", *axes]
    empty = pd.DataFrame(columns=columns)
    if not known:
        return empty
    first, where = next(((view, place) for view, place in known if view.spec.target.slice == "mid"), known[0])
    same = [(view, place) for view, place in known if place[0] == where[0]]
    table = matched([view for view, _ in same], trials, metric)
    scores = table[first.name]
    if scores.isna().all() or len({place for _, place in same}) < 2:
        return empty
    best = int(scores.argmin() if METRICS[metric].minimized else scores.argmax())
    fit, rows = [axis for axis in axes if axis != SERVED], []
    for view, (_, index) in same:
        both = pd.DataFrame({"here": table[view.name], "chosen": scores}).dropna()
        here, chosen = both.groupby(level=fit, dropna=False).mean().mean()
        value, distance = table[view.name].iloc[best], index - where[1]
        changes = (here, chosen, here - chosen, value, value - scores.iloc[best])
        rows.append((view.name, index, distance, len(both), *changes, *table.index[best]))
    return pd.DataFrame(rows, columns=columns).sort_values("slice", ignore_index=True)


def _slice_of(view: StudyView) -> tuple[str, int] | None:
    """What is cut (volume and plane) and where, from the target's name; None for pictures."""
    found = re.fullmatch(r"(.* (?:axial|coronal|sagittal)) (\d+)((?: volume \d+)?)", view.facts.get("target", ""))
    return None if found is None else (found[1] + found[3], int(found[2]))
