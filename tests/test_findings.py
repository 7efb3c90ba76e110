"""The thesis' findings re-tested: known effects are found, and every number is recomputed by loops."""

import dataclasses
import itertools
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

import ddstudy.thesis.panels  # noqa: F401 - adds its kinds
from ddstudy.errors import UserError
from ddstudy.report import comparison
from ddstudy.report.page import render
from ddstudy.report.panels import parse_panel
from ddstudy.spec.files import parse_spec, read_spec
from ddstudy.spec.options import NOISES, THESIS, TILINGS
from ddstudy.spec.options import THESIS as AXES
from ddstudy.store.study import StudyView, trials_table
from ddstudy.thesis import findings, verdicts

THESIS_LIKE = {
    "k": [8, 64, 96, 128],
    "s": [8, 32],
    "l": [4, 6],
    "iterations": [2000, 5000],
    "noise": list(NOISES),
    "tiling": list(TILINGS),
}
PAIRS = list(itertools.product(TILINGS, NOISES))


def study(name="study", space=THESIS_LIKE, facts=None, tree=None, **columns):
    """One measured, stable trial per setting; a column is a value, or a function of setting and random numbers."""
    random = np.random.default_rng(1)
    spec = parse_spec({"name": name, "space": space} | (tree or {}), "test")
    columns = {
        "state": "COMPLETE",
        "stable": True,
        "shared": False,
        "disturbed": False,
        "psnr": lambda x, r: 30 + r.normal(0, 0.1),
        "psnr_foreground": 25.0,
        "ssim": lambda x, r: r.uniform(),
        "ms_ssim": 0.9,
        "reason": "",
        "vif": lambda x, r: r.uniform(),
        "cv_percent": 1.0,
        "seconds": lambda x, r: math.exp(r.normal(0, 0.01)),
        "parameters": 1.0,
        "iterations_done": lambda x, r: float(x.iterations),
        "device": "a processor",
        "engine": "fused float32",
        "started": pd.Timestamp(2026, 1, 1, 12, 0),
        "finished": pd.Timestamp(2026, 1, 1, 12, 1),
    } | columns
    rows = []
    for number, setting in enumerate(spec.search_space):
        x = SimpleNamespace(**setting, fit=setting.fit)
        row = {column: value(x, random) if callable(value) else value for column, value in columns.items()}
        rows.append(dict(setting) | {"number": number, "fit_id": setting.fit.id} | row)
    trials = pd.DataFrame(rows)
    if "psnr_1dd" not in trials:
        trials["psnr_1dd"] = trials["psnr"] - 2.5
    for metric in ("psnr", "ssim", "vif"):
        if f"{metric}_tiles" not in trials:
            trials[f"{metric}_tiles"] = trials[metric]
    return StudyView(name, spec, {"target": "MNI152 T1 axial 94", **(facts or {})}, trials)


def answer(name, view, *others):
    """Of a finding that is tested alone, without a correction for others."""
    finding = next(finding for finding in findings.FINDINGS if finding.name == name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "FINDINGS", [finding])
        return findings.ask(finding, view, others)


def best(inside, of=PAIRS):
    """PSNR whose best setting of the pairs in `of` is one of those `inside`, and not of the others."""
    return lambda x, r: 30 + r.uniform() + 2 * (inside(x) == ((x.tiling, x.noise) in of))


def grows(value, by, of=1.0):
    return lambda x, r: (by if value(x) else of) * math.exp(r.normal(0, 0.01))


def often(tiling):
    """A CV that is high in half of the settings of one tiling."""
    return lambda x, r: 9.0 if x.tiling == tiling and r.uniform() < 0.5 else 1.0


SIMPLEX = lambda x, r: 9.0 if x.noise == "simplex" else 1.0  # noqa: E731

