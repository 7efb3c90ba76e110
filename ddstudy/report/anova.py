"""Which axis decides a metric: analysis of variance of the measured settings, however many of them are missing.

The functional ANOVA writes a metric as a mean, an effect of each axis, one of each pair of axes, and a rest. Effects
have mean zero over the values of each of their axes, which all weigh the same; the variance of an effect over the
settings is its share. Where the measured settings are all combinations of their values, effects are means of cells, and
exact. Otherwise they are estimated as random effects, each family of effects with a variance of its own that comes
from the data: families without evidence shrink to nothing, and what is missing by chance shifts nothing (A. Gelman,
"Analysis of variance: why it is more important than ever", Annals of Statistics 33, 2005; the variances by EM). Every
value of an axis has its own effect, so neither the size of numbers nor an order of names matters. A search that chose
its settings by their values is another matter: it leaves bad values of an axis unmeasured, and what it did not look at
no analysis can share out well.

Forests with one column per category, as in Optuna's fANOVA, do not do here: they integrate over each column on its own,
hence mostly over settings that have several values of an axis at once, or none. On a whole grid where the exact shares
of tiling and s are .48 and .28, that gives .26 and .53.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ddstudy.report.tables import finished

LEAST = 10  # settings, for an analysis
ROUNDS = 500  # of EM, at most; tens are usual
CHANGE = 1e-4  # of a share in a round that is none


@dataclass(frozen=True)
class Importance:
    """How much of a metric's variance each axis explains.

    Attributes:
        metric: the target of the analysis.
        evaluator: how the shares were computed, in words.
        shares: columns `term` and `share`, largest first, "higher order" (all that is neither an axis' own nor a
            pair's) last; shares add up to 1. Empty where there was too little to analyse.
        reason: why `shares` is empty.
    """

    metric: str
    evaluator: str
    shares: pd.DataFrame
    reason: str = ""


def importance(trials: pd.DataFrame, axes: Sequence[str], metric: str = "psnr") -> Importance:
    """Shares of the variance of `metric` that axes and pairs of axes explain, over all measured settings.

    Args:
        trials: the table of trials, see `ddstudy.report.tables`.
        axes: columns that make a setting; numbers or names, NaN where an option does not apply. An axis has an
            effect only where it applies.
        metric: a column.
    """
    rows = finished(trials).dropna(subset=[metric])
    cells = rows.groupby(list(axes), observed=True, dropna=False, sort=False)[metric].mean().reset_index()
    varied = [axis for axis in axes if cells[axis].nunique() > 1]
    nothing = pd.DataFrame({"term": pd.Series(dtype=object), "share": pd.Series(dtype=float)})
    if len(cells) < LEAST:
        return Importance(metric, "none", nothing, f"Measured settings: {len(cells)}; at least {LEAST} are needed.")
    if cells[metric].nunique() < 2:
        return Importance(metric, "none", nothing, "All measured trials have the same value.")
    values = cells[metric].to_numpy(dtype=float)
    combinations = math.prod(cells[axis].nunique(dropna=False) for axis in axes)
    if len(cells) == combinations and cells[varied].notna().to_numpy().all():
        evaluator, shares = "exact functional ANOVA of a whole grid", _exact(cells, varied, metric)
    else:
        evaluator = f"ANOVA with random effects, estimated from {len(cells):,} of {combinations:,} combinations"
        shares = _estimated(cells[varied], values)
    rest = ("higher order", max(0.0, 1.0 - sum(shares.values())))
    terms = sorted(shares.items(), key=lambda term: -term[1])
    return Importance(metric, evaluator, pd.DataFrame([*terms, rest], columns=["term", "share"]))


def _terms(axes: Sequence[str]) -> list[tuple[str, ...]]:
    return [*((axis,) for axis in axes), *itertools.combinations(axes, 2)]


def _exact(cells: pd.DataFrame, axes: Sequence[str], metric: str) -> dict[str, float]:
    """Shares of a full factorial, one row per combination."""
    total, shares = cells[metric].var(ddof=0), dict[str, float]()
    for term in _terms(axes):
        explained = float(cells.groupby(list(term), observed=True)[metric].mean().var(ddof=0) / total)
        own = sum(shares[axis] for axis in term) if len(term) > 1 else 0.0
        shares[_name(term)] = max(0.0, explained - own)  # rounding may leave a hair less than nothing
    return shares


def _estimated(settings: pd.DataFrame, values: NDArray[np.float64]) -> dict[str, float]:
    """Shares of any set of settings, by EM.

    Args:
        settings: one row per setting, one column per axis that varies.
        values: (settings,), of the metric.
    """
    terms, codes = _terms([*map(str, settings)]), {axis: pd.factorize(settings[axis])[0] for axis in settings}
    parts = [np.stack([codes[axis] for axis in term]) for term in terms]
    columns = [np.ones((len(settings), 1)), *map(_contrasts, parts)]
    sizes = np.array([block.shape[1] for block in columns])
    family = np.repeat(np.arange(len(columns)), sizes)  # of each coefficient; 0 is the mean
    X, y = np.hstack(columns), (values - values.mean()) / values.std()
    XtX, Xty = X.T @ X, X.T @ y
    # pairs start from next to nothing, so that what axes explain alone is theirs where the settings leave both open
    pairs = np.array([False, *(len(term) == 2 for term in terms)])
    rest, squares = 0.5, sizes * np.where(pairs, 1e-4, 0.05)
    for _ in range(ROUNDS):
        scale = np.sqrt(squares / np.maximum(sizes, 1))[family]  # standard deviation of each coefficient, a priori
        # posterior of the coefficients, which are `scale` times these
        inverse = np.linalg.inv(np.eye(len(scale)) + scale[:, None] * XtX * scale / rest)
        mean = scale * (inverse @ (scale * Xty)) / rest
        before, variance = squares, scale**2 * np.diag(inverse)
        squares = np.bincount(family, mean**2 + variance, minlength=len(columns))
        unsure = rest * (1.0 - np.diag(inverse)).sum()
        rest = max((((y - X @ mean) ** 2).sum() + unsure) / len(y), 1e-9)
        if np.abs(squares - before).max() < CHANGE:
            break
    explained = squares[1:] * [(part >= 0).all(axis=0).mean() for part in parts]
    return dict(zip(map(_name, terms), (explained / (explained.sum() + rest)).tolist(), strict=True))


def _contrasts(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Columns in which the effects of one term are sums of squares.

    For an axis of n values n - 1 orthogonal columns of mean 0 and mean square 1 over the values; for a pair their
    products. All are 0 where an axis does not apply.

    Args:
        codes: (axes of the term, settings), which value a setting has; -1 where the axis does not apply.

    Returns:
        (settings, columns); none where an axis has one value among the settings to which all apply, or where none has
        all, as options of two priors.
    """
    applies = (codes >= 0).all(axis=0)
    if not applies.any():
        return np.zeros((codes.shape[1], 0))
    block = np.ones((int(applies.sum()), 1))
    for values in codes[:, applies]:
        levels, places = np.unique(values, return_inverse=True)
        n = len(levels)
        contrasts = np.linalg.qr(np.eye(n) - 1.0 / n)[0][:, : n - 1] * math.sqrt(n)
        block = (block[:, :, None] * contrasts[places][:, None, :]).reshape(len(block), -1)
    columns = np.zeros((codes.shape[1], block.shape[1]))
    columns[applies] = block
    return columns


def _name(term: tuple[str, ...]) -> str:
    return " \u00d7 ".join(term)
