"""The thesis' findings, re-tested on a study's own trials.

Each finding is one function below: what it takes from the study, and the rule by which that supports or contradicts
the finding; `verdicts` has what they are decided by. They share five principles:

- Settings are compared that differ on one axis only (matched), whatever axes the study has; which trials count is said
  in `ddstudy.report.tables`.
- The budgets of one fit depend on each other, so a fit, or a pair of matched fits, counts once: the mean over its
  budgets.
- An effect is a mean over the study's own settings with its 95 % interval, exact where it is a share (see
  `ddstudy.report.intervals`). It says how far the effect depends on settings and starts; it says nothing of other
  images, nor of values that the study does not have.
- A study without any effect gets one wrong verdict or more with a probability of at most 5 %: the p-values of all
  findings are corrected together (Holm). Where the data allow both answers, the answer is that there are not enough.
- A finding that says "never" is about a rate: below one in ten is as good as never, as the thesis' own tables have it,
  where one of twelve best settings has the 4 blocks that the best never have. It is supported if the rate is below
  that and no chance, contradicted if it is above.

Findings are about copies of slices by the thesis' decoder, or, where the thesis speaks of others, about several priors;
a study is asked those that are about it.

Where the answer at some value of another axis alone is the opposite, `Answer.tested` says so ("unlike at").
Settings whose input has one row or one column of pixels a tile are left out: their tiles are flat along it whatever the
network, and the thesis has none. Where a study has other values than the thesis, the nearest analogue is tested, and
`Answer.tested` says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ddstudy.errors import UserError
from ddstudy.report.intervals import LEVEL, at_least, at_most, holm, mean_of, share
from ddstudy.report.inverse import levels_of
from ddstudy.report.priors import PRIOR, repeats_of
from ddstudy.report.tables import PAIR, comparable, disturbed, finished, paired, thin_inputs, timed, widened
from ddstudy.report.words import axes_of, named
from ddstudy.spec.options import FUSED, OPTIONS, TILINGS
from ddstudy.thesis.published import beside_the_thesis, by_tiles, seconds_by_blocks
from ddstudy.thesis.verdicts import (
    FEWEST,
    NEVER,
    NOT_APPLICABLE,
    NOT_DECIDED,
    Found,
    Verdict,
    axes_of_fits,
    best_hardly_ever,
    best_of_pairs,
    change,
    decided,
    effect_in_words,
    fewest_and_most,
    from_effects,
    hardly_ever,
    interval_of,
    judged,
    least_and_most,
    nothing_to_tell,
    scored,
    sign,
    trials_behind,
    trials_of,
)

if TYPE_CHECKING:
    from ddstudy.spec.schema import StudySpec
    from ddstudy.store.study import StudyView

About = Literal["copies", "priors"]
FLAT = 1.25  # "similar" times differ by less than this factor; the thesis calls 1.40, that of l from 4 to 6, a rise
TOGETHER = (
    "All findings are tested together (Holm's correction): in a study where none of them has an effect, the chance of "
    "even one wrong verdict is 5 % at most."
)
GAIN = (1.5, 3.5)  # dB: what is 2 to 3 when rounded
SIMILAR = 0.5  # dB: what is less is "similar performance" (sec. 4.1)
ENOUGH, ORIGINAL = 7000, 20000  # iterations: the thesis' most, and those of the original's authors
Test = Callable[["StudyView", Sequence["StudyView"]], Found]


@dataclass(frozen=True)
class Finding:
    """A finding of the thesis.

    Attributes:
        name: short, for the command line.
        statement: what the thesis says.
        source: where.
        rule: how a study decides it.
        about: the studies that are asked.
    """

    name: str
    statement: str
    source: str
    rule: str
    test: Test = field(repr=False)
    about: About = "copies"


@dataclass(frozen=True)
class Answer(Found):
    """What a study says of a finding, beside all others.

    Attributes:
        finding: that is answered.
        p_corrected: the p-value among those of all findings (Holm); the verdict is by this one.
    """

    finding: Finding = field(kw_only=True)
    p_corrected: float = field(kw_only=True, default=math.nan)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the trials behind it, each once."""
        return tuple(dict.fromkeys(self.rows["number"].tolist()))

    @property
    def effect_text(self) -> str:
        """The effect and its interval for people."""
        return "\u2013" if np.isnan(self.effect) else effect_in_words(self.effect, self.low, self.high, self.unit)


def about(spec: StudySpec) -> About | None:
    """Which findings a study is asked: those on copies by the thesis' decoder, those on several priors, or none."""
    if not beside_the_thesis(spec):
        return "copies"
    return "priors" if len(spec.values_of(PRIOR)) > 1 else None