# name, the verdict, the trials that make it, and the effect where it is known
CASES = [
    ("blur", "supported", {"psnr": lambda x, r: 30 + 0.5 * (x.noise == "blur3") + r.normal(0, 0.1)}, 0.5),
    ("blur", "contradicted", {"psnr": lambda x, r: 30 - 0.5 * (x.noise == "blur3") + r.normal(0, 0.1)}, -0.5),
    ("blur", "not enough data", {"psnr": lambda x, r: 30 + 5 * r.choice([-1.0, 1.0])}, None),
    ("time-l", "supported", {"seconds": grows(lambda x: x.l == 6, 1.4)}, 1.4),
    ("time-l", "contradicted", {"seconds": grows(lambda x: x.l == 6, 0.9)}, 0.9),
    ("time-l", "not enough data", {"seconds": lambda x, r: math.exp(r.choice([-1.0, 1.0]))}, None),
    ("time-s", "supported", {"seconds": grows(lambda x: x.s == 8, 1.1)}, 1.1),
    ("time-s", "contradicted", {"seconds": grows(lambda x: x.s == 8, 0.8)}, 0.8),
    ("time-s", "not enough data", {"seconds": 2.0}, 1.0),
    ("time-l-s", "supported", {"seconds": lambda x, r: 1.4 ** (x.l == 6) * 1.1 ** (x.s == 8)}, 1.27),
    ("time-l-s", "contradicted", {"seconds": lambda x, r: 1.4 ** (x.s == 8) + r.normal(0, 1e-3)}, 1 / 1.4),
    ("time-l-s", "not enough data", {"seconds": lambda x, r: math.exp(r.choice([-1.0, 1.0]))}, None),
    ("time-k-flat", "supported", {"seconds": grows(lambda x: x.k == 64, 1.1)}, 1.1),
    ("time-k-flat", "contradicted", {"seconds": grows(lambda x: x.k == 64, 3)}, 3.0),
    ("time-k-flat", "contradicted", {"seconds": grows(lambda x: x.k == 64, 0.5)}, 0.5),
    ("time-k-flat", "not enough data", {"seconds": lambda x, r: 1.25 ** (x.k == 64) * math.exp(r.normal(0, 0.2))},
     None),
    ("time-k-rise", "supported", {"seconds": grows(lambda x: x.k > 64, 2)}, 2.0),
    ("time-k-rise", "contradicted", {"seconds": grows(lambda x: x.k > 64, 0.5)}, 0.5),
    ("time-k-rise", "not enough data", {"seconds": 1.0}, 1.0),
    ("cv-64", "supported", {"cv_percent": lambda x, r: 9.0 if x.k == 128 else 1.0}, 0.0),
    ("cv-64", "contradicted", {"cv_percent": lambda x, r: 9.0 if x.k in (8, 128) else 1.0}, 0.5),
    ("cv-64", "not enough data", {}, 0.0),
    ("tiles", "supported", {"cv_percent": often("4x5")}, None),
    ("tiles", "contradicted", {"cv_percent": often("1x1")}, None),
    ("tiles", "not enough data", {}, 0.0),
    ("time-4x5", "supported", {"seconds": grows(lambda x: x.tiling == "4x5", 1.3)}, 1.3),
    ("time-4x5", "contradicted", {"seconds": grows(lambda x: x.tiling == "4x5", 0.8)}, 0.8),
    ("time-4x5", "not enough data", {"seconds": lambda x, r: math.exp(r.choice([-1.0, 1.0]))}, None),
    ("time-unstable", "supported", {"seconds": grows(lambda x: x.noise == "simplex", 1.3), "cv_percent": SIMPLEX}, 1.3),
    ("time-unstable", "contradicted", {"seconds": grows(lambda x: x.noise == "simplex", 0.8), "cv_percent": SIMPLEX},
     0.8),
    ("time-unstable", "not enough data", {"seconds": 2.0, "cv_percent": SIMPLEX}, 1.0),
    ("tiles-psnr", "supported", {"psnr": lambda x, r: 30 - (x.tiling == "4x5") + r.normal(0, 0.1)}, 1.0),
    ("tiles-psnr", "contradicted", {"psnr": lambda x, r: 30 + (x.tiling == "4x5") + r.normal(0, 0.1)}, -1.0),
    ("tiles-psnr", "not enough data", {"psnr": lambda x, r: 30 + 5 * r.choice([-1.0, 1.0])}, None),
    ("k-128", "supported", {"stable": lambda x, r: x.k < 128}, 0.0),
    ("k-128", "contradicted", {"stable": lambda x, r: x.k < 128 or x.s == 8}, 0.5),
    ("k-128", "not enough data", {"stable": False}, 0.0),
    ("ensemble", "supported", {}, 2.5),
    ("ensemble", "contradicted", {"psnr_1dd": 29.5}, 0.5),
    ("ensemble", "contradicted", {"psnr_1dd": 25.0}, 5.0),
    ("ensemble", "not enough data", {"psnr_1dd": lambda x, r: 28.5 + r.normal(0, 0.5)}, None),
    ("best-iterations", "supported", {"psnr": best(lambda x: x.iterations == 5000)}, 0.0),
    ("best-iterations", "contradicted", {"psnr": best(lambda x: x.iterations == 5000, PAIRS[6:])}, 0.5),
    ("best-s", "supported", {"psnr": best(lambda x: x.s == 8)}, 0.0),
    ("best-s", "contradicted", {"psnr": best(lambda x: x.s == 8, PAIRS[6:])}, 0.5),
    ("best-k", "supported", {"psnr": best(lambda x: x.k >= 64)}, 0.0),
    ("best-k", "contradicted", {"psnr": best(lambda x: x.k >= 64, PAIRS[:3])}, 0.75),
    ("best-l", "supported", {"psnr": best(lambda x: x.l == 6)}, 0.0),
    ("best-l", "contradicted", {"psnr": best(lambda x: x.l == 6, [])}, 1.0),
    ("psnr-ssim", "supported", {"psnr": lambda x, r: 30 + x.k / 100 + x.l, "ssim": lambda x, r: x.k + x.l}, 1.0),
    ("psnr-ssim", "contradicted", {"psnr": lambda x, r: 30 + x.k, "ssim": lambda x, r: -x.k}, 0.0),
    ("psnr-ssim", "not enough data", {
        "psnr": lambda x, r: 30 + x.k, "ssim": lambda x, r: x.k * (1 if x.noise == "blur3" or x.tiling == "1x1" else -1)
    }, 0.5),
    ("vif", "supported", {"psnr": lambda x, r: x.k + r.uniform(), "ssim": lambda x, r: x.k + r.uniform()}, None),
    ("vif", "contradicted", {"psnr": lambda x, r: x.k + r.uniform(), "vif": lambda x, r: x.k + r.uniform()}, None),
    ("vif", "not enough data", {}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "verdict", "columns", "effect"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_a_known_effect_is_found(name, verdict, columns, effect):
    found = answer(name, study(**columns))
    assert found.verdict == verdict
    assert found.low <= found.effect <= found.high
    if effect is not None:
        assert found.effect == pytest.approx(effect, abs=0.05)
    assert found.numbers
    assert ("not decided" in found.tested) == (verdict == "not enough data")


@pytest.mark.parametrize("name", ["best-iterations", "best-s", "best-k", "best-l"])
def test_one_pair_whose_best_is_fine_may_be_chance(name):
    fine = {"best-iterations": lambda x: x.iterations == 5000, "best-s": lambda x: x.s == 8,
            "best-k": lambda x: x.k >= 64, "best-l": lambda x: x.l == 6}[name]  # fmt: skip
    view = study(space=THESIS_LIKE | {"noise": ["blur3"], "tiling": ["1x1"]}, psnr=best(fine))
    found = answer(name, view)
    chance = np.mean([not fine(SimpleNamespace(**x)) for x in view.spec.search_space])
    assert found.verdict == "not enough data"
    assert f"p = {1 - chance:.2f}" in found.tested


@pytest.mark.parametrize("name", ["best-iterations", "best-s", "best-k", "best-l"])
def test_one_case_among_many_pairs_is_no_contradiction(name):
    """Guards against a "never" that a single one of twelve noisy maxima contradicts, as the thesis' own does."""
    fine = {"best-iterations": lambda x: x.iterations == 5000, "best-s": lambda x: x.s == 8,
            "best-k": lambda x: x.k >= 64, "best-l": lambda x: x.l == 6}[name]  # fmt: skip
    found = answer(name, study(psnr=best(fine, PAIRS[1:])))
    assert found.effect == pytest.approx(1 / 12)
    assert found.verdict != "contradicted"
    assert (found.verdict == "supported") == (found.p < 0.05)
    share = {"best-k": 1 / 4}.get(name, 1 / 2)  # of settings that are cases; one or none of twelve, by chance
    assert found.p == pytest.approx((1 - share) ** 12 + 12 * share * (1 - share) ** 11)


def test_every_finding_of_the_thesis_has_its_three_answers():
    tested = {(case[0], case[1]) for case in CASES + OF_PRIORS}
    tested |= {(f"best-{axis}", "not enough data") for axis in ("iterations", "s", "k", "l")}
    expected = {(finding.name, verdict) for finding in findings.FINDINGS for verdict in verdicts.Verdict.__args__}
    assert expected - tested == {("slices", verdict) for verdict in verdicts.Verdict.__args__}  # below
    assert len({finding.name for finding in findings.FINDINGS}) == 23


# --- slices

MID, AWAY = {"target": "MNI152 T1 axial 94"}, {"target": "MNI152 T1 axial 130"}
AT_130 = {"target": {"slice": 130}}


@pytest.mark.parametrize(
    ("shift", "spread", "verdict"),
    [(-1.0, 0.1, "supported"), (1.0, 0.1, "contradicted"), (0.0, 3.0, "not enough data")],
)
def test_slices_are_compared_with_the_mid_slice(shift, spread, verdict):
    mid = study("mid", facts=MID, psnr_foreground=lambda x, r: 30 + x.k / 100)
    # over the whole slice the opposite, as of a slice with more background
    away = study(
        "away",
        facts=AWAY,
        tree=AT_130,
        psnr_foreground=lambda x, r: 30 + x.k / 100 + shift + r.normal(0, spread),
        psnr=lambda x, r: 30 - shift,
    )
    found = answer("slices", mid, away)
    assert found.verdict == verdict
    assert found.effect == pytest.approx((mid.trials["psnr_foreground"] - away.trials["psnr_foreground"]).mean())
    assert set(found.rows["study"]) == {"mid", "away"}
    assert len(found.rows) == 2 * len(mid.trials)
    assert "MNI152 T1 axial 130" in found.tested


@pytest.mark.parametrize(
    "other",
    [
        study("plane", facts=AWAY, tree={"target": {"slice": 130, "plane": "coronal"}}),
        study("file", facts=AWAY, tree={"target": {"slice": 130, "file": "other.nii"}}),
        study("seed", facts=AWAY, tree={**AT_130, "fit": {"seed": 1}}),
        study("same-slice", facts=MID),
    ],
    ids=lambda view: view.name,
)
def test_only_slices_of_the_same_volume_and_plane_count(other):
    assert answer("slices", study(facts=MID), other).verdict == "not enough data"
    assert answer("slices", study(facts=MID), other).numbers == ()


def test_the_panel_of_slices_says_what_the_finding_says():
    """Guards against the best of two unlike spaces side by side: 576 settings had a better best than 432 by that."""
    space = THESIS_LIKE | {"k": [8, 64]}  # the middle slice has more channels, and its best with them
    mid = study("mid", facts=MID, psnr_foreground=lambda x, r: 30 + x.k / 16 + r.normal(0, 0.1))
    away = study("away", space=space, facts=AWAY, tree=AT_130, psnr_foreground=lambda x, r: 31 + x.k / 16)
    found = answer("slices", mid, away)
    table = comparison.slices([mid, away], lambda trials: trials, "psnr_foreground")
    assert found.verdict == "contradicted"
    assert table["change"].tolist() == pytest.approx([0, -found.effect])
    assert table["n"].tolist() == [len(mid.trials), len(away.trials)]


def test_a_slice_is_compared_with_the_middle_not_the_middle_with_it():
    mid, away = study("mid", facts=MID), study("away", facts=AWAY, tree=AT_130, psnr_foreground=20.0)
    assert answer("slices", mid, away).verdict == "supported"
    assert answer("slices", away, mid).verdict == "not enough data"


def test_time_findings_leave_out_what_other_programs_disturbed_and_say_so():
    """Load beside a fit changed its seconds by factors of 0.4 to 1.3, with nothing said."""
    view = study(seconds=lambda x, r: x.l * math.exp(r.normal(0, 0.01)))
    trials = view.trials
    rough = trials["number"] % 5 == 0
    trials.loc[rough, ["seconds", "disturbed"]] = [99.0, True]
    found = answer("time-l", view)
    assert found.effect == pytest.approx(1.5, rel=0.01)
    assert found.tested.endswith(f" Left out: {rough.sum()} trials that other programs disturbed.")
    assert not set(found.numbers) & set(trials.loc[rough, "number"])
    assert "disturbed" not in answer("blur", view).tested


# --- over priors

DECODERS = ["deep_decoder", "deep_decoder_2019"]
SLICES, SIGMAS = list(range(60, 70)), [0.05, 0.1]


def over_priors(extra=(), space=None, **columns):
    """Two Deep Decoders, one other network and one prior without weights, on ten slices at two noise levels."""
    tables = [
        {"kind": DECODERS, "k": [32, 64], "s": [16], "l": [4]},
        {"kind": "dip", "k": [32], "l": [4]},
        {"kind": "tv", "strength": [0.1, 0.2]},
        *extra,
    ]
    axes = {"target.slice": SLICES, "task.sigma": SIGMAS, "iterations": [100, 200, 1000]} | (space or {})
    done = {"iterations": lambda x, r: getattr(x, "iterations", 0)}
    done["iterations_done"] = done["iterations"]
    tree = {"task": {"kind": "denoise", "sigma": 0.1}}
    return study(space={**axes, "prior": tables}, tree=tree, **done | columns)


def of(x, option):
    return vars(x)[option]


def faster(by):
    """Seconds of equal fits, of which the thesis' decoder is faster."""
    return lambda x, r: (
        getattr(x, "iterations", 0) * (by if of(x, "prior.kind") == DECODERS[1] else 1) * math.exp(r.normal(0, 0.01))
    )


def longer(gain, spread=0.1):
    return lambda x, r: 30 + gain * (getattr(x, "iterations", 0) == 1000) + r.normal(0, spread)


def better(by):
    """PSNR of Deep Decoders that is better by so much at each level of noise."""
    gains = dict(zip(SIGMAS, by, strict=True))
    return lambda x, r: 30 + gains[of(x, "task.sigma")] * (of(x, "prior.kind") in DECODERS) + r.normal(0, 0.1)


RISES = {"psnr": lambda x, r: 20 + 3 * math.log10(getattr(x, "iterations", 1))}
OF_PRIORS = [
    ("time-variant", "supported", {"seconds": faster(2), **RISES}, 2.0),
    ("time-variant", "contradicted", {"seconds": faster(0.5), **RISES}, 0.5),
    ("time-variant", "not enough data", {"seconds": lambda x, r: math.exp(r.choice([-1.0, 1.0])), **RISES}, None),
    ("iterations", "supported", {"psnr": longer(0.2)}, 0.2),
    ("iterations", "supported", {"psnr": longer(-9)}, -9.0),  # of noise that is fitted
    ("iterations", "contradicted", {"psnr": longer(2)}, 2.0),
    ("iterations", "not enough data", {"psnr": longer(0.5, spread=3)}, None),
    ("noise-levels", "supported", {"psnr": better([1, 2])}, 1.0),
    ("noise-levels", "contradicted", {"psnr": better([1, -2])}, -2.0),
    ("noise-levels", "not enough data", {"psnr": better([0, 2])}, None),
]


@pytest.mark.parametrize(("name", "verdict", "columns", "effect"), OF_PRIORS)
def test_a_known_effect_of_priors_is_found(name, verdict, columns, effect):
    found = answer(name, over_priors(**columns))
    assert found.verdict == verdict, found.tested
    assert found.low <= found.effect <= found.high
    if effect is not None:
        assert found.effect == pytest.approx(effect, abs=0.2)
    assert found.numbers
    assert ("not decided" in found.tested) == (verdict == "not enough data")


def test_time_is_that_to_the_same_quality_not_that_of_the_same_iterations():
    """The original is better at each budget, so it takes the variant longer to what both reach; between budgets."""
    psnr = {DECODERS[0]: {100: 20.0, 200: 22.0, 1000: 24.0}, DECODERS[1]: {100: 21.0, 200: 23.0, 1000: 25.0}}
    view = over_priors(
        psnr=lambda x, r: psnr.get(of(x, "prior.kind"), {}).get(getattr(x, "iterations", 0), 30.0),
        seconds=lambda x, r: max(1.0, getattr(x, "iterations", 0)),
    )
    found = answer("time-variant", view)
    assert found.effect == pytest.approx(math.exp((math.log(200) + math.log(1000)) / 2) / 1000)  # 24 dB is half-way
    assert "40 matched settings of 40 fits" in found.tested
    assert "its best PSNR is +1.00 dB on average" in found.tested


@pytest.mark.parametrize(
    "change",
    [{"disturbed": True}, {"stable": False}, {"psnr": lambda x, r: 20 - 5 * (of(x, "prior.kind") == "deep_decoder")}],
)
def test_time_to_a_quality_that_is_not_known_is_none(change):
    """Disturbed, unstable, or reached by the other before its first budget."""
    found = answer("time-variant", over_priors(**RISES | {"seconds": faster(2)} | change))
    assert found.verdict == "not enough data"
    assert math.isnan(found.effect)


def test_blocks_and_inputs_of_other_sizes_are_not_compared():
    found = answer("time-variant", over_priors([{"kind": "deep_decoder", "k": [32, 64], "s": [8], "l": [4]}], **RISES))
    assert set(found.rows["s"].dropna()) == {16}
    assert "40 matched settings" in found.tested


def test_twenty_thousand_iterations_are_those_where_a_study_has_them():
    long = {"iterations": [1000, 7000, 15000, 20000, 30000]}
    view = over_priors(space=long, psnr=lambda x, r: 30 + (getattr(x, "iterations", 0) == 20000) + r.normal(0, 0.1))
    found = answer("iterations", view)
    assert (found.verdict, found.effect) == ("contradicted", pytest.approx(1, abs=0.1))
    assert "iterations 7,000 to 20,000: deep_decoder +" in found.tested
    assert set(found.rows["prior.kind"]) == set(DECODERS)


def test_settings_are_chosen_on_the_other_half_of_the_measurements_by_loops():
    view = over_priors(psnr=lambda x, r: r.uniform(25, 35))
    rows = view.trials.to_dict("records")
    least, gains = math.inf, []
    for sigma in SIGMAS:
        settings_of = {}
        for row in rows:
            if row["task.sigma"] == sigma:
                key = tuple(str(row[axis]) for axis in ("prior.kind", "k", "iterations", "prior.strength"))
                settings_of.setdefault(key, {})[row["target.slice"]] = row["psnr"]
        effects = []
        for slice_ in SLICES:
            best = {}
            for is_decoder in (True, False):
                ours = [some for key, some in settings_of.items() if (key[0] in DECODERS) == is_decoder]
                others = [at for at in SLICES if (at - slice_) % 2]
                chosen = max(ours, key=lambda some: sum(some[at] for at in others))
                best[is_decoder] = chosen[slice_]
            effects.append(best[True] - best[False])
        gains.append(np.mean(effects))
        least = min(least, gains[-1])
    found = answer("noise-levels", view)
    assert found.effect == pytest.approx(least)
    assert "sigma 0.05: " in found.tested
    assert "sigma 0.1: " in found.tested


def test_a_prior_with_more_settings_is_no_better_for_that():
    """Guards against the best of many: of forty equal strengths one is 0.5 dB better on the mean of ten slices."""
    many = [{"kind": "nlm", "strength": [round(0.01 * n, 2) for n in range(1, 41)]}]
    view = over_priors(many, psnr=lambda x, r: 30 + r.normal())
    means = view.trials.groupby(["prior.kind", "task.sigma", "prior.strength"])["psnr"].mean()
    assert means["nlm"].groupby(level=0).max().min() > 30.5
    found = answer("noise-levels", view)
    assert found.verdict == "not enough data"
    assert "maybe by chance" in found.tested


def test_who_wins_at_each_level_is_said():
    gain = {("dip", 0.05): 2.0, ("tv", 0.1): 1.0}
    psnr = lambda x, r: 30 + gain.get((of(x, "prior.kind"), of(x, "task.sigma")), 0) + r.normal(0, 0.1)  # noqa: E731
    view = over_priors(psnr=psnr)
    found = answer("noise-levels", view)
    assert found.verdict == "contradicted"
    assert re.match(r"sigma 0.05: dip wins, \+[12]\.\d\d dB \[.*\] over .*; sigma 0.1: tv wins, \+[01]\.", found.tested)


def test_starts_are_measurements_too_and_a_prior_without_weights_has_one():
    space = {"target.slice": [60], "fit.seed": list(range(10))}
    found = answer("noise-levels", over_priors(space=space, psnr=better([1, 2])))
    assert (found.verdict, found.effect) == ("supported", pytest.approx(1, abs=0.3))
    assert "10 measurements at each of 2 levels" in found.tested
    alone = answer("noise-levels", over_priors(space={"target.slice": [60]}, psnr=better([1, 2])))
    assert alone.tested.startswith("It takes a Deep Decoder and another prior on several slices or seeds")


def test_a_study_is_asked_what_is_about_it():
    view, copies = over_priors(), study()
    assert [found.finding.name for found in findings.retest(view)] == ["time-variant", "iterations", "noise-levels"]
    assert {found.finding.about for found in findings.retest(copies)} == {"copies"}
    assert findings.retest(study(tree={"task": {"kind": "denoise", "sigma": 0.1}})) == []
    blur = next(finding for finding in findings.FINDINGS if finding.name == "blur")
    with pytest.raises(
        UserError, match="'blur' is about copies by the thesis' decoder, not about study\nValid: time-v"
    ):
        findings.ask(blur, view)
    page = render([view], (parse_panel({"kind": "findings", "title": "Findings"}, "test"),))
    assert "20,000 iterations are not needed" in page


@pytest.mark.parametrize(
    "view",
    [
        dataclasses.replace(over_priors(), trials=trials_table([], over_priors().axes)),
        dataclasses.replace(over_priors(), trials=over_priors().trials.head(1)),
        over_priors(state="FAIL", stable=False, psnr=math.nan, seconds=math.nan, cv_percent=math.nan),
        study(
            space={"iterations": [100], "prior": [{"kind": "dip", "k": [32], "l": [4]}, {"kind": "tv"}]},
            iterations_done=100.0,
            iterations=100,
        ),
    ],
    ids=["empty", "one trial", "only FAIL", "no decoder"],
)
def test_too_little_of_priors_is_not_enough_data(view):
    for found in findings.retest(view):
        assert found.verdict == "not enough data", found.finding.name
        assert found.tested.startswith(("It takes", "No fits"))


def test_what_the_documentation_says_of_priors_is_what_was_measured():
    root = Path(__file__).parents[1]
    text = " ".join((root / "docs/priors.md").read_text().split())
    spec = read_spec(root / "studies/prior_noise.toml")
    trials = pd.read_csv(root / "benchmarks/results/prior_noise.csv")
    assert len(trials) == len(spec.search_space) == spec.trials
    found = {each.finding.name: each for each in findings.retest(StudyView("prior_noise", spec, {}, trials))}
    verdicts = {name: each.verdict for name, each in found.items()}
    assert verdicts == {
        "time-variant": "not enough data", "iterations": "contradicted", "noise-levels": "contradicted",
    }  # fmt: skip
    for name, words in (
        ("iterations", "2.9 dB, 95 % interval 2.3 to 3.6"),
        ("noise-levels", "1.86 dB (1.38 to 2.92) before a Deep Decoder"),
    ):
        assert words in text
        said = [float(number) for number in re.findall(r"\d\.\d+", words)]
        numbers = sorted(map(abs, (found[name].effect, found[name].low, found[name].high)))
        assert sorted(said) == pytest.approx(numbers, abs=0.05 if name == "iterations" else 0.005)
    assert "sigma 0.05: nlm wins, +1.27 dB [+0.85, +1.97] over wavelet" in found["noise-levels"].tested
    assert "+0.03 dB [-0.30, +0.51] over deep_decoder;" in found["noise-levels"].tested
    noisy = trials[trials["task.kind"] == "denoise"]
    setting = ["prior.kind", "task.sigma", "k", "iterations", "prior.strength"]
    best = noisy.groupby(setting, dropna=False)["psnr"].mean().groupby(level=[0, 1]).max().unstack()
    for kind, row in best.iterrows():
        assert f"| `{kind}` | {row[0.05]:.2f} dB | {row[0.2]:.2f} dB |" in text


# --- numbers, by loops


def troubled():
    """Every 5th trial unstable, every 7th shared its device, every 11th failed, some stopped half-way."""
    view = study(
        psnr=lambda x, r: r.uniform(20, 40),
        seconds=lambda x, r: r.uniform(1, 9),
        cv_percent=lambda x, r: r.uniform(0, 10),
        psnr_1dd=lambda x, r: r.uniform(18, 30),
    )
    trials = view.trials.astype({"stable": object})
    trials.loc[trials["number"] % 5 == 0, ["stable", "state"]] = [False, "PRUNED"]
    trials.loc[trials["number"] % 10 == 0, "iterations_done"] /= 2
    trials["shared"] = trials["number"] % 7 == 0
    failed = trials["number"] % 11 == 0
    trials.loc[failed, ["psnr", "psnr_1dd", "seconds", "cv_percent", "ssim", "vif", "iterations_done"]] = np.nan
    trials.loc[failed, ["stable", "state"]] = [None, "FAIL"]
    return dataclasses.replace(view, trials=trials)


def by_hand(rows, axis, ends, change):
    """Mean over fits of the mean over budgets, and the numbers of the trials."""
    at = {tuple(row[name] for name in AXES): row for row in rows}
    fits, numbers = {}, set()
    for key, row in at.items():
        other = tuple(ends[1] if name == axis else value for name, value in zip(AXES, key, strict=True))
        if row[axis] == ends[0] and other in at:
            fit = tuple(v for name, v in zip(AXES, key, strict=True) if name not in (axis, "iterations"))
            fits.setdefault(fit, []).append(change(row, at[other]))
            numbers |= {row["number"], at[other]["number"]}
    return np.mean([np.mean(values) for values in fits.values()]), numbers


@pytest.mark.parametrize(
    ("name", "axis", "ends", "column"),
    [
        ("blur", "noise", ("uniform", "blur3"), "psnr"),
        ("time-l", "l", (4, 6), "seconds"),
        ("time-s", "s", (32, 8), "seconds"),
        ("time-k-flat", "k", (8, 64), "seconds"),
        ("time-k-rise", "k", (64, 128), "seconds"),
    ],
)
def test_effects_and_their_trials_are_those_found_by_loops(name, axis, ends, column):
    view = troubled()
    rows = [row for row in view.trials.to_dict("records") if row["state"] != "FAIL"]
    if column == "psnr":
        rows = [row for row in rows if row["stable"]]
    if column == "seconds":
        rows = [row for row in rows if not row["shared"] and row["iterations_done"] == row["iterations"]]
    change = {
        "psnr": lambda one, other: other["psnr"] - one["psnr"],
        "seconds": lambda one, other: math.log(other["seconds"] / one["seconds"]),
    }[column]
    effect, numbers = by_hand(rows, axis, ends, change)
    found = answer(name, view)
    assert found.effect == pytest.approx(math.exp(effect) if column == "seconds" else effect)
    assert set(found.numbers) == numbers
    neighbours = found.rows[axis].tolist()  # matched trials stand next to each other
    assert set(zip(neighbours[::2], neighbours[1::2], strict=True)) == {ends}


def test_tiles_are_the_ends_of_each_set():
    view = troubled()
    sets = {}
    for row in view.trials[view.trials["state"] != "FAIL"].to_dict("records"):
        sets.setdefault(tuple(row[axis] for axis in AXES if axis != "tiling"), {})[row["tiling"]] = row
    fits, numbers = {}, set()
    for key, there in sets.items():
        if len(there) > 1:
            few, *_, many = [there[tiling] for tiling in TILINGS if tiling in there]
            change = float(many["cv_percent"] > 5) - float(few["cv_percent"] > 5)
            fits.setdefault((*key[:3], key[4]), []).append(change)
            numbers |= {few["number"], many["number"]}
    found = answer("tiles", view)
    assert found.effect == pytest.approx(np.mean([np.mean(changes) for changes in fits.values()]))
    assert set(found.numbers) == numbers


def test_effects_of_tilings_and_of_instability_are_those_found_by_loops():
    view = troubled()
    at = {tuple(row[axis] for axis in AXES): row for row in view.trials.to_dict("records") if row["state"] != "FAIL"}
    seconds = {
        key: math.log(row["seconds"])
        for key, row in at.items()
        if not row["shared"] and row["iterations_done"] == row["iterations"]
    }
    psnr = {key: row["psnr"] for key, row in at.items() if row["stable"]}
    of_time, of_psnr, of_unstable = {}, {}, {}
    for k, s, l, iterations, noise in itertools.product(*(THESIS_LIKE[axis] for axis in AXES[:5])):
        keys = [(k, s, l, iterations, noise, tiling) for tiling in TILINGS]
        if all(key in seconds for key in keys):
            *others, most = (seconds[key] for key in keys)
            of_time.setdefault((k, s, l, noise), []).append(most - sum(others) / 3)
        there = [psnr[key] for key in keys if key in psnr]
        if len(there) > 1:
            of_psnr.setdefault((k, s, l, noise), []).append(there[0] - there[-1])
    for k, s, l, iterations, tiling in itertools.product(*(THESIS_LIKE[axis] for axis in AXES if axis != "noise")):
        keys = [(k, s, l, iterations, noise, tiling) for noise in NOISES]
        high = [seconds[key] for key in keys if key in seconds and at[key]["cv_percent"] > 5]
        low = [seconds[key] for key in keys if key in seconds and at[key]["cv_percent"] <= 5]
        if high and low:
            of_unstable.setdefault((k, s, l, tiling), []).append(np.mean(high) - np.mean(low))
    for name, fits in (("time-4x5", of_time), ("tiles-psnr", of_psnr), ("time-unstable", of_unstable)):
        mean = np.mean([np.mean(changes) for changes in fits.values()])
        assert answer(name, view).effect == pytest.approx(math.exp(mean) if name != "tiles-psnr" else mean)


def test_where_the_answer_is_another_is_said():
    """Guards against a mean over s = 8 and s = 32 that hid effects of opposite signs."""
    view = study(psnr=lambda x, r: 30 + (x.noise == "blur3") * (1 if x.s == 8 else -1) + r.normal(0, 0.1))
    found = answer("blur", view)
    assert found.verdict == "not enough data"
    assert re.search(r"unlike at s 8: \+1\.\d\d dB \[.*\], s 32: -\d\.\d\d dB \[", found.tested)
    view = study(psnr=lambda x, r: 30 + (x.noise == "blur3") * (3 if x.tiling != "3x3" else -1) + r.normal(0, 0.1))
    found = answer("blur", view)
    assert found.verdict == "supported"
    assert re.search(r"unlike at tiling 3x3: -[01]\.\d\d dB \[[^,]*, [^,]*\]$", found.tested)
    assert "unlike" not in answer("blur", study(psnr=lambda x, r: 30 + (x.noise == "blur3") + r.normal(0, 0.1))).tested


def test_the_ratio_of_ratios_is_that_of_four_matched_settings():
    view = troubled()
    timed = view.trials[~view.trials["shared"] & (view.trials["iterations_done"] == view.trials["iterations"])]
    at = {tuple(row[name] for name in AXES): row["seconds"] for row in timed.to_dict("records")}
    fits = {}
    for k, i, noise, tiling in itertools.product(
        *(THESIS_LIKE[name] for name in ("k", "iterations", "noise", "tiling"))
    ):
        four = {(l, s): at.get((k, s, l, i, noise, tiling)) for l in (4, 6) for s in (8, 32)}
        if None not in four.values():
            # both ratios share the corners (4, 32) and (6, 8), of which what is left is (6, 32) against (4, 8)
            fits.setdefault((k, noise, tiling), []).append(math.log(four[6, 32] / four[4, 8]))
    found = answer("time-l-s", view)
    assert found.effect == pytest.approx(math.exp(np.mean([np.mean(logs) for logs in fits.values()])))
    assert len(found.numbers) == 4 * sum(map(len, fits.values()))


def test_shares_count_fits_and_have_exact_intervals():
    view = study(cv_percent=lambda x, r: 9.0 if x.k == 8 and x.iterations == 5000 and x.s == 8 else 1.0)
    found = answer("cv-64", view)
    cases, of = 2 * 12, 2 * 2 * 2 * 12  # fits with k 8 and 64
    assert found.effect == cases / of
    for end, tail in ((found.low, range(cases, of + 1)), (found.high, range(cases + 1))):
        beyond = sum(math.comb(of, n) * end**n * (1 - end) ** (of - n) for n in tail)
        assert beyond == pytest.approx(0.025, abs=1e-6)
    assert f"{cases} of {of} fits at some budget, {cases} at 5,000 iterations" in found.tested
    early = study(cv_percent=lambda x, r: 9.0 if x.k == 8 and x.iterations == 2000 else 1.0)
    assert f"{of // 2} of {of} fits at some budget, 0 at 5,000 iterations" in answer("cv-64", early).tested


def test_best_settings_are_those_that_sorting_finds():
    view = troubled()
    stable = view.trials[view.trials["stable"].eq(True)]
    best_ones = stable.loc[stable.groupby(["tiling", "noise"])["psnr"].idxmax()]
    judged = [row for row in view.trials.to_dict("records") if row["state"] != "FAIL"]
    for axis, is_case in (
        ("k", lambda row: row["k"] < 64),
        ("l", lambda row: row["l"] == 4),
        ("s", lambda row: row["s"] == 32),
    ):
        sides = {}
        for row in judged:
            sides.setdefault(tuple(row[name] for name in AXES if name != axis), set()).add(is_case(row))
        counted = [
            row
            for row in best_ones.to_dict("records")
            if len(sides[tuple(row[name] for name in AXES if name != axis)]) == 2
        ]
        found = answer(f"best-{axis}", view)
        assert found.effect == np.mean([is_case(row) for row in counted])
        assert {row["number"] for row in counted} <= set(found.numbers)
        assert len(found.numbers) == 5 * len(counted)
        assert ("left out" in found.tested) == (len(counted) < 12)
    by_ssim = stable.loc[stable.groupby(["tiling", "noise"])["ssim"].idxmax()]
    same = answer("psnr-ssim", view)
    assert same.effect == np.mean(best_ones["number"].to_numpy() == by_ssim["number"].to_numpy())


def test_rank_correlations_are_those_of_ranks():
    view = study(psnr=lambda x, r: x.k / 20 + r.uniform(), ssim=lambda x, r: x.k / 50 + r.uniform())
    ranks = view.trials.groupby(["tiling", "noise"])[["psnr", "ssim", "vif"]].rank()
    differences = [
        np.corrcoef(rows["psnr"], rows["ssim"])[0, 1] - np.corrcoef(rows["psnr"], rows["vif"])[0, 1]
        for _, rows in ranks.groupby([view.trials["tiling"], view.trials["noise"]])
    ]
    assert answer("vif", view).effect == pytest.approx(np.mean(differences))


def test_intervals_are_the_wider_of_students_and_a_studentised_bootstrap_by_hand():
    view = study(psnr=lambda x, r: 30 + 0.5 * (x.noise == "blur3") + r.exponential())
    wide = view.trials.pivot(index=["k", "s", "l", "tiling", "iterations"], columns="noise", values="psnr")
    fits = (wide["blur3"] - wide["uniform"]).groupby(["k", "s", "l", "tiling"]).mean().to_numpy()
    n, mean = len(fits), fits.mean()
    error = fits.std(ddof=1) / n**0.5 * (1 + 8 / n**2)
    resamples = np.random.default_rng(5).choice(fits, (20_000, n))
    errors = resamples.std(axis=1, ddof=1) / n**0.5
    low, high = mean - np.quantile((resamples.mean(axis=1) - mean) / errors, [0.975, 0.025]) * error
    student = stats.t.interval(0.95, n - 1, mean, error)
    found = answer("blur", view)
    assert [found.low, found.high] == pytest.approx([min(low, student[0]), max(high, student[1])], abs=0.02)


def test_a_study_that_was_searched_in_part_contradicts_no_true_finding():
    """Guards against the best that was measured being taken for the best there is: 48 trials of 576 say little."""
    space = THESIS_LIKE | {"k": [8, 32, 64, 128], "iterations": [2000, 5000, 7000]}
    view, random, naive, verdicts = study(space=space), np.random.default_rng(2), 0, []
    trials, truths = view.trials, {
        "best-iterations": view.trials["iterations"] > 2000,
        "best-s": view.trials["s"] < 32,
        "best-k": view.trials["k"] >= 64,
        "best-l": view.trials["l"] > 4,
    }  # fmt: skip
    for number in range(60):
        name = list(truths)[number % 4]
        psnr = 26 + 4 * truths[name] + random.normal(0, 0.3, len(trials))
        for axis in sorted({"k", "s", "l", "iterations"} - {name.removeprefix("best-")}):
            levels = random.permutation(np.linspace(0, 6, trials[axis].nunique()))
            psnr += trials[axis].map(dict(zip(sorted(set(trials[axis])), levels, strict=True)))
        some = trials.assign(psnr=psnr).sample(48, random_state=number)
        verdicts.append(answer(name, dataclasses.replace(view, trials=some)).verdict)
        measured = some.loc[some.groupby(["tiling", "noise"])["psnr"].idxmax()].index
        naive += not truths[name][measured].all()
        if number < 4:  # all of it
            assert answer(name, dataclasses.replace(view, trials=trials.assign(psnr=psnr))).verdict == "supported"
    assert naive > 45
    assert set(verdicts) <= {"not enough data", "supported"}
    assert verdicts.count("not enough data") > 55


def test_verdicts_are_corrected_for_all_findings():
    """Of twenty findings one has a p-value of 1 to 4 % by chance, so that is no verdict."""
    view = study(space=THESIS_LIKE | {"iterations": [2000]}, psnr=lambda x, r: 30 + r.normal(), psnr_1dd=28.0)
    shift = (0.45 - answer("blur", view).effect) * (view.trials["noise"] == "blur3")
    view = dataclasses.replace(view, trials=view.trials.assign(psnr=view.trials["psnr"] + shift))
    alone = answer("blur", view)
    assert alone.verdict == "supported"
    assert 0.005 < alone.p == alone.p_corrected < 0.05
    answers = findings.retest(view)
    [among] = [found for found in answers if found.finding.name == "blur"]
    tested = sorted(found.p for found in answers if not math.isnan(found.p))
    steps = [(len(tested) - rank) * p for rank, p in enumerate(tested)]
    assert among.p_corrected == pytest.approx(max(steps[: tested.index(among.p) + 1]))
    assert (among.p, among.effect, among.low, among.high) == (alone.p, alone.effect, alone.low, alone.high)
    assert among.verdict == "not enough data"
    assert f"not decided: p = {among.p:.2g} alone, " in among.tested


# --- what must not matter


def test_unmatched_settings_say_nothing():
    """Simpson's paradox: blur is better in every match, worse on average over what was measured."""
    view = study(psnr=lambda x, r: 20 + 0.1 * x.k + 0.5 * (x.noise == "blur3") + r.normal(0, 0.05))
    trials = view.trials
    gone = ((trials["noise"] == "uniform") & (trials["k"] == 8)) | ((trials["noise"] == "blur3") & (trials["k"] == 128))
    trials = trials[~gone]
    means = trials.groupby("noise")["psnr"].mean()
    assert means["blur3"] < means["uniform"]
    found = answer("blur", dataclasses.replace(view, trials=trials))
    assert (found.verdict, found.effect) == ("supported", pytest.approx(0.5, abs=0.05))
    assert set(trials.set_index("number").loc[list(found.numbers)]["k"]) == {64, 96}


def test_budgets_of_one_fit_count_once():
    level = np.random.default_rng(7).normal(0, 1, 10**6)
    score = lambda x, r: 30 + level[x.fit.digest % 10**6]  # noqa: E731
    few = answer("blur", study(space=THESIS_LIKE | {"iterations": [2000]}, psnr=score))
    many = answer("blur", study(space=THESIS_LIKE | {"iterations": [2000, 3000, 4000, 5000]}, psnr=score))
    assert (many.effect, many.low, many.high) == pytest.approx((few.effect, few.low, few.high))
    assert len(many.numbers) == 4 * len(few.numbers)


def test_five_matched_fits_are_too_few_and_six_are_not():
    space = {"k": [8], "s": [8], "l": [4], "iterations": [2000, 5000], "noise": ["uniform", "blur3"]}
    score = lambda x, r: 30 + (x.noise == "blur3") + r.normal(0, 0.01)  # noqa: E731
    for count, verdict in ((5, "not enough data"), (6, "supported")):
        view = study(space=space | {"k": [8, 16, 32, 64, 96, 128][:count]}, psnr=score)
        assert answer("blur", view).verdict == verdict


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), lost=st.floats(0, 0.8))
def test_other_axes_and_the_order_of_trials_do_not_matter(seed, lost):
    random = np.random.default_rng(seed)
    view = study(space=THESIS_LIKE | {"iterations": [2000], "tiling": ["1x1", "4x5"]}, psnr=30.0)
    noise = random.normal(0, 1, len(view.trials))
    trials = view.trials.assign(psnr=30 + noise)[random.uniform(size=len(noise)) >= lost]
    others = trials[["k", "s", "l", "tiling"]].astype(str).agg("-".join, axis=1)
    level = {key: random.normal(0, 20) for key in sorted(set(others))}
    moved = trials.assign(psnr=trials["psnr"] + others.map(level)).sample(frac=1, random_state=seed)
    turned = trials.assign(noise=trials["noise"].replace({"blur3": "uniform", "uniform": "blur3"}))
    test = next(finding.test for finding in findings.FINDINGS if finding.name == "blur")
    plain, shifted, mirrored = (
        test(dataclasses.replace(view, trials=one.assign(study="s")), []) for one in (trials, moved, turned)
    )
    assert shifted.verdict == plain.verdict
    assert shifted.effect == pytest.approx(plain.effect, nan_ok=True)
    assert mirrored.effect == pytest.approx(-plain.effect, nan_ok=True)
    opposite = {"supported": "contradicted", "contradicted": "supported"}
    if abs(plain.low) > 0.02 and abs(plain.high) > 0.02:  # resampling is no mirror to the last digit
        assert mirrored.verdict == opposite.get(plain.verdict, plain.verdict)


