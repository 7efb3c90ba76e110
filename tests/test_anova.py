"""Shares of variance: exact by other means on whole grids, the same with settings missing, on real tables."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ddstudy.report.anova import importance
from ddstudy.report.tables import finished
from ddstudy.spec.options import THESIS
from ddstudy.store.study import trials_table

LISTS = {
    "k": [8, 64, 128],
    "s": [8, 16],
    "l": [4, 6],
    "iterations": [2000, 5000],
    "noise": ["uniform", "blur3", "simplex"],
    "tiling": ["1x1", "4x5"],
}


def trials(psnr, lists=LISTS):
    """One measured trial per combination; `psnr` maps a row to dB."""
    table = pd.DataFrame(itertools.product(*lists.values()), columns=list(lists))
    return table.assign(psnr=[psnr(row) for row in table.itertuples()], state="COMPLETE", stable=True)


def shares(table, axes=THESIS):
    return dict(importance(table, axes).shares.itertuples(index=False, name=None))


def real(name):
    return finished(pd.read_csv(Path(__file__).parents[1] / f"benchmarks/results/{name}.csv"))


def test_an_additive_function_is_exact():
    of_k, of_noise = {8: 0.0, 64: 3.0, 128: 9.0}, {"uniform": 0.0, "blur3": 1.0, "simplex": -1.0}
    result = importance(trials(lambda row: 30 + of_k[row.k] + of_noise[row.noise]), THESIS)
    k, noise = np.var(list(of_k.values())), np.var(list(of_noise.values()))
    found = dict(result.shares.itertuples(index=False, name=None))
    assert "exact" in result.evaluator
    assert result.metric == "psnr"
    assert (found["k"], found["noise"]) == pytest.approx((k / (k + noise), noise / (k + noise)))
    assert sum(found.values()) == pytest.approx(1)
    assert list(result.shares["term"])[:2] == ["k", "noise"]


def test_a_pure_interaction_is_that_interaction():
    found = shares(trials(lambda row: 30 + (row.s - 12) * (row.l - 5)))
    assert found == pytest.approx(dict.fromkeys(found, 0.0) | {"s \u00d7 l": 1.0}, abs=1e-9)


def test_three_axes_at_once_are_higher_order():
    found = shares(trials(lambda row: 30 + (row.s - 12) * (row.l - 5) * (row.iterations - 3500) / 1000))
    assert found["higher order"] == pytest.approx(1)
    assert list(found)[-1] == "higher order"


def test_noise_is_the_analysis_of_variance_by_arrays():
    random = np.random.default_rng(0)
    table = trials(lambda row: random.uniform(20, 40))
    values = table["psnr"].to_numpy().reshape([len(values) for values in LISTS.values()])
    centred = values - values.mean()
    rest, explained = centred.copy(), {}
    for size in (1, 2):
        for kept in itertools.combinations(range(6), size):
            effect = rest.mean(axis=tuple(set(range(6)) - set(kept)), keepdims=True)
            explained[" \u00d7 ".join(THESIS[axis] for axis in kept)] = (effect**2).mean() / (centred**2).mean()
            rest = rest - effect
    explained["higher order"] = (rest**2).mean() / (centred**2).mean()
    assert shares(table) == pytest.approx(explained)


@pytest.mark.parametrize("missing", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("table", ["reduced", "reduced_upper"])
def test_missing_settings_change_no_rank(table, missing):
    whole = real(table)
    exact = shares(whole)
    ranks = sorted(THESIS, key=lambda axis: -exact[axis])
    assert ranks[:4] == ["tiling", "s", "k", "iterations"]
    for seed in range(6):
        partial = importance(whole.sample(frac=1 - missing, random_state=seed), THESIS)
        assert "estimated" in partial.evaluator
        found = dict(partial.shares.itertuples(index=False, name=None))
        assert found == pytest.approx(exact, abs=0.005 if missing < 0.1 else 0.03)
        # l and noise have 0.2 % and less: with half of the settings nobody can tell which has more
        clear = ranks if missing < 0.5 else ranks[:4]
        assert sorted(clear, key=lambda axis: -found[axis]) == clear
        assert sum(found.values()) == pytest.approx(1)


def test_what_axes_explain_alone_is_theirs():
    """Around one setting, one axis at a time: the data would fit pairs of axes as well."""
    lists = {"a": [*range(8)], "b": [*range(8)], "c": [*range(8)]}
    whole = trials(lambda row: 4 * row.a + 2 * row.b, lists)
    around = whole[(whole[list(lists)] == 3).sum(axis=1) >= 2]
    found = shares(around, list(lists))
    assert found["a"] == pytest.approx(0.8, abs=0.05)
    assert found["b"] == pytest.approx(0.2, abs=0.05)


def test_any_columns_are_axes_whatever_their_values():
    """A number far from the others, names in any order, many values: each value has its own effect."""
    lists = {"fit.learning_rate": [1e-4, 1e-3, 1.0], "c": [*"vzaqx"], "n": [*range(7)], "idle": [1]}
    of_c = dict(zip("vzaqx", (0, 4, 1, 3, 2), strict=True))
    whole = trials(lambda row: of_c[row.c] + 2 * (row[1] == 1e-3) + np.sin(row.n), lists)
    exact, found = shares(whole, list(lists)), shares(whole.sample(frac=0.4, random_state=0), list(lists))
    variances = {"c": 2.0, "fit.learning_rate": 8 / 9, "n": np.var(np.sin(range(7)))}
    expected = {axis: variance / sum(variances.values()) for axis, variance in variances.items()}
    assert {axis: exact[axis] for axis in expected} == pytest.approx(expected)
    assert {axis: found[axis] for axis in expected} == pytest.approx(expected, abs=0.01)
    assert "idle" not in exact


def test_an_option_that_does_not_apply_has_no_effect_there():
    """k exists for one of three priors: what the others are worth is the prior's share, not that of k."""
    decoder = trials(lambda row: 20 + 2.0 * (row.k == 64), {"prior": ["decoder"], "k": [8, 64], "case": [*range(12)]})
    others = trials(lambda row: {"tv": 30, "dip": 25}[row.prior], {"prior": ["tv", "dip"], "case": [*range(12)]})
    found = shares(pd.concat([decoder, others], ignore_index=True), ["prior", "k", "case"])
    prior, k = np.var([21, 30, 25]), 0.5 * np.var([20, 22])  # k applies to half of the settings
    assert found["prior"] == pytest.approx(prior / (prior + k), abs=0.01)
    assert found["k"] == pytest.approx(k / (prior + k), abs=0.01)
    assert found["prior \u00d7 k"] == 0
    assert found["case"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (trials(lambda row: row.k).head(9), "Measured settings: 9;"),
        (pd.concat([trials(lambda row: row.k).head(1)] * 12), "Measured settings: 1;"),
        (trials(lambda row: 30.0), "same value"),
        (trials_table([], THESIS), "Measured settings: 0;"),
    ],
)
def test_too_little_says_so(table, reason):
    result = importance(table, THESIS)
    assert result.shares.empty
    assert reason in result.reason
