"""The thesis' findings, re-tested on a study's own trials.

Each finding is one function below: what it takes from the study, and the rule by which that supports or contradicts
the finding. They share four principles:

- Settings are compared that differ on one axis only (matched); which trials count is said in `ddstudy.report.tables`.
- The budgets of one fit depend on each other, so a fit, or a pair of matched fits, counts once: the mean over its
  budgets.
- An effect is a mean with its 95 % interval: a bootstrap over matched fits (BCa, 9,999 resamples, seed 0), exact
  (Clopper and Pearson) where it is a share. It says how far the effect depends on settings and starts; it says nothing
  of other images.
- Where the data allow both answers, or fewer than six matched fits differ (no exact sign test could reach 5 % then),
  the answer is that there are not enough data. A finding that says "never" is contradicted by a single case, and
  supported if cases are so common elsewhere that their absence is no chance (5 %, exact).

Where the answer at some value of another axis alone is the opposite, `Answer.tested` says so ("unlike at").
Settings whose input has one pixel a tile are left out: their tiles are flat whatever the network, and the thesis has
none. Where a study has other values than the thesis, the nearest analogue is tested, and `Answer.tested` says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from ddstudy.report.tables import PAIR, comparable, disturbed, finished, one_pixel_inputs, paired, timed
from ddstudy.spec.axes import AXES, TILINGS

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView

Ends = tuple[float, float, float]  # an effect, lower and upper end of its interval
Verdict = Literal["supported", "contradicted", "not enough data"]
Unit = Literal["dB", "times", "share", "points", "rho"]
HIGH_CV = 5.0  # percent, sec. 4.2
FLAT = 1.25  # "similar" times differ by less than this factor; the thesis calls 1.37, that of l from 4 to 6, a rise
GAIN = (1.5, 3.5)  # dB: what is 2 to 3 when rounded
_FEWEST = 6  # differences, all of one sign, that an exact two-sided sign test takes for no chance: 2 / 2^6 < 0.05
_UNKNOWN = float("nan")


@dataclass(frozen=True)
class Found:
    """What a study says of a finding.

    Attributes:
        verdict: supported, contradicted or not enough data.
        tested: what was compared, and what else is worth knowing, in words.
        rows: the trials behind it, matched ones next to each other: `study`, `number`, the setting, what was compared.
        unit: of the effect: dB, times (a ratio), share, points (a difference of shares), rho (of rank correlations).
        effect: its size; NaN where there is none to tell.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    verdict: Verdict
    tested: str
    rows: pd.DataFrame
    unit: Unit
    effect: float = _UNKNOWN
    low: float = _UNKNOWN
    high: float = _UNKNOWN


Test = Callable[["StudyView", Sequence["StudyView"]], Found]


@dataclass(frozen=True)
class Finding:
    """A finding of the thesis.

    Attributes:
        name: short, for the command line.
        statement: what the thesis says.
        source: where.
        rule: how a study decides it.
    """

    name: str
    statement: str
    source: str
    rule: str
    test: Test = field(repr=False)


