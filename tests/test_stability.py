import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddstudy.spec import StabilitySpec
from ddstudy.stability import cv_percent, reason, should_stop, violations

RULE = StabilitySpec(warmup=300, window=3, patience=2)


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
    ("cv", "psnr", "vif", "words"),
    [
        (5.0, 15.0, 1.0, ""),  # the limits themselves are stable
        (5.1, 30.0, 0.5, "CV 5.1 % > 5 %"),
        (1.0, 14.9, 0.5, "PSNR 14.9 dB < 15 dB"),
        (1.0, 30.0, 1.2, "VIF 1.20 > 1"),
        (1.0, 30.0, None, ""),
        (9.0, 10.0, None, "CV 9.0 % > 5 %, PSNR 10.0 dB < 15 dB"),
    ],
)
def test_filter_of_section_4_3(cv: float, psnr: float, vif: float | None, words: str) -> None:
    assert reason(cv, psnr, vif, StabilitySpec()) == words
    beyond = violations(cv, psnr, vif, StabilitySpec())
    assert (max(beyond.values()) > 0) == bool(words)
    assert ("vif" in beyond) == (vif is not None)


def curve(*cvs: float) -> tuple[list[int], list[list[float]]]:
    """Checks every 100 iterations of two members with the given CV."""
    return [100 * (i + 1) for i in range(len(cvs))], [[30 - 0.3 * cv, 30 + 0.3 * cv] for cv in cvs]


def test_rule_waits_for_warm_up_and_patience() -> None:
    iterations, psnr = curve(9, 9, 9, 9, 9)
    stops = [should_stop(iterations[:n], psnr[:n], RULE) for n in range(1, 6)]
    assert stops == [False, False, False, True, True]  # the checks at 300 and 400 are the first two that count


def test_rule_lets_spikes_pass_and_catches_members_that_stay_behind() -> None:
    spike = curve(1, 1, 1, 1, 20, 1, 1, 20, 1)
    behind = curve(1, 1, 1, 1, 20, 20, 20)
    assert not any(should_stop(spike[0][:n], spike[1][:n], RULE) for n in range(1, 10))
    assert should_stop(*behind, RULE)


def test_rule_counts_only_checks_in_a_row() -> None:
    rule = StabilitySpec(warmup=0, window=1, patience=3)
    assert not should_stop(*curve(9, 9, 1, 9, 9), rule)
    assert should_stop(*curve(1, 9, 9, 9), rule)


@given(st.lists(st.lists(st.floats(20, 20.9), min_size=3, max_size=3), min_size=1, max_size=12))
def test_rule_never_stops_a_fit_that_is_always_stable(psnr: list[list[float]]) -> None:
    assert max(map(cv_percent, psnr)) <= 5
    assert not should_stop(list(range(100, 100 * len(psnr) + 1, 100)), psnr, StabilitySpec(warmup=0, patience=1))


def test_empty_curve() -> None:
    assert not should_stop([], [], RULE)
    assert np.isfinite(cv_percent([1.0, 2.0]))
