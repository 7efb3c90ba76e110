from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddstudy.report.tables import recorded
from ddstudy.spec.files import read_spec
from ddstudy.spec.schema import StabilitySpec
from ddstudy.study.stability import (
    Audit,
    Limits,
    Recorded,
    StopRule,
    audit,
    cv_percent,
    dead_members,
    reason,
    spread_percent,
    spread_stops_at,
    stops_at,
    violations,
)

RULE = StopRule(percent=5, stop=1, warmup=300, window=3, patience=2)


def test_cv_is_eq_4_1_with_the_population_variance() -> None:
    values = [30.0, 31.0, 29.0, 33.0, 27.0]
    mean = sum(values) / 5
    variance = sum((v - mean) ** 2 for v in values) / 5
    assert cv_percent(values) == pytest.approx(100 * variance**0.5 / mean)
    assert cv_percent([30.0]) == 0


@given(st.lists(st.floats(5, 60), min_size=2, max_size=8), st.floats(0.1, 10))
def test_cv_has_no_unit(values: list[float], factor: float) -> None:
    assert cv_percent([factor * v for v in values]) == pytest.approx(cv_percent(values), abs=1e-6)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({"cv_percent": 5.0, "psnr": 15.0, "vif": 1.0}, ""),  # the limits themselves are stable
        ({"cv_percent": 5.1, "psnr": 30.0, "vif": 0.5}, "CV 5.1 % > 5 %"),
        ({"cv_percent": 1.0, "psnr": 14.9, "vif": 0.5}, "PSNR 14.9 dB < 15 dB"),
        ({"cv_percent": 1.0, "psnr": 30.0, "vif": 1.2}, "VIF 1.20 > 1"),
        ({"cv_percent": 1.0, "psnr": 30.0}, ""),
        ({"cv_percent": 9.0, "psnr": 10.0}, "CV 9.0 % > 5 %, PSNR 10.0 dB < 15 dB"),
        ({"spread_percent": 20.0}, ""),
        ({"spread_percent": 20.1}, "spread 20.1 % > 20 %"),
    ],
)
def test_limits_of_a_stable_result(measured: dict[str, float], words: str) -> None:
    limits = Limits(cv_percent=5, min_psnr=15, max_vif=1, spread_percent=20)
    assert reason(measured, limits) == words
    beyond = violations(measured, limits)
    assert (max(beyond.values()) > 0) == bool(words)
    assert beyond.keys() == measured.keys()


def test_spread_is_that_of_pixels_and_needs_no_truth() -> None:
    rng = np.random.default_rng(0)
    mean, noise = rng.random((3, 50, 60)), rng.standard_normal((200, 3, 50, 60))
    expected = 100 * 0.1 / np.sqrt(np.mean(mean**2))  # of members with independent errors of sd 0.1
    assert spread_percent(mean + 0.1 * noise) == pytest.approx(expected, rel=0.01)
    assert spread_percent(np.stack([mean, mean])) == 0
    assert spread_percent(np.zeros((2, 1, 8, 8))) == np.inf


def test_rule_on_spreads_is_the_rule_on_cvs() -> None:
    values = [1, 1, 1, 9, 9, 9, 1, 9, 9, 9, 9, 9]
    iterations = [100 * (i + 1) for i in range(len(values))]
    assert spread_stops_at(iterations, values, RULE) == stops_at(*curve(*values), RULE) == 600


def curve(*cvs: float) -> tuple[list[int], list[list[float]]]:
    """Checks every 100 iterations of two members with the given CV."""
    return [100 * (i + 1) for i in range(len(cvs))], [[30 - 0.3 * cv, 30 + 0.3 * cv] for cv in cvs]


def test_rule_waits_for_warm_up_and_patience() -> None:
    iterations, psnr = curve(9, 9, 9, 9, 9)
    stops = [stops_at(iterations[:n], psnr[:n], RULE) for n in range(1, 6)]
    assert stops == [None, None, None, 400, 400]  # the checks at 300 and 400 are the first two that count


def test_rule_lets_spikes_pass_and_catches_members_that_stay_behind() -> None:
    assert stops_at(*curve(1, 1, 1, 1, 20, 1, 1, 20, 1), RULE) is None
    assert stops_at(*curve(1, 1, 1, 1, 20, 20, 20), RULE) == 700


def test_rule_counts_only_checks_in_a_row() -> None:
    rule = replace(RULE, warmup=0, window=1, patience=3)
    assert stops_at(*curve(9, 9, 1, 9, 9), rule) is None
    assert stops_at(*curve(1, 9, 9, 9), rule) == 400


