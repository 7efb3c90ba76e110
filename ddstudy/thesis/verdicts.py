"""From the trials of a study to the verdict of a finding: what matched settings say, its interval and its p-value.

An effect is positive, or within two values, or a rate is as low as "never" has it; each test below gives the verdict to
which the data lean, and leaves it open where their p-value does not allow it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ddstudy.report.intervals import LEVEL, Mean, at_least, at_most, mean_of, rarer, share
from ddstudy.report.tables import PAIR, comparable, paired
from ddstudy.spec.options import THESIS, TILINGS

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView

Ends = tuple[float, float, float]  # an effect, lower and upper end of its interval
Verdict = Literal["supported", "contradicted", "not enough data"]
Unit = Literal["dB", "times", "share", "points", "rho"]
HIGH_CV = 5.0  # percent, sec. 4.2
NEVER = 0.1  # a rate that is below; in the thesis' Tables 4.3 to 4.5 one best setting of twelve has 4 blocks
FEWEST = 6  # effects with which a mean can be decided, see `Mean.p`
NOT_DECIDED = "; not decided: "
# stands for the value of an option that does not apply, which pandas would leave out of groups
NOT_APPLICABLE: dict[type, Any] = {int: -1, float: -1.0, str: ""}


@dataclass(frozen=True)
class Found:
    """What a study says of a finding.

    Attributes:
        verdict: supported, contradicted or not enough data.
        tested: what was compared, and what else is worth knowing, in words.
        rows: the trials behind it, matched ones next to each other: `study`, `number`, the setting, what was compared.
        unit: of the effect: dB, times (a ratio), share, points (a difference of shares), rho (of rank correlations).
        effect: its size; NaN where there is none to tell.
        low: lower end of its 95 % interval; NaN where there is an effect of one fit only.
        high: upper end.
        p: the p-value of the verdict that the data lean to, on its own; NaN where nothing could be tested.
    """

    verdict: Verdict
    tested: str
    rows: pd.DataFrame
    unit: Unit
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan


def axes_of_fits(axes: Sequence[str]) -> list[str]:
    """The axes that the settings of one fit have in common."""
    return [axis for axis in axes if axis != "iterations"]


def judged(view: StudyView) -> pd.DataFrame:
    """All settings that the filter judged: `high` tells of a CV above 5 % or a member that diverged."""
    trials = view.trials
    rows = trials[trials["state"].isin(["COMPLETE", "PRUNED"]) & trials["stable"].notna()]
    return rows.assign(passed=rows["stable"].eq(True), high=~(rows["cv_percent"] <= HIGH_CV))


def scored(view: StudyView) -> pd.DataFrame:
    """The stable settings with PSNR, SSIM and VIF of those pairs that have at least six."""
    rows = comparable(view.trials, "psnr").dropna(subset=["ssim", "vif"])
    return rows[rows.groupby(list(PAIR))["number"].transform("size") >= FEWEST]


def best_of_pairs(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The best row of each pair, indexed by pair; of equal ones the first."""
    ordered = rows.sort_values([metric, "number"], ascending=[False, True])
    return ordered.drop_duplicates(list(PAIR)).set_index(list(PAIR)).sort_index()


def least_and_most(rows: pd.DataFrame, axis: str) -> list[Any]:
    """The least and the largest value measured; nothing where there is one only."""
    values = rows[axis]
    return [values.min(), values.max()] if values.nunique() > 1 else []


def fewest_and_most(rows: pd.DataFrame, axes: Sequence[str], column: str) -> pd.DataFrame:
    """Column and number with the fewest and the most tiles of each set of settings that differ in the tiling only."""
    rows = rows.iloc[rows["tiling"].map(TILINGS.index).argsort(kind="stable")]
    sets = rows.groupby([axis for axis in axes if axis != "tiling"])
    first, last = sets[[column, "number"]].first(), sets[[column, "number"]].last()
    return pd.concat([first, last], axis=1, keys=["few", "many"])[sets["tiling"].nunique() > 1]


def change(
    rows: pd.DataFrame,
    axes: Sequence[str],
    axis: str,
    ends: list[Any],
    column: str,
    unit: Unit,
    words: str = "",
    within: tuple[float, float] | None = None,
) -> Found:
    """What the step from one value of an axis to another does to a column, all other axes equal."""
    there = set(rows[axis])
    if len(ends) < 2 or not there.issuperset(ends):
        needed = f"{axis} = {' and '.join(map(str, ends))}" if ends else f"two values of {axis}"
        return nothing_to_tell(unit, f"It takes trials that may be compared with {needed}.")
    sets = paired(rows, axis, ends, column, axes)
    if sets.empty:
        return nothing_to_tell(unit, f"No settings differ in {axis} = {' and '.join(map(str, ends))} only.")
    before, after = (sets[end].astype(float) for end in ends)
    effects = np.log(after / before) if unit == "times" else after - before
    behind = trials_of(rows, paired(rows, axis, ends, "number", axes))
    step = f"{axis} {ends[0]} to {ends[1]}" if axis not in PAIR else f"{ends[1]} less {ends[0]}"
    return from_effects(effects, behind, axes, column, unit, f"{step}; {words}" if words else step, within)


