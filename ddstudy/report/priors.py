"""A study over several priors -> data: the best setting of each, what it costs, and what training gains at all.

As in `tables`, quality counts stable trials only. A setting is what is the same for all measurements and seeds; where a
study has several of these, a setting's number is the mean over them, and one that is not stable on all does not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ddstudy.images.metrics import METRICS
from ddstudy.report import tables
from ddstudy.report.intervals import mean_of
from ddstudy.report.inverse import case_axes
from ddstudy.spec.options import HANDCRAFTED
from ddstudy.spec.schema import CASE

PRIOR = "prior.kind"


def best_of_each(trials: pd.DataFrame, axes: Sequence[str], levels: Sequence[str], metric: str) -> pd.DataFrame:
    """The best setting of each prior at each level of a task, and its gain over the best prior without weights.

    The gain is paired: the ensemble's number minus that of the best handcrafted setting on the same measurement. Over
    several measurements or seeds its interval is over these; of one, over the members, whose own numbers (1DD) are
    compared instead of the ensemble's, since there is but one of that.

    Args:
        trials: the table of trials.
        axes: of the study, `prior.kind` among them.
        levels: axes of a task at whose values settings are not compared.
        metric: of quality.

    Returns:
        One row per level and prior, best first within a level: the levels, `prior.kind`, the other axes of the setting,
        `n` trials of it, the metric, `seconds` and `parameters`, all means; `number` of its best trial; `gain` in the
        metric, `gain_low` and `gain_high` of its 95 % interval, and `over` what that is, `seeds` or `members`; these
        are missing for the handcrafted prior itself, and where there is none.
    """
    repeats = repeats_of(axes, levels)
    setting = [axis for axis in axes if axis not in repeats]
    measured = tables.finished(trials).dropna(subset=[metric])
    sign = -1.0 if METRICS[metric].minimized else 1.0
    grouped = measured.groupby(setting, dropna=False, observed=True, sort=False)
    whole = measured[grouped["stable"].transform("all")]
    if whole.empty:
        return pd.DataFrame(columns=[*setting, "n", metric, "seconds", "parameters", "number"])
    found = []
    for _, here in whole.groupby(list(levels), dropna=False) if levels else [((), whole)]:
        chosen = {kind: _best(rows, setting, metric, sign) for kind, rows in here.groupby(PRIOR, observed=True)}
        reference = max(
            (chosen[kind] for kind in HANDCRAFTED if kind in chosen),
            key=lambda rows: sign * rows[metric].mean(),
            default=None,
        )
        ranked = sorted(chosen.values(), key=lambda rows: -sign * rows[metric].mean())
        found += [_row(rows, setting, metric, sign, repeats, reference) for rows in ranked]
    return pd.DataFrame(found)


def repeats_of(axes: Sequence[str], levels: Sequence[str]) -> list[str]:
    """The axes of a study over whose values a setting is repeated: cases, measurements at one level, starts."""
    measured = case_axes(axes)
    return [axis for axis in axes if axis in ("fit.seed", CASE) or (axis in measured and axis not in levels)]


def _best(rows: pd.DataFrame, setting: list[str], metric: str, sign: float) -> pd.DataFrame:
    """All trials of the setting with the best mean."""
    groups = [each for _, each in rows.groupby(setting, dropna=False, observed=True, sort=False)]
    return max(groups, key=lambda each: sign * each[metric].mean())


def _row(
    rows: pd.DataFrame,
    setting: list[str],
    metric: str,
    sign: float,
    repeats: list[str],
    reference: pd.DataFrame | None,
) -> dict[str, object]:
    first = rows.iloc[0]
    best = rows.sort_values([metric, "number"], ascending=[sign < 0, True]).iloc[0]
    row: dict[str, object] = {axis: first[axis] for axis in setting}
    row |= {"n": len(rows), metric: rows[metric].mean(), "seconds": rows["seconds"].mean()}
    row |= {"parameters": first["parameters"], "number": best["number"]}
    if reference is None or first[PRIOR] in HANDCRAFTED:
        return row
    gains, over = _gains(rows, metric, repeats, reference)
    interval = mean_of(gains) if len(gains) else None
    if interval is None:
        return row
    row["gain"] = interval.mean
    if len(gains) > 1:
        row |= {"gain_low": interval.low, "gain_high": interval.high, "over": over}
    return row


def _gains(
    rows: pd.DataFrame, metric: str, repeats: list[str], reference: pd.DataFrame
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], str]:
    """Number minus that of the reference on the same measurement: of each trial, or of each member of the only one."""
    same = [axis for axis in repeats if axis != "fit.seed"]  # which nothing without weights has
    known = reference.groupby(same, dropna=False)[metric].mean().reset_index() if same else None
    if known is None:
        against = np.full(len(rows), reference[metric].mean())
    else:
        against = rows[same].merge(known, on=same, how="left")[metric].to_numpy(dtype=float)
    if len(rows) > 1:
        gains = rows[metric].to_numpy(dtype=float) - against
        return gains[np.isfinite(gains)], "seeds"
    columns = [column for column in rows if str(column).startswith(f"{metric}_member_")]
    members = rows[columns].to_numpy(dtype=float)[0]
    members = members[np.isfinite(members)]
    if len(members) < 2:
        return rows[metric].to_numpy(dtype=float) - against, "seeds"
    return members - against[0], "members"


def fronts(trials: pd.DataFrame, levels: Sequence[str], x: str, y: str) -> pd.DataFrame:
    """The trials on each prior's Pareto front of two metrics, with a column `study` that names the prior and level."""
    shown = tables.finished(trials).dropna(subset=[x, y])
    found = [shown.iloc[:0].assign(study="")]
    for values, rows in shown.groupby([PRIOR, *levels], observed=True, dropna=False):
        front = rows[tables.pareto_front(rows, {name: METRICS[name].better for name in (x, y)})].sort_values([x, y])
        kind, *level = values
        named = [f"{axis.removeprefix('task.')} {value}" for axis, value in zip(levels, level, strict=True)]
        found.append(front.assign(study=", ".join([str(kind), *named])))
    return pd.concat(found, ignore_index=True) if len(found) > 1 else found[0]