def test_a_run_that_begins_high_above_the_threshold_ends_at_the_threshold() -> None:
    rule = replace(RULE, stop=1.5, warmup=0, window=1, patience=3)
    assert stops_at(*curve(8, 6, 6), rule) == 300
    assert stops_at(*curve(7, 7, 7), rule) is None
    assert stops_at(*curve(8, 4.9, 6, 6, 6), rule) is None
    assert stops_at(*curve(7, 7, 7), replace(rule, stop=1.0)) == 300


@given(st.lists(st.floats(0, 12), max_size=12), st.integers(1, 4), st.integers(1, 4), st.floats(1, 2))
def test_rule_is_what_its_words_say(cvs: list[float], window: int, patience: int, stop: float) -> None:
    rule = StopRule(5, stop, 200, window, patience)
    iterations, psnr = curve(*cvs)
    expected, length = None, 0
    for n in range(1, len(cvs) + 1):
        if iterations[n - 1] < 200:
            continue
        members = [sorted(check[m] for check in psnr[max(0, n - window) : n]) for m in range(2)]
        medians = [(m[(len(m) - 1) // 2] + m[len(m) // 2]) / 2 for m in members]
        cv = 100 * abs(medians[1] - medians[0]) / 2 / ((medians[0] + medians[1]) / 2)
        length = length + 1 if cv > 5 * (1 if length else stop) else 0
        if length == patience and expected is None:
            expected = iterations[n - 1]
    assert stops_at(iterations, psnr, rule) == expected


@given(st.lists(st.lists(st.floats(20, 20.9), min_size=3, max_size=3), min_size=1, max_size=12))
def test_rule_never_stops_a_fit_that_is_always_stable(psnr: list[list[float]]) -> None:
    assert max(map(cv_percent, psnr)) <= 5
    assert stops_at(list(range(100, 100 * len(psnr) + 1, 100)), psnr, replace(RULE, warmup=0, patience=1)) is None


def test_empty_curve() -> None:
    assert stops_at([], [], RULE) is None
    assert np.isfinite(cv_percent([1.0, 2.0]))


def test_dead_members_are_constant_in_every_tile() -> None:
    ranges = np.array([[0.5, 0.1], [0.0, 1e-5], [0.0, 0.5], [np.nan, 0.0]])  # a tile of background may be constant
    assert dead_members(ranges).tolist() == [False, True, False, False]


def test_audit_says_what_a_rule_would_have_done() -> None:
    iterations, behind = curve(1, 9, 9, 9)
    calm, late = curve(1, 1, 1, 1)[1], curve(1, 9, 9, 1)[1]
    fits = [
        Recorded(iterations, behind, {200: (31.0, True), 400: (33.0, False)}),
        Recorded(iterations, calm, {200: (30.0, True), 400: (32.0, True)}),
        Recorded(iterations, late, {200: (30.0, False), 400: (34.0, True)}),
    ]
    rule = replace(RULE, warmup=0, window=1)
    # the first and the last are stopped at 300 of 400, the last wrongly, and with it goes the best result
    assert audit(fits, rule) == Audit(pytest.approx(200 / 1200), 1, 1, 2, 1, pytest.approx(2.0))
    assert audit(fits, replace(rule, patience=4)) == Audit(0.0, 1, 0, 2, 0, 0.0)
    assert audit(fits, replace(rule, patience=3)) == Audit(0.0, 1, 0, 2, 0, 0.0)  # a stop at the end saves nothing


@pytest.mark.parametrize(
    ("studies", "found"),
    [
        (("audit_axial", "audit_coronal"), Audit(pytest.approx(0.05, abs=5e-3), 27, 10, 33, 0, 0.0)),
        (("reduced",), Audit(pytest.approx(0.03, abs=5e-3), 112, 20, 80, 0, 0.0)),
    ],
)
def test_the_default_rule_on_recorded_fits(studies: tuple[str, ...], found: Audit) -> None:
    """docs/stability.md: real fits that nothing stopped, two slices at 96x120, then all pairs at 64x80."""
    root, fits = Path(__file__).parents[1], []
    for name in studies:
        results = root / "benchmarks" / "results" / name
        trials = pd.read_csv(f"{results}.csv").assign(state="COMPLETE")
        trials["iterations_done"] = trials["iterations"]
        fits += recorded(trials, pd.read_csv(f"{results}_checks.csv"), read_spec(root / "studies" / f"{name}.toml"))
    table = StabilitySpec()
    rule = StopRule(table.cv_percent, table.stop, table.warmup, table.window, table.patience)
    assert audit(fits, rule) == found
    hasty = audit(fits, replace(rule, stop=1, window=1, patience=1))  # the CV at one check is mostly spikes
    assert hasty.wronged > found.stable / 4
