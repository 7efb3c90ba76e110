"""Study -> data: every number that a report shows, as pandas tables.

The functions take the table of trials (one row per finished trial, see `ddstudy.store.study.StudyView`) and leave
it as it was. Three rules say which trials count, and they hold everywhere:

- quality (`psnr`, `ssim`, ...) is compared among stable trials only, the thesis' filter (sec. 4.3);
- `seconds` are compared among trials that ran all their iterations, stable or not, on a device of their own; answers
  (`timed`) leave out those that other programs disturbed, figures say how many these are;
- everything else among all trials that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ddstudy.images.metrics import COLUMNS, METRICS, Direction
from ddstudy.images.tiling import tile_shape
from ddstudy.report.words import FACETS, text_of
from ddstudy.spec.axes import budgets_by_fit
from ddstudy.spec.options import OPTIONS, THESIS
from ddstudy.study.stability import Recorded
from ddstudy.study.stopping import Curve

if TYPE_CHECKING:
    from pandas.core.groupby import DataFrameGroupBy

    from ddstudy.spec.axes import Fit
    from ddstudy.spec.schema import StudySpec
    from ddstudy.store.records import Record
    from ddstudy.store.study import StudyView

PAIR = ("tiling", "noise")
_CV = r"CV ([\d.]+) % > ([\d.]+) %"
# what of a reason differs from trial to trial -> what it says
_ALIKE = (
    (_CV, r"CV above \2 %"),
    (r"PSNR [\d.-]+ dB < ([\d.-]+) dB", r"PSNR below \1 dB"),
    (r"VIF [\d.]+ > ([\d.]+)", r"VIF above \1"),
    (r"stopped at \d+ by the (\w+) pruner.*", r"stopped by the \1 pruner"),
    (r"stopped at \d+: ", "stopped early: "),
    (r"\d+ dead members", "dead members"),
    (r"diverged by iteration \d+", "diverged"),
)
_ORDERS = {
    path: option.words for path, option in OPTIONS.items() if option.words and option.kind is str
}  # not the alphabet's


def finished(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that were measured: COMPLETE or PRUNED, with a PSNR or a judge's score."""
    scores = trials[trials.columns.intersection(["psnr", "judge"])]
    rows = trials[trials["state"].isin(["COMPLETE", "PRUNED"]) & scores.notna().any(axis=1)]
    return rows.assign(stable=rows["stable"].eq(True))