@dataclass(frozen=True)
class Answer(Found):
    """What a study says of a finding, with the finding."""

    finding: Finding = field(kw_only=True)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the trials behind it, each once."""
        return tuple(dict.fromkeys(self.rows["number"].tolist()))

    @property
    def effect_text(self) -> str:
        """The effect and its interval for people."""
        return "\u2013" if np.isnan(self.effect) else _in_words(self.effect, self.low, self.high, self.unit)


def retest(view: StudyView, others: Sequence[StudyView] = ()) -> list[Answer]:
    """All findings, tested on one study.

    Args:
        view: the study.
        others: studies of other slices, for the finding on slices away from the middle.
    """
    return [ask(finding, view, others) for finding in FINDINGS]


def ask(finding: Finding, view: StudyView, others: Sequence[StudyView] = ()) -> Answer:
    """One finding, tested on one study; `others` as for `retest`."""
    view, *others = (replace(one, trials=_drawing(one).assign(study=one.name)) for one in (view, *others))
    found = finding.test(view, others)
    if finding.name.startswith("time") and (left_out := disturbed(view.trials)):
        found = replace(found, tested=f"{found.tested} Left out: {left_out:,} trials that other programs disturbed.")
    return Answer(**vars(found), finding=finding)


def _drawing(view: StudyView) -> pd.DataFrame:
    """The trials whose network can draw more than flat tiles."""
    pairs = pd.MultiIndex.from_frame(view.trials[["tiling", "s"]])
    return view.trials[~pairs.isin(one_pixel_inputs(view))]


def as_table(answers: Sequence[Answer]) -> pd.DataFrame:
    """Answers as a table, indexed by the findings' names.

    Returns:
        Columns `statement`, `verdict`, `effect`, `low`, `high`, `unit`, `tested`, `trials` (numbers of those behind
        it), `rule` and `source`.
    """
    rows = [
        {
            "statement": answer.finding.statement,
            "verdict": answer.verdict,
            "effect": answer.effect,
            "low": answer.low,
            "high": answer.high,
            "unit": answer.unit,
            "tested": answer.tested,
            "trials": answer.numbers,
            "rule": answer.finding.rule,
            "source": answer.finding.source,
        }
        for answer in answers
    ]
    return pd.DataFrame(rows, index=pd.Index([answer.finding.name for answer in answers], name="finding"))


# --- the findings, in the thesis' order of appearance

FINDINGS: list[Finding] = []


def _finding(name: str, statement: str, source: str, rule: str) -> Callable[[Test], Test]:
    def register(test: Test) -> Test:
        FINDINGS.append(Finding(name, statement, source, rule, test))
        return test

    return register


@_finding(
    "blur",
    "Blurred noise raises PSNR",
    "ch. 4, sec. 4.3",
    "Mean PSNR of blur3 less uniform over matched stable settings: supported where its interval lies above 0, "
    "contradicted where below.",
)
def _blur(view: StudyView, others: Sequence[StudyView]) -> Found:
    ends = ["uniform", "blur3"]
    sets = paired(finished(view.trials), "noise", ends, "psnr")
    words = f"{(sets['blur3'] - sets['uniform']).mean():+.2f} dB over {len(sets):,}, stable or not" if len(sets) else ""
    return _change(comparable(view.trials, "psnr"), "noise", ends, "psnr", "dB", words)


@_finding(
    "time-l",
    "Time grows with the blocks l",
    "sec. 4.1, Table 4.2",
    "Mean ratio of the time with the most blocks to that with the fewest, over matched settings: supported where its "
    "interval lies above 1, contradicted where below.",
)
def _time_of_blocks(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = timed(view.trials)
    return _change(rows, "l", _ends(rows, "l"), "seconds", "times")


@_finding(
    "time-s",
    "Time grows with a smaller scale factor s",
    "sec. 4.1, Table 4.2",
    "Mean ratio of the time with the smallest s to that with the largest, over matched settings: supported where its "
    "interval lies above 1, contradicted where below.",
)
def _time_of_scale(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = timed(view.trials)
    return _change(rows, "s", _ends(rows, "s")[::-1], "seconds", "times")


@_finding(
    "time-l-s",
    "Time grows more with l than with s",
    "sec. 4.1",
    "The ratio for l divided by the ratio for s, each from end to end of its list, over sets of four matched settings: "
    "supported where its interval lies above 1, contradicted where below. Lists of other lengths than the thesis' (l 4 "
    "to 6, s 32 to 8) ask another question.",
)
def _time_of_blocks_and_scale(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = timed(view.trials)
    blocks, scales = _ends(rows, "l"), _ends(rows, "s")[::-1]
    if len(blocks) < 2 or len(scales) < 2:
        return _nothing("times", "It takes two values of l and two of s.")
    at = {s: paired(rows[rows["s"] == s], "l", blocks, "seconds").droplevel("s") for s in scales}
    numbers = {s: paired(rows[rows["s"] == s], "l", blocks, "number").droplevel("s") for s in scales}
    common = at[scales[0]].index.intersection(at[scales[1]].index)
    few, many = blocks
    large, small = (np.log(at[s].loc[common]) for s in scales)
    of_l = (large[many] - large[few] + small[many] - small[few]) / 2
    of_s = (small[few] - large[few] + small[many] - large[many]) / 2
    behind = _rows_of(rows, pd.concat([numbers[s].loc[common] for s in scales], axis=1))
    words = (
        f"l {few} to {many}: {np.exp(of_l.mean()):.2f} times; s {scales[0]} to {scales[1]}: "
        f"{np.exp(of_s.mean()):.2f} times (thesis: 1.37 for l 4 to 6, 1.08 for s 32 to 8)"
    )
    return _found(of_l - of_s, behind, "seconds", "times", words)


@_finding(
    "time-k-flat",
    "Time is flat up to 64 channels",
    "sec. 4.1, Fig. 4.3",
    f"Mean ratio of the time with the most channels up to 64 to that with the fewest, over matched settings: supported "
    f"where its interval lies within {1 / FLAT:g} and {FLAT:g}, contradicted where it lies outside.",
)
def _time_flat(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = timed(view.trials)
    return _change(rows, "k", _ends(rows[rows["k"] <= 64], "k"), "seconds", "times", within=(1 / FLAT, FLAT))


@_finding(
    "time-k-rise",
    "Time rises beyond 64 channels",
    "sec. 4.1, Fig. 4.3",
    "Mean ratio of the time with the most channels to that with 64 (or the most below), over matched settings: "
    "supported where its interval lies above 1, contradicted where below.",
)
def _time_rise(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = timed(view.trials)
    low, high = rows[rows["k"] <= 64]["k"], rows[rows["k"] > 64]["k"]
    ends = [low.max(), high.max()] if len(low) and len(high) else []
    return _change(rows, "k", ends, "seconds", "times")


@_finding(
    "cv-64",
    "The CV is above 5 % with more than 64 channels only",
    "sec. 4.2",
    "Contradicted where a fit of at most 64 channels has a CV above 5 % at any of its budgets; supported where none "
    "has, and Fisher's exact test says that this is no chance, given how many of the larger ones have.",
)
def _cv_of_channels(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = _judged(view)
    if view.spec.fit.members < 2:
        return _nothing("share", "It takes ensembles.")
    return _never(rows, rows["k"] <= 64, "high", "CV > 5 % with k <= 64", "with k > 64")


@_finding(
    "tiles",
    "More tiles, less stable",
    "sec. 4.2, Fig. 4.4",
    "Share of settings with a CV above 5 %, most tiles less fewest of each set of matched settings: supported where "
    "the interval of the difference lies above 0, contradicted where below.",
)
def _tiles(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = _judged(view)
    rows = rows.iloc[rows["tiling"].map(TILINGS.index).argsort(kind="stable")]
    sets = rows.groupby([axis for axis in AXES if axis != "tiling"])
    ends = pd.concat([sets[["high", "number"]].first(), sets[["high", "number"]].last()], axis=1, keys=["few", "many"])
    ends = ends[sets["tiling"].nunique() > 1]
    if view.spec.fit.members < 2 or ends.empty:
        return _nothing("points", "It takes ensembles and two tilings.")
    shares = rows.groupby("tiling", sort=False)["high"].mean()
    words = "most less fewest tiles; CV > 5 %: " + ", ".join(
        f"{tiling} {share:.0%}" for tiling, share in shares.items()
    )
    effects = ends["many", "high"].astype(float) - ends["few", "high"].astype(float)
    behind = _rows_of(rows, ends[[("few", "number"), ("many", "number")]])
    return _found(effects, behind, "high", "points", words)


@_finding(
    "k-128",
    "All settings with 128 channels and more are discarded by the filter",
    "sec. 4.3",
    "Contradicted where a fit of at least 128 channels is stable at any of its budgets; supported where none is, and "
    "Fisher's exact test says that this is no chance, given how many of the smaller ones are.",
)
def _many_channels(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = _judged(view)
    return _never(rows, rows["k"] >= 128, "passed", "stable with k >= 128", "with k < 128")


@_finding(
    "ensemble",
    "5DD gains 2 to 3 dB over 1DD",
    "sec. 4.3, Fig. 4.6",
    f"Mean PSNR of the ensemble less the mean PSNR of its members, over stable settings: supported where the interval "
    f"lies within {GAIN[0]} and {GAIN[1]} dB, contradicted where it lies outside.",
)
def _gain(view: StudyView, others: Sequence[StudyView]) -> Found:
    members = view.spec.fit.members
    rows = comparable(view.trials, "psnr").dropna(subset=["psnr_1dd"])
    if members < 2 or rows.empty:
        return _nothing("dB", "It takes stable ensembles.")
    rows = rows.assign(gain=rows["psnr"] - rows["psnr_1dd"]).sort_values([*_OF_A_FIT, "iterations"])
    of_pairs = rows.groupby(list(PAIR))["gain"].mean()
    words = f"{members}DD less 1DD; means of pairs {of_pairs.min():.1f} to {of_pairs.max():.1f} dB"
    effects = rows.set_index(list(AXES))["gain"]
    return _found(effects, rows, "gain", "dB", words, within=GAIN)


def _at_best(
    name: str, finding: str, axis: str, cases: tuple[str, float], analogue: Literal["fewest", "largest"] | None
) -> None:
    sign, limit = cases
    inside = {"<=": np.less_equal, "<": np.less, ">=": np.greater_equal}[sign]

    def test(view: StudyView, others: Sequence[StudyView]) -> Found:
        trials = _judged(view)
        values = sorted(set(trials[axis]))
        case = [value for value in values if inside(value, limit)]
        asked = f"{axis} {sign} {limit:g}"
        if not 0 < len(case) < len(values):
            if analogue is None or len(values) < 2:
                return _nothing("share", f"It takes values of {axis} on both sides of {limit:g}.")
            case = [values[0] if analogue == "fewest" else values[-1]]
            asked = f"{axis} = {case[0]}, the {analogue} here"
        return _best_never(trials, trials[axis].isin(case), asked)

    _finding(
        name,
        f"The best settings never have {finding}",
        "sec. 4.3, Tables 4.3 to 4.5",
        f"The best stable setting by PSNR of every pair of noise and tiling: contradicted where one has {axis} {sign} "
        f"{limit:g}; supported where none has, and drawing stable settings at random would find one (chance of none "
        f"below 5 %)."
        + (f" A study with values on one side only is asked about its {analogue}." if analogue else "")
        + (" The thesis' own tables have l = 4 once each." if axis == "l" else ""),
    )(test)


_at_best("best-iterations", "2,000 iterations", "iterations", ("<=", 2000), "fewest")
_at_best("best-s", "s = 32", "s", (">=", 32), "largest")
_at_best("best-k", "less than 64 channels", "k", ("<", 64), None)
_at_best("best-l", "4 blocks", "l", ("<=", 4), "fewest")


@_finding(
    "psnr-ssim",
    "PSNR and SSIM have their best in the same setting in most cases",
    "sec. 4.3, Tables 4.3 and 4.4",
    "Share of pairs of noise and tiling in which the best stable setting by PSNR is that by SSIM: supported where its "
    "exact interval lies above one half, contradicted where below.",
)
def _same_best(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = _scored(view)
    best = _best_of(rows, "psnr")
    if best.empty:
        return _nothing("share", "It takes pairs with six stable settings.")
    same = {metric: int((best["number"] == _best_of(rows, metric)["number"]).sum()) for metric in ("ssim", "vif")}
    effect, low, high = _share(same["ssim"], len(best))
    verdict: Verdict = "supported" if low > 0.5 else "contradicted" if high < 0.5 else "not enough data"
    why = f"{_WHY}the interval holds one half" if verdict == "not enough data" else ""
    words = (
        f"PSNR's best is SSIM's best in {same['ssim']} of {len(best)} pairs (thesis: 9 of 12), "
        f"VIF's in {same['vif']} (thesis: 8){why}"
    )
    behind = pd.concat([best, _best_of(rows, "ssim")]).sort_index(kind="stable").reset_index()
    return Found(verdict, words, _behind(behind, ["psnr", "ssim", "vif"]), "share", effect, low, high)


@_finding(
    "vif",
    "VIF agrees less with PSNR than SSIM does",
    "sec. 4.3",
    "Rank correlation of PSNR with SSIM less that of PSNR with VIF, over the stable settings of each pair of noise and "
    "tiling: supported where the interval of its mean over pairs lies above 0, contradicted where below.",
)
def _ranks(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = _scored(view).sort_values([*PAIR, "number"])
    of_pairs = {
        pair: [stats.spearmanr(group["psnr"], group[metric]).statistic for metric in ("ssim", "vif")]
        for pair, group in rows.groupby(list(PAIR))
        if all(group[metric].nunique() > 1 for metric in ("psnr", "ssim", "vif"))
    }
    if not of_pairs:
        return _nothing("rho", "It takes pairs with six stable settings.")
    ranks = pd.DataFrame.from_dict(of_pairs, orient="index", columns=["ssim", "vif"])
    words = f"PSNR and SSIM {ranks['ssim'].mean():.2f}, PSNR and VIF {ranks['vif'].mean():.2f}, {len(ranks)} pairs"
    effects = ranks["ssim"] - ranks["vif"]
    ends = _interval(effects)
    verdict, why = _sign(effects, ends)
    return Found(verdict, words + why, _behind(rows, ["psnr", "ssim", "vif"]), "rho", *ends)


@_finding(
    "slices",
    "Results are worse away from the mid slice",
    "ch. 5, Fig. 5.1",
    "PSNR of the same settings on other slices of the same volume and plane less that on the mid slice, over settings "
    "that are stable in both: supported where the interval lies below 0, contradicted where above. It takes a study of "
    "the mid slice and one or more of other slices, with the same image, noise and fit options.",
)
def _slices(view: StudyView, others: Sequence[StudyView]) -> Found:
    away = [other for other in others if _another_slice(view, other)]
    if view.spec.target.slice != "mid" or not away:
        return _nothing("dB", "It takes a study of the mid slice first, and others of the same volume and plane.")
    axes, mid = list(AXES), comparable(view.trials, "psnr").drop_duplicates(list(AXES))
    parts, words = [], []
    for other in away:
        there = comparable(other.trials, "psnr").drop_duplicates(axes)
        both = mid.merge(there, on=axes, suffixes=("", "_away"))
        parts.append(both)
        change = [(both[f"{metric}_away"] - both[metric]).mean() for metric in ("psnr", "psnr_foreground")]
        words.append(f"{other.facts.get('target', other.name)}: {change[0]:+.2f} dB, foreground {change[1]:+.2f} dB")
    both = pd.concat(parts, ignore_index=True)
    if both.empty:
        return _nothing("dB", "No setting is stable in both.")
    effects = (both["psnr_away"] - both["psnr"]).groupby([both[axis] for axis in _OF_A_FIT]).mean()
    effect, low, high = _interval(effects)
    verdict, why = _sign(-effects, (-effect, -high, -low))
    ours = both[["study", "number", *axes, "psnr"]]
    theirs = both[["study_away", "number_away", *axes, "psnr_away"]].set_axis(ours.columns, axis=1)
    behind = pd.concat([ours, theirs]).sort_values(axes, kind="stable").drop_duplicates(["study", "number"])
    tested = f"{'; '.join(words)}; {len(both):,} matched settings of {len(effects):,} fits{why}"
    return Found(verdict, tested, behind.reset_index(drop=True), "dB", effect, low, high)


# --- what the tests share

_OF_A_FIT = [axis for axis in AXES if axis != "iterations"]


def _judged(view: StudyView) -> pd.DataFrame:
    """All settings that the filter judged: `high` tells of a CV above 5 % or a member that diverged."""
    trials = view.trials
    rows = trials[trials["state"].isin(["COMPLETE", "PRUNED"]) & trials["stable"].notna()]
    return rows.assign(passed=rows["stable"].eq(True), high=~(rows["cv_percent"] <= HIGH_CV))


def _scored(view: StudyView) -> pd.DataFrame:
    """The stable settings with PSNR, SSIM and VIF of those pairs that have at least six."""
    rows = comparable(view.trials, "psnr").dropna(subset=["ssim", "vif"])
    return rows[rows.groupby(list(PAIR))["number"].transform("size") >= _FEWEST]


def _best_of(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The best row of each pair, indexed by pair; of equal ones the first."""
    ordered = rows.sort_values([metric, "number"], ascending=[False, True])
    return ordered.drop_duplicates(list(PAIR)).set_index(list(PAIR)).sort_index()