def from_effects(
    effects: pd.Series[float],
    behind: pd.DataFrame,
    axes: Sequence[str],
    column: str,
    unit: Unit,
    words: str,
    within: tuple[float, float] | None = None,
) -> Found:
    """An effect that is said to be positive (a ratio: above 1) or, where that is given, within two values.

    Args:
        effects: one per matched set, indexed by the axes on which it is matched; ratios as logarithms.
        behind: the trials they are of.
        axes: all of the study.
        column: what is compared.
        unit: of the effects.
        words: which effects they are.
        within: where the effect is said to be.
    """
    of_fits = effects.groupby(axes_of_fits([str(name) for name in effects.index.names])).mean()
    if of_fits.empty:
        return nothing_to_tell(unit, "No settings match.")
    effect = mean_of(of_fits)
    if within:
        verdict, why, p = _place(effect, within, unit)
    else:
        verdict, why, p = sign(effect)
        why += _unlike(of_fits, verdict, unit)
    counts = f"{len(effects):,} matched settings of {len(of_fits):,} fits, higher in {(of_fits > 0).sum():,}"
    rows = trials_behind(behind, axes, [column])
    return Found(verdict, f"{words}; {counts}{why}", rows, unit, *interval_of(effect, unit), p)


def hardly_ever(
    rows: pd.DataFrame, axes: Sequence[str], side: pd.Series[bool], case: str, here: str, there: str
) -> Found:
    """Fits on one side are hardly ever a case, at any budget, and less often than the others."""
    if side.all() or not side.any():
        return nothing_to_tell("share", f"It takes fits {there} and others.")
    fit = axes_of_fits(axes)
    inside, outside = (part.groupby(fit)[case].any() for part in (rows[side], rows[~side]))
    cases, others = int(inside.sum()), int(outside.sum())
    rate = share(cases, len(inside))
    lean: Verdict
    if rate[0] > NEVER:
        lean, p, other = "contradicted", at_least(cases, [NEVER] * len(inside)), f"it may be below {NEVER:.0%}"
    else:
        few, fewer = at_most(cases, [NEVER] * len(inside)), rarer(cases, len(inside), others, len(outside))
        lean, p = "supported", max(few, fewer)
        other = f"it may be above {NEVER:.0%}" if few > fewer else f"it may be as common {there} (p = {p:.2f})"
    verdict, why = decided(lean, p, other)
    longest = rows["iterations"].max()
    last = int(rows[side & (rows["iterations"] == longest)][case].sum())
    words = f"{here}: {cases:,} of {len(inside):,} fits at some budget, {last:,} at {longest:,} iterations"
    words += f"; {there}: {others:,} of {len(outside):,} at some{why}"
    behind = rows[side].sort_values([case, *fit, "iterations"], ascending=[False] + [True] * len(axes))
    return Found(verdict, words, trials_behind(behind, axes, ["cv_percent", "stable"]), "share", *rate, p)


def best_hardly_ever(trials: pd.DataFrame, axes: Sequence[str], axis: str, case: pd.Series[bool], asked: str) -> Found:
    """Pairs hardly ever have their best stable setting among the cases, and less often than by chance."""
    trials = trials.assign(case=case)
    sets = trials.groupby([name for name in axes if name != axis])["case"]
    trials = trials.assign(matched=sets.transform("nunique") == 2)
    best = best_of_pairs(trials[trials["passed"]], "psnr")
    # of a pair whose best setting was measured on one side only, the other may hide a better one
    counted = best[best["matched"]]
    if counted.empty or 2 * len(counted) < len(best):
        what = "pairs whose best stable setting was measured on both sides, all else equal"
        return nothing_to_tell("share", f"It takes {what}; {len(counted)} of {len(best)} are such.")
    stable = trials[trials["passed"] & trials["matched"]]
    stable = stable[pd.MultiIndex.from_frame(stable[list(PAIR)]).isin(counted.index)]
    chances = stable.groupby(list(PAIR))["case"].mean()
    five = stable.sort_values(["psnr", "number"], ascending=[False, True]).groupby(list(PAIR)).head(5)
    cases = int(counted["case"].sum())
    rate = share(cases, len(counted))
    lean: Verdict
    if rate[0] > NEVER:
        lean, p = "contradicted", at_least(cases, [NEVER] * len(counted))
    else:
        lean, p = "supported", at_most(cases, chances)
    verdict, why = decided(lean, p, f"so {'many' if rate[0] > NEVER else 'few'} may be chance (p = {p:.2f})")
    words = f"{asked}: {cases} of {len(counted)} pairs' best ({chances.sum():.1f} by chance), "
    words += f"{int(five['case'].sum())} of {len(five)} among the best five"
    if len(counted) < len(best):
        words += f"; left out: {len(best) - len(counted)} pairs whose best was measured on one side only"
    behind = five.sort_values([*PAIR, "psnr"], ascending=[True, True, False])
    return Found(verdict, words + why, trials_behind(behind, axes, ["psnr"]), "share", *rate, p)