def trained(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials of priors with weights, which have members."""
    return trials[trials["iterations"] > 0]


def comparable(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The measured trials among which `metric` may be compared: the rules at the top of this module."""
    rows = finished(trials)
    rows = rows[rows[metric].notna()]
    if metric in METRICS and METRICS[metric].is_of_output:
        return rows[rows["stable"]]
    if metric == "seconds":
        return rows[~stopped(rows) & ~rows["shared"].eq(True)]
    return rows


def stopped(trials: pd.DataFrame) -> pd.Series[bool]:
    """Whether a fit ended before its last iteration, which a slice that starts from its neighbour may reach sooner."""
    early = trials["iterations_done"].lt(trials["iterations"])
    if "fit.start" in trials:
        onwards = trials["fit.start"].eq("neighbour") & ~trials["reason"].astype(str).str.match("stopped|a member div")
        early &= ~onwards
    return early


def timed(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials whose `seconds` are those of the fit alone."""
    rows = comparable(trials, "seconds")
    return rows[~rows["disturbed"].eq(True)]


def disturbed(trials: pd.DataFrame) -> int:
    """How many trials would be comparable in `seconds`, had other programs not disturbed them."""
    return int(comparable(trials, "seconds")["disturbed"].eq(True).sum())


def recorded(trials: pd.DataFrame, checks: pd.DataFrame, spec: StudySpec) -> list[Recorded]:
    """The fits of a study that ran to their last budget, for replays of the stop rule.

    Args:
        trials: of the study, as in `StudyView.trials`.
        checks: of its members, as in `StudyView.checks`.
        spec: its study file.
    """
    regular, fits = checks[checks["iteration"] % spec.fit.check_every == 0], []
    curves = dict(iter(regular.groupby("fit_id")))
    last = {fit.id: budgets[-1] for fit, budgets in budgets_by_fit(spec.search_space).items()}
    whole = finished(trials)
    whole = whole[whole["iterations_done"].ge(whole["iterations"])]
    for fit, rows in whole.groupby("fit_id", sort=False):
        if rows["iterations"].max() == last.get(str(fit)) and fit in curves:
            curve = curves[fit].pivot(index="iteration", columns="member", values="psnr")
            scores = zip(rows["psnr"].astype(float), rows["stable"].astype(bool), strict=True)
            results = dict(zip(rows["iterations"].astype(int), scores, strict=True))
            fits.append(Recorded(curve.index.tolist(), curve.to_numpy().tolist(), results))
    return fits


def curves_of_tasks(records: Sequence[Record], spec: StudySpec) -> list[Curve]:
    """The fits of a study that ran to their last budget and say what stopping rules look at, for replays of these.

    Args:
        records: of the study, as in `StudyView.records`.
        spec: its study file.

    Returns:
        A curve for each, of its regular checks and the last; scores only where the truth is known, since what judges
        in its place may be what a rule looks at.
    """
    longest: dict[Fit, Record] = {}
    for record in records:
        fit, curve = record.setting.fit, record.curve
        if (
            "loss" in curve
            and record.has_result
            and len(curve["loss"]) > len(longest[fit].curve["loss"] if fit in longest else ())
        ):
            longest[fit] = record
    curves = []
    for fit, record in longest.items():
        here, iterations = spec.at(fit), record.curve["iterations"]
        if not record.setting.budget or iterations[-1] < max(spec.search_space.budgets(fit), default=0):
            continue  # also priors without weights, which have no curve
        regular = [at for at, it in enumerate(iterations) if it % here.fit.check_every == 0 or it == iterations[-1]]
        numbers = {
            key: [math.nan if (value := record.curve[key][at]) is None else float(value) for at in regular]
            for key in ("loss", "held_out", "score", "wmv", "emv")
            if key in record.curve and (key != "score" or spec.knows_truth)
        }
        curves.append(Curve([iterations[at] for at in regular], **numbers, sigma=here.task.sigma))
    return curves


def pareto_front(trials: pd.DataFrame, objectives: Mapping[str, Direction]) -> pd.Series[bool]:
    """Marks the stable trials that no other stable trial dominates.

    A trial dominates another if it is no worse in every objective and better in one; equal trials stay together.
    Trials without a number in an objective are not on the front.

    Args:
        trials: the table of trials.
        objectives: metric -> direction.

    Returns:
        One boolean per row of `trials`.
    """
    rows = finished(trials)
    rows = rows[rows["stable"]].dropna(subset=list(objectives))
    signs = [1.0 if direction == "minimize" else -1.0 for direction in objectives.values()]
    costs = rows[list(objectives)].to_numpy(dtype=float) * signs
    front: list[int] = []
    # in lexicographic order nobody is dominated by a later row, so each has to be compared with the front so far only
    for row in np.lexsort(costs.T[::-1]):
        no_worse = (costs[front] <= costs[row]).all(axis=1)
        better = (costs[front] < costs[row]).any(axis=1)
        if not (no_worse & better).any():
            front.append(row)
    return pd.Series(trials.index.isin(rows.index[front]), index=trials.index)


def by_axis(trials: pd.DataFrame, *axes: str, metrics: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Time, quality and stability per value of one axis, or per combination of several (thesis Tables 4.1 and 4.2).

    Args:
        trials: the table of trials.
        axes: of the setting; `by_axis(trials, *PAIR)` describes the pairs.
        metrics: what is described [seconds, and PSNR or, where no trial has one, the judge's score].

    Returns:
        One row per value that was measured, in the axes' order: the axes, `n` measured trials, `unstable_share` of
        them, and for each metric `<metric>_n` comparable trials, their `_mean`, `_min`, `_q25`, `_median`, `_q75` and
        `_max`.
    """
    if metrics is None:
        metrics = ("judge" if "judge" in trials and trials["psnr"].isna().all() else "psnr", "seconds")
    groups = _grouped(finished(trials), axes)
    table = pd.DataFrame({"n": groups.size(), "unstable_share": 1.0 - groups["stable"].mean()})
    for metric in metrics:
        values = _grouped(comparable(trials, metric), axes)[metric]
        summary = {
            f"{metric}_n": values.size(),
            f"{metric}_mean": values.mean(),
            f"{metric}_min": values.min(),
            f"{metric}_q25": values.quantile(0.25),
            f"{metric}_median": values.median(),
            f"{metric}_q75": values.quantile(0.75),
            f"{metric}_max": values.max(),
        }
        table = table.join(pd.DataFrame(summary))
        table[f"{metric}_n"] = table[f"{metric}_n"].fillna(0).astype(int)
    return _plain(table)


def unstable_share(
    trials: pd.DataFrame, threshold: float, facets: Sequence[str] = FACETS, percent: str = "cv_percent"
) -> pd.DataFrame:
    """Share of settings whose members disagree, per combination of the facets' values (thesis Fig. 4.4).

    Args:
        trials: the table of trials.
        threshold: of the CV or the spread, in percent.
        facets: axes by which trials are grouped, the last first.
        percent: `cv_percent` or, where the truth is not the judge, `spread_percent`.

    Returns:
        One row per combination: the facets, `n` trials with a number, `above` the threshold, and their `share`.
    """
    rows = finished(trials).dropna(subset=[percent])
    above = _grouped(rows.assign(above=rows[percent] > threshold), facets[::-1])["above"]
    return _plain(pd.DataFrame({"n": above.size(), "above": above.sum(), "share": above.mean()}))


def best_settings(
    trials: pd.DataFrame, metric: str, facets: Sequence[str] = FACETS, axes: Sequence[str] = THESIS
) -> pd.DataFrame:
    """The best stable trial of each combination of the facets' values (thesis Tables 4.3 to 4.5).

    Args:
        trials: the table of trials.
        metric: that is best.
        facets: axes by which trials are grouped, the last first.
        axes: of the study.

    Returns:
        One row per combination that has a stable trial: the facets, the other axes, `number` and the metric. Of equal
        trials the one with the lowest number.
    """
    by, others = list(facets[::-1]), [axis for axis in axes if axis not in facets]
    best = _best_first(trials, metric)
    rows = in_order(best.drop_duplicates(by), by) if by else best.head(1)
    return rows[[*by, *others, "number", metric]].reset_index(drop=True)


def best_of_groups(trials: pd.DataFrame, metric: str, facets: Sequence[str] = FACETS) -> pd.DataFrame:
    """The best measured trial of each combination of the facets' values, an unstable one only where none is stable.

    Args:
        trials: the table of trials.
        metric: of image quality, that is best.
        facets: axes by which trials are grouped; without any, all are one group.

    Returns:
        Rows of `trials`, in the order of the facets' values. Of equal trials the one with the lowest number.
    """
    rows = finished(trials).dropna(subset=[metric])
    ranked = rows.sort_values(
        ["stable", metric, "number"], ascending=[False, METRICS[metric].minimized, True], kind="stable"
    )
    return in_order(ranked.drop_duplicates(list(facets)), facets) if len(facets) else ranked.head(1)


def best_by_metric(trials: pd.DataFrame, axes: Sequence[str] = THESIS) -> pd.DataFrame:
    """The best stable trial for each metric: `metric`, `value`, `number` and its setting."""
    best = [(metric, _best_first(trials, metric).head(1)) for metric in METRICS if metric in trials]
    rows = [row.assign(metric=metric, value=row[metric]) for metric, row in best if len(row)]
    columns = ["metric", "value", "number", *axes]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def history(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """How the best of a study came about: the comparable stable trials in the order in which they finished.

    Args:
        trials: the table of trials.
        metric: that is best.

    Returns:
        The rows of `trials` with `place`, from 1, and `best`, the best value so far.
    """
    rows = _best_first(trials, metric).sort_values(["finished", "number"], kind="stable")
    best = rows[metric].cummin() if METRICS[metric].minimized else rows[metric].cummax()
    return rows.assign(place=range(1, len(rows) + 1), best=best)


def gain_of_ensemble(trials: pd.DataFrame, facets: Sequence[str] = FACETS, metric: str = "psnr") -> pd.DataFrame:
    """Mean PSNR of single members and of their ensemble over stable settings (thesis Fig. 4.6).

    Args:
        trials: the table of trials.
        facets: axes by which trials are grouped, the last first.
        metric: PSNR, or the judge's score in its place.

    Returns:
        One row per combination of the facets' values: the facets, `n`, `psnr_1dd`, `psnr` (or `judge_1dd`, `judge`) and
        their difference `gain`, all in dB.
    """
    alone = COLUMNS["members"][metric]
    rows = comparable(trials, metric).dropna(subset=[alone])
    groups = _grouped(rows, facets[::-1])
    table = groups[[alone, metric]].mean()
    return _plain(table.assign(n=groups.size(), gain=table[metric] - table[alone]))[
        [*facets[::-1], "n", alone, metric, "gain"]
    ]


def convergence(view: StudyView, trials: pd.DataFrame) -> pd.DataFrame:
    """Curves of the members of two fits: the one with the largest CV, and the stable one with the smallest (Fig. 4.5).

    Stable, because members that are all dead agree best of all.

    Args:
        view: the study.
        trials: those of its trials whose fits are considered; of a fit, the trial with most iterations counts.

    Returns:
        One row per member and check of the two fits (one, if there is no other), the larger CV first: `fit_id`,
        `cv_percent` (at the end), `member`, `iteration`, `psnr` (dB; the judge's score where that is not the truth) and
        `mse`, the same on another scale: the mean squared error of the whole slice that belongs to this PSNR.
    """
    rows = finished(trials).dropna(subset=["cv_percent"])
    rows = rows[rows["fit_id"].isin(view.checks["fit_id"].unique())]
    last = rows.sort_values(["iterations", "number"], kind="stable").drop_duplicates("fit_id", keep="last")
    ranked = last.sort_values(["cv_percent", "number"], ascending=[False, True], kind="stable")
    stable = ranked[ranked["stable"]]
    chosen = pd.concat([ranked.head(1), stable.tail(1)])[["fit_id", "cv_percent"]].drop_duplicates()
    curves = chosen.merge(view.checks, on="fit_id", how="left")  # in the order of `chosen`
    columns = ["fit_id", "cv_percent", "member", "iteration", "psnr"]
    return curves[columns].assign(mse=10.0 ** (-curves["psnr"] / 10))


@dataclass(frozen=True)
class LearningCurves:
    """How the members of every fit did on average at some of its checks.

    Attributes:
        iterations: of checks; many fits have the same.
        fits: place in `iterations`, and the mean over members at each of these.
        of: number of a trial -> place of its fit in `fits`, and how many iterations it has.
    """

    iterations: list[list[int]]
    fits: list[tuple[int, list[float]]]
    of: dict[int, tuple[int, int]]

    def curve(self, number: int) -> tuple[list[int], list[float]]:
        """Iterations and means of a trial, which ends where its budget does."""
        fit, end = self.of[number]
        place, means = self.fits[fit]
        iterations = [step for step in self.iterations[place] if step <= end]
        return iterations, means[: len(iterations)]


def learning_curves(view: StudyView, checks: int = 60) -> LearningCurves:
    """The curve of every trial that has one, in dB: PSNR, or the judge's score where that is not the truth.

    Args:
        view: the study.
        checks: of a fit at most; of more, some evenly spaced.
    """
    means = view.checks.groupby(["fit_id", "iteration"], sort=False)["psnr"].mean()
    places: dict[tuple[int, ...], int] = {}
    fits: dict[str, int] = {}
    curves: list[tuple[int, list[float]]] = []
    for fit, curve in means.groupby(level="fit_id", sort=False):
        curve = (
            curve.dropna().iloc[:: max(1, math.ceil(len(curve) / checks))] if len(curve) > checks else curve.dropna()
        )
        steps = tuple(int(step) for step in curve.index.get_level_values("iteration"))
        if len(steps) > 1:
            fits[str(fit)] = len(curves)
            curves.append((places.setdefault(steps, len(places)), curve.round(2).tolist()))
    rows = view.trials.dropna(subset=["iterations_done"])
    ends = zip(rows["number"].tolist(), rows["fit_id"], rows["iterations_done"].astype(int).tolist(), strict=True)
    return LearningCurves(
        [list(steps) for steps in places],
        curves,
        {number: (fits[fit], end) for number, fit, end in ends if fit in fits},
    )


def parallel(
    trials: pd.DataFrame,
    metric: str,
    axes: Sequence[str] = THESIS,
    best_share: float = 0.05,
    drawn: int = 600,
    levels: Sequence[str] = (),
) -> pd.DataFrame:
    """Every trial as a line through its setting, for parallel coordinates.

    On each axis the values stand side by side, evenly. Around a value the lines are spread in the order of the metric,
    worst to best, so that none hides another and a value that the best settings share shows a bundle.

    Args:
        trials: the table of trials.
        metric: that ranks the comparable trials.
        axes: of the study.
        best_share: of the comparable trials that are the best.
        drawn: at most so many of the others are kept, evenly over their ranks.
        levels: axes of a task; the best are those of each combination of their values.

    Returns:
        One row per trial, best first: `number`, the axes (their values), `<axis>_at` in [0, 1], the metric,
        `<metric>_at` in [0, 1] by its value, and `best`.
    """
    rows = comparable(trials, metric)
    if METRICS[metric].minimized and len(rows):
        rows = rows[rows["stable"]]
    ascending = METRICS[metric].minimized
    rows = rows.sort_values([metric, "number"], ascending=[ascending, True], kind="stable").reset_index(drop=True)
    rows = rows.assign(best=rows.index < max(1, round(best_share * len(rows))))
    if levels:
        alike = rows.groupby(list(levels), dropna=False)[metric]
        rows["best"] = alike.cumcount() < (best_share * alike.transform("size")).round().clip(lower=1)
    for axis in axes:
        place = _places(rows, axis)
        groups = rows.groupby(axis, observed=True, dropna=False)
        within, among = groups.cumcount(), groups[metric].transform("size")  # 0 is the best
        rows[f"{axis}_at"] = (place + 0.9 - 0.8 * (within + 0.5) / among) / max(1, place.nunique())
    low, high = rows[metric].min(), rows[metric].max()
    rows[f"{metric}_at"] = (rows[metric] - low) / (high - low if high > low else 1.0)
    others = rows.index[~rows["best"]]
    kept = others if len(others) <= drawn else others[np.linspace(0, len(others) - 1, drawn).round().astype(int)]
    rows = rows.loc[rows.index[rows["best"]].append(kept)]
    return rows[["number", *axes, *(f"{axis}_at" for axis in axes), metric, f"{metric}_at", "best"]]


def widened(view: StudyView, axes: Sequence[str]) -> StudyView:
    """A study whose table of trials has a column for every axis, with its own value where it does not search one."""
    base = view.spec.search_space.base
    return replace(view, trials=view.trials.assign(**{axis: base[axis] for axis in axes if axis not in view.axes}))


def thin_inputs(view: StudyView) -> list[tuple[str, int]]:
    """Tilings and scale factors with which a tile's input has one row or one column, so that tiles come out flat."""
    if not (shape := view.facts.get("target shape")):
        return []
    height, width = map(int, shape.split("x")[-2:])
    tilings, factors = view.spec.values_of("tiling"), view.spec.values_of("s")
    sizes = {(str(tiling), int(s)): min(tile_shape(height, width, str(tiling))) for tiling in tilings for s in factors}
    return [pair for pair, size in sizes.items() if size / pair[1] < 1.5]  # the input has size / s pixels, rounded


def paired(
    rows: pd.DataFrame, axis: str, values: Sequence[Any], column: str, axes: Sequence[str] = THESIS
) -> pd.DataFrame:
    """Settings that differ on one axis only, side by side.

    Args:
        rows: trials that may be compared, such as `comparable`.
        axis: on which they differ.
        values: on that axis; sets that lack one of them are left out.
        column: what is compared.
        axes: all of the study.

    Returns:
        One row per set, indexed by the other axes; one column per value.
    """
    others = [name for name in axes if name != axis]
    rows = rows[rows[axis].isin(list(values))].drop_duplicates(list(axes))
    wide = rows.pivot(index=others, columns=axis, values=column)
    return wide.reindex(columns=list(values)).dropna()


def reasons(trials: pd.DataFrame) -> pd.DataFrame:
    """Why trials failed or are unstable, without the numbers of each.

    Returns:
        One row per state and reason, the commonest first: `state`, `reason`, `n` trials, and in `sizes` how many of
        them have a CV up to 1.5 times, up to twice, and above twice its limit, in words; empty where no CV is told.
    """
    rows = trials[~trials["stable"].eq(True)]
    told = rows["reason"].fillna("").astype(str)
    kinds = told
    for pattern, words in _ALIKE:
        kinds = kinds.str.replace(pattern, words, regex=True)
    found = told.str.extract(_CV).astype(float).set_axis(["cv", "limit"], axis=1)
    rows = found.assign(state=rows["state"], reason=kinds)
    groups = rows.groupby(["state", "reason"], observed=True)
    counts = [(*group, len(alike), _sizes(alike)) for group, alike in groups]
    table = pd.DataFrame(counts, columns=["state", "reason", "n", "sizes"])
    return table.sort_values("n", ascending=False, kind="stable", ignore_index=True)


def _sizes(found: pd.DataFrame) -> str:
    """How many of some CVs are how far above their limit."""
    if found["cv"].isna().all():
        return ""
    limit, cv = found["limit"].iloc[0], found["cv"].dropna()
    near, far = 1.5 * limit, 2 * limit
    counts = {
        f"up to {near:g} %": (cv <= near).sum(),
        f"up to {far:g} %": ((cv > near) & (cv <= far)).sum(),
        f"above {far:g} %": (cv > far).sum(),
    }
    return ", ".join(f"{count} {words}" for words, count in counts.items() if count)


def _best_first(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    rows = comparable(trials, metric)
    return rows[rows["stable"]].sort_values(
        [metric, "number"], ascending=[METRICS[metric].minimized, True], kind="stable"
    )


def values_of(rows: pd.DataFrame, axis: str) -> list[Any]:
    """The values of an axis that occur, in their order: numbers before texts, and last where it does not apply."""
    found = rows[axis].dropna().unique().tolist()
    order = _ORDERS.get(axis) or sorted(found, key=lambda value: (isinstance(value, str), value))
    return [value for value in order if value in found] + [None] * bool(rows[axis].isna().any())


def in_order(rows: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """The same rows by the values of some axes, the first axis first."""
    return rows.iloc[np.lexsort([_places(rows, axis) for axis in reversed(axes)])]


def _places(rows: pd.DataFrame, axis: str) -> pd.Series[float]:
    """Where each row's value stands among those of its axis that occur, from 0 on."""
    places = {text_of(value): place for place, value in enumerate(values_of(rows, axis))}
    return rows[axis].map(lambda value: places[text_of(value)]).astype(float)


def _grouped(rows: pd.DataFrame, axes: Sequence[str]) -> DataFrameGroupBy[Any, Any]:
    kinds = {axis: pd.CategoricalDtype(list(order), ordered=True) for axis, order in _ORDERS.items() if axis in axes}
    return rows.astype(kinds).groupby(list(axes), observed=True, dropna=False)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The index of groups as ordinary columns of plain values."""
    table = table.reset_index()
    names: dict[Any, Any] = {name: table[name].astype(object) for name in _ORDERS if name in table}
    return table.assign(**names)