def in_short(answers: Sequence[Answer]) -> str:
    """How many findings were answered how, and which, in a sentence."""
    parts = []
    for verdict, words in (("supported", "supported"), ("contradicted", "contradicted"), ("not enough data", "open")):
        names = [answer.finding.name for answer in answers if answer.verdict == verdict]
        parts.append(f"{len(names)} {words}" + f" ({', '.join(names)})" * bool(names))
    return f"Of {len(answers)} findings, {', '.join(parts[:-1])} and {parts[-1]} here for want of data."


def retest(view: StudyView, others: Sequence[StudyView] = ()) -> list[Answer]:
    """All findings that are about a study, tested on it.

    Args:
        view: the study.
        others: studies of other slices, for the finding on slices away from the middle; of a study with cases these
            are its cases.
    """
    asked = [finding for finding in FINDINGS if finding.about == about(view.spec)]
    others = [*view.each_case, *(other for other in others if about(other.spec) == about(view.spec))]
    axes = axes_of(view, *others)
    view, *others = (
        replace(one, trials=_drawing(widened(one, axes)).assign(study=one.name)) for one in (view, *others)
    )
    left_out = disturbed(view.trials)
    words = f" Left out: {left_out:,} trials that other programs disturbed." if left_out else ""
    found = [finding.test(view, others) for finding in asked]
    corrected = holm([one.p for one in found])
    count = sum(not math.isnan(p) for p in corrected)
    answers = []
    for finding, one, p in zip(asked, found, corrected, strict=True):
        if one.verdict != "not enough data" and p >= LEVEL:
            why = f"{NOT_DECIDED}p = {one.p:.2g} alone, {p:.2g} among {count} findings (Holm)"
            one = replace(one, verdict="not enough data", tested=one.tested + why)
        if one.unit == "times":
            one = replace(one, tested=one.tested + words)
        rows = one.rows.replace(
            {axis: {NOT_APPLICABLE[OPTIONS[axis].kind]: math.nan} for axis in axes if axis in one.rows}
        )
        answers.append(Answer(**vars(replace(one, rows=rows)), finding=finding, p_corrected=p))
    return answers


def ask(finding: Finding, view: StudyView, others: Sequence[StudyView] = ()) -> Answer:
    """One finding, tested beside all others on one study; arguments as for `retest`.

    Raises:
        UserError: the study is not asked it.
    """
    answers = {answer.finding.name: answer for answer in retest(view, others)}
    if finding.name not in answers:
        of = "copies by the thesis' decoder" if finding.about == "copies" else "several priors"
        raise UserError(f"'{finding.name}' is about {of}, not about {view.name}", f"Valid: {', '.join(answers)}.")
    return answers[finding.name]


def _axes(view: StudyView) -> list[str]:
    """The axes of a study: what may differ between two of its settings."""
    return [axis for axis in OPTIONS if axis in view.trials]


def _drawing(view: StudyView) -> pd.DataFrame:
    """The trials whose network can draw more than flat tiles, and a value on every axis."""
    trials = view.trials
    if thin := thin_inputs(view):
        trials = trials[~pd.MultiIndex.from_frame(trials[["tiling", "s"]]).isin(thin)]
    partly = [axis for axis in _axes(view) if trials[axis].isna().any()]
    return trials.assign(**{axis: trials[axis].fillna(NOT_APPLICABLE[OPTIONS[axis].kind]) for axis in partly})


def as_table(answers: Sequence[Answer]) -> pd.DataFrame:
    """Answers as a table, indexed by the findings' names.

    Returns:
        Columns `statement`, `verdict`, `effect`, `low`, `high`, `unit`, `p`, `p_corrected`, `tested`, `trials`
        (numbers of those behind it), `rule` and `source`.
    """
    columns: dict[str, Callable[[Answer], object]] = {
        "statement": lambda answer: answer.finding.statement,
        "verdict": lambda answer: answer.verdict,
        "effect": lambda answer: answer.effect,
        "low": lambda answer: answer.low,
        "high": lambda answer: answer.high,
        "unit": lambda answer: answer.unit,
        "p": lambda answer: answer.p,
        "p_corrected": lambda answer: answer.p_corrected,
        "tested": lambda answer: answer.tested,
        "trials": lambda answer: answer.numbers,
        "rule": lambda answer: answer.finding.rule,
        "source": lambda answer: answer.finding.source,
    }
    rows = [{name: of(answer) for name, of in columns.items()} for answer in answers]
    names = pd.Index([answer.finding.name for answer in answers], name="finding", dtype=object)
    return pd.DataFrame(rows, index=names, columns=list(columns))