def test_answers_are_the_same_each_time():
    one, other = (findings.as_table(findings.retest(troubled())) for _ in range(2))
    pd.testing.assert_frame_equal(one, other)


# --- other values than the thesis', and too little


def test_other_values_are_asked_as_analogues_and_named():
    space = {
        "k": [8, 64],
        "s": [4, 16],
        "l": [4, 6],
        "iterations": [250, 500],
        "noise": list(NOISES),
        "tiling": list(TILINGS),
    }
    view = study(space=space, psnr=best(lambda x: x.iterations == 500))
    assert "iterations = 250, the fewest here" in answer("best-iterations", view).tested
    assert answer("best-iterations", view).verdict == "supported"
    assert "s = 16, the largest here" in answer("best-s", view).tested
    assert "l <= 4:" in answer("best-l", view).tested
    assert "k < 64:" in answer("best-k", view).tested
    below = study(space=space | {"k": [8, 32]})
    assert answer("best-k", below).tested == "It takes values of k on both sides of 64."
    assert answer("k-128", below).tested == "It takes fits with k < 128 and others."


def test_a_member_that_diverged_is_as_unstable_as_can_be():
    view = study()
    trials = view.trials.astype({"stable": object})
    gone = trials["number"].isin(trials.query("k == 8")["number"].head(1))
    trials.loc[gone, ["psnr", "cv_percent"]] = np.nan
    trials.loc[gone, ["stable", "state"]] = [False, "PRUNED"]
    assert answer("cv-64", dataclasses.replace(view, trials=trials)).effect == 1 / 96  # fits of up to 64 channels
    trials.loc[gone, "stable"] = None  # stopped by a pruner that knows nothing of stability
    assert answer("cv-64", dataclasses.replace(view, trials=trials)).effect == 0


