"""How sure a mean or a count is: intervals and tests that hold their level where data are few.

`benchmarks/finding_levels.py` measures what each of them holds. scipy.stats takes a second to import, which only those
wait for who ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.05
_RESAMPLES = 9_999


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval: the wider of Student's and of the studentised bootstrap, end by end.

    Student's interval alone is too short for skewed data (10 % outside at 6 to 8 exponential numbers), the bootstrap's
    alone for heavy tails (6 to 8 % outside for Student's t with 3 degrees of freedom). The standard error is widened by
    1 + 8 / n^2, without which both are too short for 6 and 8 exponential numbers.

    Attributes:
        values: in ascending order.
        mean: of them.
        error: its standard error, widened; NaN for one value.
        studentised: (mean of a resample - mean) / its standard error, not widened, in ascending order.
        low: lower end of the interval; NaN for one value.
        high: upper end.
    """

    values: NDArray[np.float64]
    mean: float
    error: float
    studentised: NDArray[np.float64]
    low: float
    high: float

    def p(self, value: float) -> float:
        """Two-sided p-value for a true mean of `value`: the larger of Student's and the bootstrap's.

        It is never less than that of a sign test in which all agree: six values that differ from `value` are the
        fewest that can reach 5 %, whatever their distribution.
        """
        fewest = 2.0 ** (1 - np.count_nonzero(self.values != value))
        if not self.error > 0:  # all are equal, or there is one only
            return min(1.0, fewest)
        from scipy import stats

        t = (self.mean - value) / self.error
        beyond = min(np.count_nonzero(self.studentised >= t), np.count_nonzero(self.studentised <= t))
        bootstrap = 2 * (1 + beyond) / (1 + _RESAMPLES)
        return float(min(1.0, max(2 * stats.t.sf(abs(t), len(self.values) - 1), bootstrap, fewest)))


def mean_of(numbers: ArrayLike) -> Mean:
    """Mean and interval of one number or more; the same for the same numbers in any order."""
    values = np.sort(np.asarray(numbers, dtype=float))
    count, mean = len(values), float(values.mean())
    if count < 2:
        return Mean(values, mean, np.nan, np.empty(0), np.nan, np.nan)
    if np.ptp(values) == 0:
        return Mean(values, mean, 0.0, np.empty(0), mean, mean)
    from scipy import stats

    error = float(values.std(ddof=1)) / count**0.5 * (1 + 8 / count**2)
    shares, centred = _resamples(count), values - mean
    means = shares @ centred
    errors = np.sqrt(np.maximum(shares @ centred**2 - means**2, 0) / (count - 1))
    with np.errstate(divide="ignore", invalid="ignore"):  # where a resample is one value again and again
        studentised = np.sort(np.where(errors > 1e-6 * error, means / errors, np.sign(means) * np.inf))
    student = float(stats.t.ppf(1 - LEVEL / 2, count - 1))
    first, last = studentised[[int(LEVEL / 2 * _RESAMPLES), -1 - int(LEVEL / 2 * _RESAMPLES)]]
    above = max(student, last) if np.isfinite(last) else student
    below = max(student, -first) if np.isfinite(first) else student
    return Mean(values, mean, error, studentised, float(mean - above * error), float(mean + below * error))


@lru_cache(maxsize=2)  # kept, as several means are of as many values
def _resamples(count: int) -> NDArray[np.float64]:
    """Of each resample, how often it has each of `count` values, as shares that add up to 1."""
    resample = np.arange(_RESAMPLES)[:, None] * count
    drawn = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count)) + resample
    return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape) / count


def share(cases: int, of: int) -> tuple[float, float, float]:
    """A share and its exact 95 % interval (Clopper and Pearson)."""
    from scipy import stats

    interval = stats.binomtest(cases, of).proportion_ci(method="exact")
    return cases / of, float(interval.low), float(interval.high)


def at_most(cases: int, chances: ArrayLike) -> float:
    """How likely so few cases are, or fewer, among independent trials that have these chances."""
    return float(_counts(chances)[: cases + 1].sum())


def at_least(cases: int, chances: ArrayLike) -> float:
    """How likely so many cases are, or more, among independent trials that have these chances."""
    return float(_counts(chances)[cases:].sum())


def rarer(cases: int, of: int, cases_there: int, of_there: int) -> float:
    """One-sided p-value of Fisher's exact test: cases are as common here as there."""
    from scipy import stats

    table = [[cases, of - cases], [cases_there, of_there - cases_there]]
    return float(stats.fisher_exact(table, alternative="less").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected by Holm's method, so that one of them below 5 % by chance has a probability below 5 %.

    NaN, where nothing was tested, stays NaN and does not count.
    """
    corrected, least = [float("nan")] * len(p_values), 0.0
    tested = sorted((p, place) for place, p in enumerate(p_values) if not np.isnan(p))
    for rank, (p, place) in enumerate(tested):
        least = max(least, min(1.0, p * (len(tested) - rank)))
        corrected[place] = least
    return corrected


def _counts(chances: ArrayLike) -> NDArray[np.float64]:
    """The probability of 0, 1, ... cases (a Poisson binomial distribution)."""
    found = np.ones(1)
    for chance in np.asarray(chances, dtype=float):
        found = np.convolve(found, [1 - chance, chance])
    return found