# --- the findings, in the thesis' order of appearance

FINDINGS: list[Finding] = []


def _finding(name: str, statement: str, source: str, rule: str, about: About = "copies") -> Callable[[Test], Test]:
    def register(test: Test) -> Test:
        FINDINGS.append(Finding(name, statement, source, rule, test, about))
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
    axes = _axes(view)
    sets = paired(finished(view.trials), "noise", ends, "psnr", axes)
    words = f"{(sets['blur3'] - sets['uniform']).mean():+.2f} dB over {len(sets):,}, stable or not" if len(sets) else ""
    return change(comparable(view.trials, "psnr"), axes, "noise", ends, "psnr", "dB", words)


@_finding(
    "time-l",
    "Time grows with the blocks l",
    "sec. 4.1, Table 4.2",
    "Mean ratio of the time with the most blocks to that with the fewest, over matched settings: supported where its "
    "interval lies above 1, contradicted where below.",
)
def _time_of_blocks(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = timed(view.trials)
    return change(rows, _axes(view), "l", least_and_most(rows, "l"), "seconds", "times")


@_finding(
    "time-s",
    "Time grows with a smaller scale factor s",
    "sec. 4.1, Table 4.2",
    "Mean ratio of the time with the smallest s to that with the largest, over matched settings: supported where its "
    "interval lies above 1, contradicted where below.",
)
def _time_of_scale(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = timed(view.trials)
    return change(rows, _axes(view), "s", least_and_most(rows, "s")[::-1], "seconds", "times")


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
    blocks, scales = least_and_most(rows, "l"), least_and_most(rows, "s")[::-1]
    if len(blocks) < 2 or len(scales) < 2:
        return nothing_to_tell("times", "It takes two values of l and two of s.")
    axes = _axes(view)
    at = {s: paired(rows[rows["s"] == s], "l", blocks, "seconds", axes).droplevel("s") for s in scales}
    numbers = {s: paired(rows[rows["s"] == s], "l", blocks, "number", axes).droplevel("s") for s in scales}
    common = at[scales[0]].index.intersection(at[scales[1]].index)
    few, many = blocks
    large, small = (np.log(at[s].loc[common]) for s in scales)
    of_l = (large[many] - large[few] + small[many] - small[few]) / 2
    of_s = (small[few] - large[few] + small[many] - large[many]) / 2
    behind = trials_of(rows, pd.concat([numbers[s].loc[common] for s in scales], axis=1))
    published = seconds_by_blocks()  # (l, s) -> seconds
    thesis_l = math.sqrt(published[6, 32] / published[4, 32] * published[6, 8] / published[4, 8])
    thesis_s = math.sqrt(published[4, 8] / published[4, 32] * published[6, 8] / published[6, 32])
    words = (
        f"l {few} to {many}: {np.exp(of_l.mean()):.2f} times; s {scales[0]} to {scales[1]}: "
        f"{np.exp(of_s.mean()):.2f} times (thesis, by the same formula on Table 4.2: {thesis_l:.2f} for l 4 to 6, "
        f"{thesis_s:.2f} for s 32 to 8)"
    )
    return from_effects(of_l - of_s, behind, axes, "seconds", "times", words)


@_finding(
    "time-k-flat",
    "Time is flat up to 64 channels",
    "sec. 4.1, Fig. 4.3",
    f"Mean ratio of the time with the most channels up to 64 to that with the fewest, over matched settings: supported "
    f"where its interval lies within {1 / FLAT:g} and {FLAT:g}, contradicted where it lies outside.",
)
def _time_flat(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = timed(view.trials)
    return change(
        rows, _axes(view), "k", least_and_most(rows[rows["k"] <= 64], "k"), "seconds", "times", within=(1 / FLAT, FLAT)
    )


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
    return change(rows, _axes(view), "k", ends, "seconds", "times")


@_finding(
    "time-4x5",
    "4x5 tiles take more time",
    "sec. 4.1, Table 4.1",
    "Mean ratio of the time with 4x5 tiles to the geometric mean of the times with the study's other tilings, over "
    "matched settings: supported where its interval lies above 1, contradicted where below.",
)
def _time_of_most_tiles(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = timed(view.trials)
    tilings = [tiling for tiling in TILINGS if tiling in set(rows["tiling"])]
    if len(tilings) < 2 or tilings[-1] != "4x5":
        return nothing_to_tell("times", "It takes times of 4x5 tiles and of other tilings.")
    axes = _axes(view)
    seconds = paired(rows, "tiling", tilings, "seconds", axes)
    behind = trials_of(rows, paired(rows, "tiling", tilings, "number", axes))
    words = f"4x5 against {', '.join(tilings[:-1])} (thesis: 1.36, of the means in Table 4.1)"
    effects = pd.DataFrame({tiling: np.log(seconds["4x5"] / seconds[tiling]) for tiling in tilings[:-1]}).mean(axis=1)
    return from_effects(effects, behind, axes, "seconds", "times", words)


@_finding(
    "cv-64",
    "The CV is above 5 % with more than 64 channels only",
    "sec. 4.2",
    f"Share of the fits of at most 64 channels that have a CV above 5 % at any of their budgets: supported where it is "
    f"below {NEVER:.0%} (exact binomial test) and below that of the larger ones (Fisher's exact test), contradicted "
    f"where it is above {NEVER:.0%}.",
)
def _cv_of_channels(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = judged(view)
    if view.spec.fit.members < 2:
        return nothing_to_tell("share", "It takes ensembles.")
    return hardly_ever(rows, _axes(view), rows["k"] <= 64, "high", "CV > 5 % with k <= 64", "with k > 64")


@_finding(
    "tiles",
    "More tiles, less stable",
    "sec. 4.2, Fig. 4.4",
    "Share of settings with a CV above 5 %, most tiles less fewest of each set of matched settings: supported where "
    "the interval of the difference lies above 0, contradicted where below.",
)
def _tiles(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = judged(view)
    axes = _axes(view)
    ends = fewest_and_most(rows, axes, "high")
    if view.spec.fit.members < 2 or ends.empty:
        return nothing_to_tell("points", "It takes ensembles and two tilings.")
    shares = rows.groupby("tiling")["high"].mean()
    words = "most less fewest tiles; CV > 5 %: " + ", ".join(
        f"{tiling} {shares[tiling]:.0%}" for tiling in TILINGS if tiling in shares
    )
    effects = ends["many", "high"].astype(float) - ends["few", "high"].astype(float)
    behind = trials_of(rows, ends[[("few", "number"), ("many", "number")]])
    return from_effects(effects, behind, axes, "high", "points", words)


@_finding(
    "time-unstable",
    "Unstable fits take longer",
    "sec. 4.2, Fig. 4.5",
    "Mean ratio of the times of fits whose CV is above 5 % to those of the others, over settings that differ in noise "
    "only, as noise changes nothing of what is computed: supported where its interval lies above 1, contradicted where "
    "below.",
)
def _time_of_unstable(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = judged(view)
    rows = timed(rows[rows["cv_percent"].notna()])
    axes = _axes(view)
    alike = [axis for axis in axes if axis != "noise"]
    rows = rows[rows.groupby(alike)["high"].transform("nunique") == 2].sort_values([*alike, "high", "number"])
    if view.spec.fit.members < 2 or rows.empty:
        return nothing_to_tell("times", "It takes ensembles of which some have a CV above 5 % with one noise only.")
    logs = np.log(rows["seconds"]).groupby([rows[axis] for axis in [*alike, "high"]]).mean().unstack("high")
    words = "CV > 5 % against others of the same k, s, l, iterations and tiling"
    return from_effects(logs[True] - logs[False], rows, axes, "seconds", "times", words)


@_finding(
    "k-128",
    "All settings with 128 channels and more are discarded by the filter",
    "sec. 4.3",
    f"Share of the fits of at least 128 channels that are stable at any of their budgets: supported where it is below "
    f"{NEVER:.0%} (exact binomial test) and below that of the smaller ones (Fisher's exact test), contradicted where "
    f"it is above {NEVER:.0%}.",
)
def _many_channels(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = judged(view)
    return hardly_ever(rows, _axes(view), rows["k"] >= 128, "passed", "stable with k >= 128", "with k < 128")


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
        return nothing_to_tell("dB", "It takes stable ensembles.")
    axes = _axes(view)
    rows = rows.assign(gain=rows["psnr"] - rows["psnr_1dd"]).sort_values([*axes_of_fits(axes), "iterations"])
    of_pairs = rows.groupby(list(PAIR))["gain"].mean()
    words = f"{members}DD less 1DD; means of pairs {of_pairs.min():.1f} to {of_pairs.max():.1f} dB"
    effects = rows.set_index(axes)["gain"]
    return from_effects(effects, rows, axes, "gain", "dB", words, within=GAIN)


@_finding(
    "tiles-psnr",
    "More tiles, lower quality",
    "sec. 4.3, Table 4.3",
    "PSNR with the fewest tiles less that with the most, of each set of matched stable settings: supported where the "
    "interval of its mean lies above 0, contradicted where below.",
)
def _quality_of_tiles(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = comparable(view.trials, "psnr")
    axes = _axes(view)
    ends = fewest_and_most(rows, axes, "psnr")
    if ends.empty:
        return nothing_to_tell("dB", "It takes settings that are stable with two tilings.")
    best = rows.groupby(["noise", "tiling"])["psnr"].max().unstack().reindex(columns=list(TILINGS)).mean().dropna()
    words = "fewest less most tiles; best of each noise, mean: " + ", ".join(
        f"{tiling} {value:.2f} dB" for tiling, value in best.items()
    )
    words += " (thesis: 1x1 33.39, 2x2 32.85, 3x3 32.65, 4x5 31.61)"
    of_tiles = fewest_and_most(comparable(by_tiles(view.trials, "psnr"), "psnr"), axes, "psnr")
    if len(of_tiles):
        effects = of_tiles["few", "psnr"] - of_tiles["many", "psnr"]
        of_fits = effects.groupby(axes_of_fits([str(name) for name in effects.index.names])).mean()
        words += f"; read as means over tiles {of_fits.mean():+.2f} dB"
    behind = trials_of(rows, ends[[("few", "number"), ("many", "number")]])
    return from_effects(ends["few", "psnr"] - ends["many", "psnr"], behind, axes, "psnr", "dB", words)


def _at_best(
    name: str, finding: str, axis: str, cases: tuple[str, float], analogue: Literal["fewest", "largest"] | None
) -> None:
    sign, limit = cases
    inside = {"<=": np.less_equal, "<": np.less, ">=": np.greater_equal}[sign]

    def test(view: StudyView, others: Sequence[StudyView]) -> Found:
        trials = judged(view)
        values = sorted(set(trials[axis]))
        case = [value for value in values if inside(value, limit)]
        asked = f"{axis} {sign} {limit:g}"
        if not 0 < len(case) < len(values):
            if analogue is None or len(values) < 2:
                return nothing_to_tell("share", f"It takes values of {axis} on both sides of {limit:g}.")
            case = [values[0] if analogue == "fewest" else values[-1]]
            asked = f"{axis} = {case[0]}, the {analogue} here"
        return best_hardly_ever(trials, _axes(view), axis, trials[axis].isin(case), asked)

    _finding(
        name,
        f"The best settings never have {finding}",
        "sec. 4.3, Tables 4.3 to 4.5",
        f"Share of the pairs of noise and tiling whose best stable setting by PSNR has {axis} {sign} {limit:g}. A pair "
        f"counts if that setting was also measured with {axis} on the other side, all else equal; at least half must "
        f"count. Supported where the share is at most {NEVER:.0%} and stable settings drawn at random from those so "
        f"matched would have it higher (exact), contradicted where it is above {NEVER:.0%} (exact binomial test)."
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
    "Count of pairs of noise and tiling in which the best stable setting by PSNR is that by SSIM: supported where it "
    "is more than half of the study's own pairs and settings drawn at random would agree less often (exact), "
    "contradicted where it is less than half (exact binomial test). The interval is that of the share among pairs like "
    "these.",
)
def _same_best(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = scored(view)
    best = best_of_pairs(rows, "psnr")
    if best.empty:
        return nothing_to_tell("share", "It takes pairs with six stable settings.")
    same = {metric: int((best["number"] == best_of_pairs(rows, metric)["number"]).sum()) for metric in ("ssim", "vif")}
    ends = share(same["ssim"], len(best))
    lean: Verdict
    if ends[0] > 0.5:
        lean, p = "supported", at_least(same["ssim"], 1 / rows.groupby(list(PAIR)).size())
    else:
        lean, p = "contradicted", at_most(same["ssim"], [0.5] * len(best))
    verdict, why = decided(lean, p, "the interval holds one half" if ends[0] <= 0.5 else "it may be chance")
    words = (
        f"PSNR's best is SSIM's best in {same['ssim']} of {len(best)} pairs (thesis: 9 of 12), "
        f"VIF's in {same['vif']} (thesis: 8){why}"
    )
    behind = pd.concat([best, best_of_pairs(rows, "ssim")]).sort_index(kind="stable").reset_index()
    return Found(verdict, words, trials_behind(behind, _axes(view), ["psnr", "ssim", "vif"]), "share", *ends, p)


@_finding(
    "vif",
    "VIF agrees less with PSNR than SSIM does",
    "sec. 4.3",
    "Rank correlation of PSNR with SSIM less that of PSNR with VIF, over the stable settings of each pair of noise and "
    "tiling: supported where the interval of its mean over pairs lies above 0, contradicted where below.",
)
def _ranks(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows = scored(view).sort_values([*PAIR, "number"])
    of_pairs = {
        pair: [group["psnr"].rank().corr(group[metric].rank()) for metric in ("ssim", "vif")]
        for pair, group in rows.groupby(list(PAIR))
        if all(group[metric].nunique() > 1 for metric in ("psnr", "ssim", "vif"))
    }
    if not of_pairs:
        return nothing_to_tell("rho", "It takes pairs with six stable settings.")
    ranks = pd.DataFrame.from_dict(of_pairs, orient="index", columns=["ssim", "vif"])
    words = f"PSNR and SSIM {ranks['ssim'].mean():.2f}, PSNR and VIF {ranks['vif'].mean():.2f}, {len(ranks)} pairs"
    effect = mean_of(ranks["ssim"] - ranks["vif"])
    verdict, why, p = sign(effect)
    behind = trials_behind(rows, _axes(view), ["psnr", "ssim", "vif"])
    return Found(verdict, words + why, behind, "rho", effect.mean, effect.low, effect.high, p)


@_finding(
    "slices",
    "Results are worse away from the mid slice",
    "ch. 5, Fig. 5.1",
    "PSNR in the foreground of the same settings on the mid slice less that on other slices of the same volume and "
    "plane, over settings that are stable in both: supported where the interval lies above 0, contradicted where "
    "below. Over the whole slice more black background raises PSNR by itself. It takes a study of the mid slice and "
    "others of other slices, with the same image, noise and fit options.",
)
def _slices(view: StudyView, others: Sequence[StudyView]) -> Found:
    if view.by_case is not None:  # its cases are among the others
        view = next((other for other in others if other.spec.target.slice == "mid"), view)
    away = [other for other in others if _another_slice(view, other)]
    if view.spec.target.slice != "mid" or not away:
        return nothing_to_tell(
            "dB",
            "It takes a study of the mid slice first, and others of the same volume, or slices as its cases.",
        )
    axes, metric = _axes(view), "psnr_foreground"
    mid = comparable(view.trials, metric).drop_duplicates(axes)
    parts, words = [], []
    for other in away:
        there = comparable(other.trials, metric).drop_duplicates(axes)
        both = mid.merge(there, on=axes, suffixes=("", "_away"))
        parts.append(both)
        of_fits = both.groupby(axes_of_fits(axes))
        differs = {
            name: (of_fits[f"{name}_away"].mean() - of_fits[name].mean()).mean()
            for name in (metric, "psnr", "ssim", "vif")
        }
        words.append(
            f"{other.facts.get('target', other.name)}: foreground {differs[metric]:+.2f} dB, whole slice "
            f"{differs['psnr']:+.2f} dB, SSIM {differs['ssim']:+.3f}, VIF {differs['vif']:+.3f}"
        )
    both = pd.concat(parts, ignore_index=True)
    if both.empty:
        return nothing_to_tell("dB", "No setting is stable in both, with a PSNR of the foreground.")
    effects = (both[metric] - both[f"{metric}_away"]).groupby([both[axis] for axis in axes_of_fits(axes)]).mean()
    effect = mean_of(effects)
    verdict, why, p = sign(effect)
    ours = both[["study", "number", *axes, metric]]
    theirs = both[["study_away", "number_away", *axes, f"{metric}_away"]].set_axis(ours.columns, axis=1)
    behind = pd.concat([ours, theirs]).sort_values(axes, kind="stable").drop_duplicates(["study", "number"])
    tested = f"mid less away; {'; '.join(words)}; {len(both):,} matched settings of {len(effects):,} fits{why}"
    return Found(verdict, tested, behind.reset_index(drop=True), "dB", effect.mean, effect.low, effect.high, p)


def _another_slice(view: StudyView, other: StudyView) -> bool:
    """Whether two studies differ in the slice alone, as far as a setting's result depends on it."""
    ours, theirs = (
        {key: value for key, value in one.spec.fingerprint().items() if key.startswith(("target.", "noise.", "fit."))}
        for one in (view, other)
    )
    differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    same_file = view.spec.target.file == other.spec.target.file
    return same_file and differing == {"target.slice"} and view.facts.get("target") != other.facts.get("target")


# --- where the thesis speaks of other priors


@_finding(
    "time-variant",
    "The thesis' decoder is faster than the original at equal quality",
    "sec. 4.1",
    "Mean ratio of the seconds that deep_decoder_2019 and deep_decoder take to the same PSNR, the lower one of their "
    "best, over stable fits of equal channels, blocks and inputs (s = 2^l); between budgets, the logarithm of the "
    "seconds is linear in PSNR. Supported where the interval lies above 1, contradicted where below.",
    "priors",
)
def _time_of_variant(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows, axes = timed(view.trials), _axes(view)
    rows = rows[rows["stable"] & rows["psnr"].notna()]
    if not {"s", "l"} <= set(axes) or not set(FUSED) <= set(rows[PRIOR]):
        return nothing_to_tell("times", f"It takes trials of {' and '.join(FUSED)} that had their device alone.")
    variant = (rows[PRIOR] == FUSED[0]) & (rows["s"] == 2 ** rows["l"])
    rows = rows[variant | (rows[PRIOR] == FUSED[1])].sort_values(["iterations", "number"])
    alike = [axis for axis in axes_of_fits(axes) if axis not in (PRIOR, "s")]
    effects, gains, behind = {}, [], []
    for key, both in rows.groupby(alike):
        ours, theirs = (both[both[PRIOR] == kind] for kind in FUSED)
        if ours.empty or theirs.empty:
            continue
        psnr = min(ours["psnr"].max(), theirs["psnr"].max())
        if not math.isnan(ratio := _seconds_to(theirs, psnr) - _seconds_to(ours, psnr)):
            effects[key] = ratio
            gains.append(theirs["psnr"].max() - ours["psnr"].max())
            behind += [ours, theirs]
    if not effects:
        return nothing_to_tell("times", "No fits of both reach the same PSNR after their first budget.")
    words = f"{FUSED[1]} against {FUSED[0]}; its best PSNR is {np.mean(gains):+.2f} dB on average"
    found = pd.Series(list(effects.values()), pd.MultiIndex.from_tuples(effects, names=alike))
    return from_effects(found, pd.concat(behind), axes, "seconds", "times", words)


@_finding(
    "iterations",
    f"{ORIGINAL:,} iterations are not needed",
    "sec. 4.1",
    f"PSNR of both Deep Decoders after {ORIGINAL:,} iterations less that after at most {ENOUGH:,}, over fits that are "
    f"stable at both: supported where the interval lies below {SIMILAR:g} dB, contradicted where above. A study "
    f"without so many is asked about its longest budget, and the longest of those up to {ENOUGH / ORIGINAL:.0%} of it.",
    "priors",
)
def _iterations(view: StudyView, others: Sequence[StudyView]) -> Found:
    rows, axes = comparable(view.trials, "psnr"), _axes(view)
    rows = rows[rows[PRIOR].isin(FUSED)]
    budgets = sorted(set(rows["iterations"]))
    longest = ORIGINAL if ORIGINAL in budgets else max(budgets, default=0)
    shorter = [budget for budget in budgets if budget <= longest * ENOUGH / ORIGINAL]
    if not shorter:
        return nothing_to_tell(
            "dB", f"It takes a Deep Decoder at two budgets, one up to {ENOUGH / ORIGINAL:.0%} of the other."
        )
    ends = [shorter[-1], longest]
    sets = paired(rows, "iterations", ends, "psnr", axes)
    effects = sets[ends[1]] - sets[ends[0]]
    behind = trials_of(rows, paired(rows, "iterations", ends, "number", axes))
    each = ", ".join(f"{kind} {some.mean():+.2f} dB" for kind, some in effects.groupby(level=PRIOR))
    words = f"iterations {ends[0]:,} to {ends[1]:,}: {each}"
    return from_effects(effects, behind, axes, "psnr", "dB", words, within=(-math.inf, SIMILAR))


@_finding(
    "noise-levels",
    "The Deep Decoder recovers more than other priors at every noise level",
    "sec. 1.3",
    "PSNR of a Deep Decoder less that of any other prior, at the noise level where that is least: supported where the "
    "interval lies above 0 at every level, contradicted where it lies below 0 at one (p times the number of levels). "
    "Settings are stable; those chosen on every other measurement (slice, seed) are judged on those between, and the "
    "other way round, so that none is chosen by what it is judged by. A prior wins at a level where its interval "
    "against each other lies above 0 (p times the number of these).",
    "priors",
)
def _noise_levels(view: StudyView, others: Sequence[StudyView]) -> Found:
    axes, levels = _axes(view), levels_of(view)
    repeats = repeats_of(axes, levels)
    setting = [axis for axis in axes if axis not in (*levels, *repeats)]
    takes = nothing_to_tell(
        "dB", "It takes a Deep Decoder and another prior on several slices or seeds of measurements."
    )
    if not repeats:
        return takes
    means, words, behind = [], [], []
    rows = comparable(view.trials, "psnr").drop_duplicates(axes)
    if "fit.seed" in repeats:  # what has no starts is the same for each
        alone = rows["fit.seed"] == NOT_APPLICABLE[int]
        starts = rows.loc[~alone, ["fit.seed"]].drop_duplicates()
        rows = pd.concat([rows[~alone], rows[alone].drop(columns="fit.seed").merge(starts, how="cross")])
    for level, here in rows.groupby(levels) if levels else [((), rows)]:
        scores, numbers = (here.pivot(index=setting, columns=repeats, values=of) for of in ("psnr", "number"))
        whole = scores.notna().all(axis=1)
        scores, numbers = scores[whole], numbers[whole]
        kinds = scores.index.get_level_values(PRIOR)
        decoders = kinds.isin(FUSED)
        if decoders.all() or not decoders.any() or len(scores.columns) < 2:
            continue
        means.append(mean_of(_chosen_on_others(scores[decoders]) - _chosen_on_others(scores[~decoders])))
        each = {kind: _chosen_on_others(scores[kinds == kind]) for kind in dict.fromkeys(kinds)}
        words.append(f"{_where(levels, level)}: {_winner(each)}")
        of_level = here[here["number"].isin(numbers.to_numpy().ravel())]
        behind.append(of_level.sort_values([*repeats, "psnr"], ascending=[True] * len(repeats) + [False]))
    if not means:
        return takes
    least = min(means, key=lambda mean: mean.mean)
    lean: Verdict = "supported" if least.mean > 0 else "contradicted"
    p = max(mean.p(0) for mean in means)
    if lean == "contradicted":
        p = min(1.0, min(mean.p(0) for mean in means if mean.mean <= 0) * len(means))
    few = len(least.values) < FEWEST
    verdict, why = decided(lean, p, f"fewer than {FEWEST} measurements" if few else "an interval holds no change")
    counts = f"{len(least.values)} measurements at each of {len(means)} levels"
    rows = trials_behind(pd.concat(behind), axes, ["psnr"])
    return Found(verdict, f"{'; '.join(words)}; {counts}{why}", rows, "dB", least.mean, least.low, least.high, p)


def _seconds_to(rows: pd.DataFrame, psnr: float) -> float:
    """Logarithm of the seconds to a PSNR of a fit, whose budgets ascend; NaN if its first one is beyond that."""
    better = rows[~(rows["psnr"] <= rows["psnr"].cummax().shift())]
    return float(np.interp(psnr, better["psnr"], np.log(better["seconds"]), left=math.nan))


def _chosen_on_others(scores: pd.DataFrame) -> pd.Series[float]:
    """On each measurement (a column) the score of that setting (a row) which is best on the other half of them.

    Halves, not all others but one: those choices share nearly all that they are made on, and the differences that come
    of them are too much alike (14 to 32 % wrong verdicts on two priors that are equal, against 3 to 8).
    """
    table, odd = scores.to_numpy(), np.arange(len(scores.columns)) % 2 == 1
    best = np.where(odd, table[:, ~odd].mean(axis=1).argmax(), table[:, odd].mean(axis=1).argmax())
    return pd.Series(table[best, np.arange(len(odd))], scores.columns)


def _winner(each: dict[str, pd.Series[float]]) -> str:
    """Which of some priors is the best, and by how much over the next, in words."""
    first, *following = sorted(each, key=lambda kind: -each[kind].mean())
    gains = [mean_of(each[first] - each[kind]) for kind in following]
    p = max(gain.p(0) for gain in gains) * len(gains)
    sure = "wins" if p < LEVEL else "is the first, maybe by chance"
    return f"{first} {sure}, {effect_in_words(*interval_of(gains[0], 'dB'), 'dB')} over {following[0]}"


def _where(levels: Sequence[str], level: tuple[Any, ...]) -> str:
    """Values of the axes of a task, in words, those that apply."""
    there = [(axis, value) for axis, value in zip(levels, level, strict=True) if value != NOT_APPLICABLE[type(value)]]
    return ", ".join(value if axis == "task.kind" else named(axis, value) for axis, value in there) or "one level"