def test_inputs_of_one_row_or_column_are_left_out():
    """Guards against flat tiles, all alike and so without any CV, that made 4x5 look stable."""
    view = study(
        facts={"target shape": "1x64x80"},
        space=THESIS_LIKE | {"s": [4, 16]},
        cv_percent=lambda x, r: 9.0 if x.tiling == "4x5" and x.s == 4 else 1.0,
    )
    found = answer("tiles", view)
    assert found.effect == 0.5  # s = 4 from 1x1 to 4x5, s = 16 from 1x1 to 3x3
    there = set(zip(found.rows["tiling"], found.rows["s"], strict=True))
    assert there == {("1x1", 4), ("4x5", 4), ("1x1", 16), ("2x2", 16)}  # of 3x3 and s = 16 the input is 1x2


@pytest.mark.parametrize(
    "view",
    [
        dataclasses.replace(study(), trials=trials_table([], THESIS)),
        dataclasses.replace(study(), trials=study().trials.head(1)),
        study(state="FAIL", stable=False, psnr=math.nan, seconds=math.nan, cv_percent=math.nan),
        study(space={"k": [8], "s": [8], "l": [4], "iterations": [100]}, tree={"fit": {"members": 1}}),
    ],
    ids=["empty", "one trial", "only FAIL", "one setting"],
)
def test_too_little_is_not_enough_data_and_says_what_it_takes(view):
    for found in findings.retest(view):
        assert found.verdict == "not enough data", found.finding.name
        assert found.tested
        assert found.effect_text == "\u2013" or "not decided" in found.tested


