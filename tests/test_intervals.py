"""Intervals and exact tests against what counts or loops give."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ddstudy.report import intervals

PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=7)


@settings(max_examples=30, deadline=None)
@given(chances=PROBABILITIES, cases=st.integers(0, 7))
def test_counts_of_unlike_chances_are_those_of_all_outcomes(chances, cases):
    of = {True: 0.0, False: 0.0}
    for outcome in itertools.product((0, 1), repeat=len(chances)):
        of[sum(outcome) <= cases] += math.prod(p if one else 1 - p for one, p in zip(outcome, chances, strict=True))
    assert intervals.at_most(cases, chances) == pytest.approx(of[True])
    assert intervals.at_least(cases + 1, chances) == pytest.approx(of[False], abs=1e-12)


def test_counts_of_equal_chances_are_binomial():
    assert intervals.at_most(3, [0.1] * 400) == pytest.approx(stats.binom.cdf(3, 400, 0.1))
    assert intervals.at_least(70, [0.1] * 400) == pytest.approx(stats.binom.sf(69, 400, 0.1))


def test_rarer_is_the_tail_of_drawing_without_replacement():
    tail = sum(math.comb(10, n) * math.comb(20, 8 - n) for n in range(2)) / math.comb(30, 8)
    assert intervals.rarer(1, 10, 7, 20) == pytest.approx(tail)


@settings(max_examples=50, deadline=None)
@given(p_values=PROBABILITIES)
def test_holm_rejects_what_the_steps_reject(p_values):
    for level, corrected in ((0.05, intervals.holm(p_values)), (0.3, intervals.holm([*p_values, math.nan])[:-1])):
        left = dict(enumerate(p_values))
        while left and min(left.values()) * len(left) < level:
            del left[min(left, key=left.__getitem__)]
        assert {place for place, p in enumerate(corrected) if p >= level} == set(left)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(6, 40), seed=st.integers(0, 1000), ends=st.booleans())
def test_the_interval_holds_what_is_not_rejected(count, seed, ends):
    numbers = np.random.default_rng(seed).exponential(size=count)
    mean = intervals.mean_of(numbers)
    assert mean.low < mean.mean < mean.high
    assert mean.mean == pytest.approx(numbers.mean())
    outside, inside = (mean.low - 1e-9, mean.low + 0.01) if ends else (mean.high + 1e-9, mean.high - 0.01)
    assert mean.p(outside) <= 0.0503  # 251 of 10,000 on either side
    assert mean.p(inside) > 0.05
    student = stats.ttest_1samp(numbers, inside).pvalue
    assert mean.p(inside) >= student


def test_no_p_value_is_less_than_that_of_signs():
    assert intervals.mean_of([1.0] * 6).p(0) == 2 / 2**6
    assert intervals.mean_of([1.0] * 5).p(0) == 2 / 2**5 > intervals.LEVEL
    assert intervals.mean_of(np.linspace(10, 10.001, 6)).p(0) == 2 / 2**6
    assert intervals.mean_of([1.0] * 6).p(1) == 1
    assert intervals.mean_of([1.0]).p(0) == 1
    assert math.isnan(intervals.mean_of([1.0]).low)


def test_effects_that_are_mostly_none_have_an_interval():
    """Guards against infinite ends: resamples of one value again and again have no error."""
    mean = intervals.mean_of([0.0] * 20 + [1.0] * 7)
    assert np.isfinite([mean.low, mean.high]).all()
    assert mean.p(0) >= 2 / 2**7
    assert intervals.mean_of([0.0] * 27 + [1.0]).p(0) == 1


@pytest.mark.parametrize("draw", ["normal", "standard_t", "exponential"])
def test_the_level_is_held_where_data_are_few(draw):
    """In full in benchmarks/finding_levels.py; here with a margin for 300 draws."""
    random, truth = np.random.default_rng(1), float(draw == "exponential")
    arguments = [3] if draw == "standard_t" else []
    wrong = [intervals.mean_of(getattr(random, draw)(*arguments, size=8)).p(truth) < 0.05 for _ in range(300)]
    assert np.mean(wrong) < 0.085