def _ends(rows: pd.DataFrame, axis: str) -> list[Any]:
    """The least and the largest value measured; nothing where there is one only."""
    values = rows[axis]
    return [values.min(), values.max()] if values.nunique() > 1 else []


def _change(
    rows: pd.DataFrame,
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
        return _nothing(unit, f"It takes trials that may be compared with {needed}.")
    sets = paired(rows, axis, ends, column)
    if sets.empty:
        return _nothing(unit, f"No settings differ in {axis} = {' and '.join(map(str, ends))} only.")
    before, after = (sets[end].astype(float) for end in ends)
    effects = np.log(after / before) if unit == "times" else after - before
    behind = _rows_of(rows, paired(rows, axis, ends, "number"))
    step = f"{axis} {ends[0]} to {ends[1]}" if axis not in PAIR else f"{ends[1]} less {ends[0]}"
    return _found(effects, behind, column, unit, f"{step}; {words}" if words else step, within)


def _found(
    effects: pd.Series[float],
    behind: pd.DataFrame,
    column: str,
    unit: Unit,
    words: str,
    within: tuple[float, float] | None = None,
) -> Found:
    """An effect that is said to be positive (a ratio: above 1) or, where that is given, within two values.

    Args:
        effects: one per matched set, indexed by the axes on which it is matched; ratios as logarithms.
        behind: the trials they are of.
        column: what is compared.
        unit: of the effects.
        words: which effects they are.
        within: where the effect is said to be.
    """
    of_fits = effects.groupby([name for name in effects.index.names if name != "iterations"]).mean()
    if of_fits.empty:
        return _nothing(unit, "No settings match.")
    ends = _interval(of_fits)
    verdict, why = _sign(of_fits, ends)
    ends = _scaled(ends, unit)
    if within:
        verdict, why = _place(len(of_fits), ends, within)
    why += "" if within else _unlike(of_fits, verdict, unit)
    counts = f"{len(effects):,} matched settings of {len(of_fits):,} fits, higher in {(of_fits > 0).sum():,}"
    return Found(verdict, f"{words}; {counts}{why}", _behind(behind, [column]), unit, *ends)


def _never(rows: pd.DataFrame, side: pd.Series[bool], case: str, here: str, there: str) -> Found:
    """No fit on one side is a case, at any budget, while others are."""
    if side.all() or not side.any():
        return _nothing("share", f"It takes fits {there} and others.")
    inside, outside = (part.groupby(_OF_A_FIT)[case].any() for part in (rows[side], rows[~side]))
    cases, others = int(inside.sum()), int(outside.sum())
    table = [[cases, len(inside) - cases], [others, len(outside) - others]]
    chance = stats.fisher_exact(table, alternative="less").pvalue
    verdict: Verdict = "contradicted" if cases else "supported" if chance < 0.05 else "not enough data"
    longest = rows["iterations"].max()
    ends = int(rows[side & (rows["iterations"] == longest)][case].sum())
    words = f"{here}: {cases:,} of {len(inside):,} fits at some budget, {ends:,} at {longest:,} iterations"
    words += f"; {there}: {others:,} of {len(outside):,} at some"
    words += _WHY + f"none may be chance (p = {chance:.2f})" if verdict == "not enough data" else ""
    behind = rows[side].sort_values([case, *_OF_A_FIT, "iterations"], ascending=[False] + [True] * len(AXES))
    return Found(verdict, words, _behind(behind, ["cv_percent", "stable"]), "share", *_share(cases, len(inside)))


def _best_never(trials: pd.DataFrame, case: pd.Series[bool], asked: str) -> Found:
    """No pair has its best stable setting among the cases."""
    trials = trials.assign(case=case)
    # a pair where all or none of the measured settings are cases decides nothing
    trials = trials[trials.groupby(list(PAIR))["case"].transform("nunique") == 2]
    stable = trials[trials["passed"]]
    best = _best_of(stable, "psnr")
    if best.empty:
        return _nothing("share", "It takes pairs with stable settings, and settings of both kinds.")
    chance = math.prod(1 - stable.groupby(list(PAIR))["case"].mean().to_numpy())
    five = stable.sort_values(["psnr", "number"], ascending=[False, True]).groupby(list(PAIR)).head(5)
    cases = int(best["case"].sum())
    verdict: Verdict = "contradicted" if cases else "supported" if chance < 0.05 else "not enough data"
    words = f"{asked}: {cases} of {len(best)} pairs' best, {int(five['case'].sum())} of {len(five)} among the best five"
    words += _WHY + f"none may be chance (p = {chance:.2f})" if verdict == "not enough data" else ""
    behind = five.sort_values([*PAIR, "psnr"], ascending=[True, True, False])
    return Found(verdict, words, _behind(behind, ["psnr"]), "share", *_share(cases, len(best)))


def _another_slice(view: StudyView, other: StudyView) -> bool:
    """Whether two studies differ in the slice alone, as far as a setting's result depends on it."""
    ours, theirs = (
        {key: value for key, value in one.spec.fingerprint().items() if key.startswith(("target.", "noise.", "fit."))}
        for one in (view, other)
    )
    differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    same_file = view.spec.target.file == other.spec.target.file
    return same_file and differing == {"target.slice"} and view.facts.get("target") != other.facts.get("target")


_WHY = "; not decided: "


def _sign(effects: pd.Series[float], ends: Ends) -> tuple[Verdict, str]:
    """Whether effects are positive, and why that may be open."""
    _, low, high = ends
    if (effects != 0).sum() < _FEWEST:
        return "not enough data", f"{_WHY}fewer than {_FEWEST} that differ"
    if low > 0:
        return "supported", ""
    return ("contradicted", "") if high < 0 else ("not enough data", f"{_WHY}the interval holds no change")


def _unlike(effects: pd.Series[float], verdict: Verdict, unit: Unit) -> str:
    """The values of other axes where the answer, taken alone, is the opposite; or where it is one and the other."""
    found = []
    for axis in effects.index.names:
        levels: list[tuple[Any, Any]] = list(effects.groupby(level=axis))
        ends = {value: _interval(part) for value, part in levels if len(levels) > 1}
        alone = {value: _sign(part, ends[value])[0] for value, part in levels if value in ends}
        decided = {"supported", "contradicted"} & set(alone.values())
        unlike = decided - {verdict} if verdict != "not enough data" else decided if len(decided) == 2 else set()
        found += [
            f"{axis} {value}: {_in_words(*_scaled(ends[value], unit), unit)}"
            for value, answer in alone.items()
            if answer in unlike
        ]
    return f"; unlike at {', '.join(found)}" if found else ""


def _place(count: int, ends: Ends, within: tuple[float, float]) -> tuple[Verdict, str]:
    """Whether an effect is within two values, and why that may be open."""
    (_, low, high), (least, most) = ends, within
    if count < _FEWEST:
        return "not enough data", f"{_WHY}fewer than {_FEWEST} fits"
    if high < least or low > most:
        return "contradicted", ""
    if least <= low and high <= most:
        return "supported", ""
    return "not enough data", f"{_WHY}the interval crosses {least if low < least else most:g}"


def _interval(values: pd.Series[float]) -> Ends:
    """Mean and its 95 % interval by bootstrap."""
    numbers = values.to_numpy(dtype=float)
    mean = float(numbers.mean())
    if np.ptp(numbers) == 0:  # nothing to resample
        return mean, mean, mean
    found = stats.bootstrap((numbers,), np.mean, vectorized=True, rng=np.random.default_rng(0))
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def _scaled(ends: Ends, unit: Unit) -> Ends:
    """Ratios, which are averaged as logarithms, as ratios."""
    return (math.exp(ends[0]), math.exp(ends[1]), math.exp(ends[2])) if unit == "times" else ends


def _in_words(effect: float, low: float, high: float, unit: Unit) -> str:
    form: dict[Unit, tuple[str, float, str]] = {
        "dB": ("+.2f", 1, " dB"),
        "times": (".2f", 1, " times"),
        "share": (".0f", 100, " %"),
        "points": ("+.0f", 100, " points"),
        "rho": ("+.2f", 1, ""),
    }
    digits, scale, name = form[unit]
    value, lower, upper = (f"{scale * number:{digits}}" for number in (effect, low, high))
    return f"{value}{name} [{lower}, {upper}]"


def _share(cases: int, of: int) -> Ends:
    """A share and its exact 95 % interval."""
    interval = stats.binomtest(cases, of).proportion_ci(method="exact")
    return cases / of, float(interval.low), float(interval.high)


def _nothing(unit: Unit, why: str) -> Found:
    return Found("not enough data", why, pd.DataFrame(columns=["study", "number", *AXES]), unit)


def _rows_of(rows: pd.DataFrame, numbers: pd.DataFrame) -> pd.DataFrame:
    """The trials with these numbers, matched ones next to each other."""
    return rows.drop_duplicates("number").set_index("number").loc[numbers.to_numpy().ravel()].reset_index()


def _behind(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return rows[["study", "number", *AXES, *columns]].drop_duplicates(["study", "number"]).reset_index(drop=True)