def decided(lean: Verdict, p: float, otherwise: str) -> tuple[Verdict, str]:
    """What the data lean to, or why that is open."""
    return (lean, "") if p < LEVEL else ("not enough data", NOT_DECIDED + otherwise)


def sign(effect: Mean) -> tuple[Verdict, str, float]:
    """Whether an effect is positive, why that may be open, and the p-value."""
    p, differing = effect.p(0), np.count_nonzero(effect.values)
    few = f"fewer than {FEWEST} that differ" if differing < FEWEST else "the interval holds no change"
    return (*decided("supported" if effect.mean > 0 else "contradicted", p, few), p)


def _place(effect: Mean, within: tuple[float, float], unit: Unit) -> tuple[Verdict, str, float]:
    """Whether an effect is within two values, why that may be open, and the p-value."""
    least, most = map(math.log, within) if unit == "times" else within
    lean: Verdict
    if least < effect.mean < most:
        lean, p = "supported", max(effect.p(least), effect.p(most))
    else:
        lean, p = "contradicted", effect.p(least if effect.mean <= least else most)
    few = f"fewer than {FEWEST} fits"
    crossed = within[0] if effect.low < least else within[1]
    return (*decided(lean, p, few if len(effect.values) < FEWEST else f"the interval crosses {crossed:g}"), p)


def _unlike(effects: pd.Series[float], verdict: Verdict, unit: Unit) -> str:
    """The values of other axes where the answer, taken alone, is the opposite; or where it is one and the other.

    Each counts where its p-value, times the number of values that are looked at, is below 5 %.
    """
    parts = [
        (f"{axis} {value}", part)
        for axis in effects.index.names
        for value, part in effects.groupby(level=axis)
        if FEWEST <= len(part) < len(effects)
    ]
    found: dict[Verdict, list[str]] = {"supported": [], "contradicted": []}
    for where, part in parts:
        answer: Verdict = "supported" if part.mean() > 0 else "contradicted"
        t = abs(part.mean()) / max(part.std() / len(part) ** 0.5, 1e-300)
        # the bootstrap, which takes time, can but raise what Student's t says
        if answer != verdict and t > 2 and (effect := mean_of(part)).p(0) * len(parts) < LEVEL:
            found[answer].append(f"{where}: {effect_in_words(*interval_of(effect, unit), unit)}")
    if verdict == "not enough data" and not all(found.values()):
        return ""
    unlike = [words for some in found.values() for words in some]
    return f"; unlike at {', '.join(unlike)}" if unlike else ""


def interval_of(effect: Mean, unit: Unit) -> Ends:
    """An effect and its interval: ratios, which are averaged as logarithms, as ratios; shares as shares can be."""
    ends = (effect.mean, effect.low, effect.high)
    if unit == "times":
        return (math.exp(ends[0]), math.exp(ends[1]), math.exp(ends[2]))
    return (ends[0], max(ends[1], -1.0), min(ends[2], 1.0)) if unit == "points" else ends


def effect_in_words(effect: float, low: float, high: float, unit: Unit) -> str:
    """An effect and, where there is one, its interval."""
    form: dict[Unit, tuple[str, float, str]] = {
        "dB": ("+.2f", 1, " dB"),
        "times": (".2f", 1, " times"),
        "share": (".0f", 100, " %"),
        "points": ("+.0f", 100, " points"),
        "rho": ("+.2f", 1, ""),
    }
    digits, scale, name = form[unit]
    value, lower, upper = (f"{scale * number:{digits}}" for number in (effect, low, high))
    return f"{value}{name} [{lower}, {upper}]" if low == low else f"{value}{name}"


def nothing_to_tell(unit: Unit, why: str) -> Found:
    """Not enough data, and why, where there is not even an effect."""
    return Found("not enough data", why, pd.DataFrame(columns=["study", "number", *THESIS]), unit)


def trials_of(rows: pd.DataFrame, numbers: pd.DataFrame) -> pd.DataFrame:
    """The trials with these numbers, matched ones next to each other."""
    return rows.drop_duplicates("number").set_index("number").loc[numbers.to_numpy().ravel()].reset_index()


def trials_behind(rows: pd.DataFrame, axes: Sequence[str], columns: list[str]) -> pd.DataFrame:
    """The trials of an answer, each once, with what was compared."""
    return rows[["study", "number", *axes, *columns]].drop_duplicates(["study", "number"]).reset_index(drop=True)