def test_one_decoder_is_no_ensemble():
    view = study(tree={"fit": {"members": 1}}, cv_percent=0.0)
    for name in ("cv-64", "tiles", "ensemble"):
        assert answer(name, view).numbers == ()


def test_the_table_holds_what_the_answers_hold():
    answers = findings.retest(troubled())
    table = findings.as_table(answers)
    assert list(table.index) == [finding.name for finding in findings.FINDINGS if finding.about == "copies"]
    assert table.loc["blur", "trials"] == answers[0].numbers
    assert table.loc["blur", "low"] == answers[0].low
    assert table["rule"].str.contains("contradicted", case=False).all()


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("dB", "+0.25 dB [-0.10, +1.00]"),
        ("times", "0.25 times [-0.10, 1.00]"),
        ("share", "25 % [-10, 100]"),
        ("points", "+25 points [-10, +100]"),
        ("rho", "+0.25 [-0.10, +1.00]"),
    ],
)
def test_effects_in_words(unit, text):
    found = findings.Answer("supported", "", pd.DataFrame(), unit, 0.25, -0.1, 1.0, finding=findings.FINDINGS[0])
    assert found.effect_text == text


def test_the_panel_shows_every_answer():
    view = troubled()
    panel = parse_panel({"kind": "findings", "title": "Findings"}, "test")
    assert parse_panel({"kind": "claims", "title": "Findings"}, "test") == panel  # as files of earlier versions say
    page = render([view], (panel,))
    answers = findings.retest(view)
    for found in answers:
        assert found.finding.statement.replace("'", "&#x27;") in page
        assert found.effect_text in page
    assert page.count("<strong>supported") == sum(found.verdict == "supported" for found in answers)
