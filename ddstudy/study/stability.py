"""Stability of an ensemble: the coefficient of variation, the thesis' filter, and the rule that stops a fit early.

Pure functions of numbers. A spike of Adam's loss passes within some hundred iterations, a member that stays behind
does not: the stop rule therefore looks at the median of each member's PSNR over a window of checks. `audit` says what
a rule would have done to fits that ran without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Limits:
    """The filter of sec. 4.3: what a stable result keeps to.

    Attributes:
        cv_percent: highest coefficient of variation of the members' PSNR, percent.
        min_psnr: lowest PSNR, dB.
        max_vif: highest VIF.
        spread_percent: highest spread of the members' outputs, percent, for studies whose judge is not the truth.
    """

    cv_percent: float
    min_psnr: float
    max_vif: float
    spread_percent: float = math.inf


@dataclass(frozen=True)
class StopRule:
    """When an unstable fit is stopped early, see `stops_at`.

    Attributes:
        percent: highest coefficient of variation, or spread, of a stable fit, percent.
        stop: multiple of `percent` above which a run of unstable checks begins.
        warmup: iterations before a fit may be stopped.
        window: checks in the median that hides passing spikes.
        patience: unstable checks in a row that stop a fit.
    """

    percent: float
    stop: float
    warmup: int
    window: int
    patience: int


def cv_percent(psnr: ArrayLike) -> float:
    """Coefficient of variation of the members' PSNR in percent, 100 sd / mean, population sd (Eq. 4.1)."""
    values = np.asarray(psnr, dtype=np.float64)
    return float(100 * values.std() / values.mean())


def spread_percent(outputs: NDArray[np.floating[Any]]) -> float:
    """Spread of the members' outputs (M, ...) in percent, which needs no truth.

    The root mean square of their standard deviation (population sd) relative to that of their mean.
    """
    values = np.asarray(outputs, dtype=np.float64)
    mean = np.sqrt(np.mean(values.mean(axis=0) ** 2))
    return float(100 * np.sqrt(values.var(axis=0).mean()) / mean) if mean else math.inf


def violations(measured: Mapping[str, float], limits: Limits) -> dict[str, float]:
    """How far a result is beyond each limit that says what stable means; stable means that none is above 0.

    Args:
        measured: of the filter of sec. 4.3 `cv_percent`, `psnr` (dB) and, where the slice is large enough for it, `vif`
            of the ensemble output; or `spread_percent` where the judge is not the truth.
        limits: of the study.

    Returns:
        For each number, by its name, value minus limit: positive where it is broken.
    """
    beyond = {
        "cv_percent": lambda value: value - limits.cv_percent,
        "psnr": lambda value: limits.min_psnr - value,
        "vif": lambda value: value - limits.max_vif,
        "spread_percent": lambda value: value - limits.spread_percent,
    }
    return {name: beyond[name](value) for name, value in measured.items()}


def reason(measured: Mapping[str, float], limits: Limits) -> str:
    """Why a result is unstable, in words; empty if it is stable. Arguments are those of `violations`."""
    words = {
        "cv_percent": f"CV {{:.1f}} % > {limits.cv_percent:g} %",
        "psnr": f"PSNR {{:.1f}} dB < {limits.min_psnr:g} dB",
        "vif": f"VIF {{:.2f}} > {limits.max_vif:g}",
        "spread_percent": f"spread {{:.1f}} % > {limits.spread_percent:g} %",
    }
    beyond = violations(measured, limits)
    return ", ".join(words[name].format(measured[name]) for name, excess in beyond.items() if excess > 0)


def dead_members(ranges: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Members (M,) whose outputs are constant in every tile, of ranges (M, T): all paths to the input are clipped.

    No gradient reaches past a clipped ReLU, so a dead member stays dead.
    """
    return np.asarray((ranges < 1e-4).all(axis=1))


def stops_at(iterations: Sequence[int], psnr: Sequence[Sequence[float]], rule: StopRule) -> int | None:
    """The iteration at which the rule stops a fit; None while it does not.

    From `warmup` on, each check judges the CV of the members' windowed medians: the median of a member's PSNR over the
    last `window` checks, which a spike shorter than half of the window does not move. A check above `stop` times
    `percent` begins a run of unstable checks; one at or below `percent` ends it. The fit stops when the run has
    `patience` checks: members that are merely slow have time to catch up.

    Args:
        iterations: of the checks, ascending.
        psnr: of every member at each check, dB.
        rule: of the study.
    """
    curves = np.asarray(psnr, dtype=np.float64)

    def cv(index: int) -> float:
        return cv_percent(np.median(curves[max(0, index + 1 - rule.window) : index + 1], axis=0))

    return _first_run(iterations, cv, rule)


def spread_stops_at(iterations: Sequence[int], spreads: Sequence[float], rule: StopRule) -> int | None:
    """The same where the truth is not known: each check judges the median of the last `window` spreads, percent."""
    return _first_run(iterations, lambda i: float(np.median(spreads[max(0, i + 1 - rule.window) : i + 1])), rule)


def _first_run(iterations: Sequence[int], instability: Callable[[int], float], rule: StopRule) -> int | None:
    run = 0
    for index, iteration in enumerate(iterations):
        if iteration < rule.warmup:
            continue
        calm = rule.percent * (1 if run else rule.stop)
        run = run + 1 if instability(index) > calm else 0
        if run >= rule.patience:
            return iteration
    return None


@dataclass(frozen=True)
class Recorded:
    """A fit that ran to its end, for replays of the rule.

    Attributes:
        iterations: of its regular checks, ascending.
        psnr: of every member at each check, dB.
        results: budget -> PSNR of the ensemble and whether it was stable.
    """

    iterations: Sequence[int]
    psnr: Sequence[Sequence[float]]
    results: Mapping[int, tuple[float, bool]]


@dataclass(frozen=True)
class Audit:
    """What a rule would have done to recorded fits.

    Attributes:
        saved: share of all iterations that would not have been run.
        unstable: fits that ended unstable.
        caught: of these, stopped before their end.
        stable: fits that ended stable.
        wronged: of these, stopped before their end.
        best_lost: dB between the best stable result of all and the best one that would have been reached; 0 where none
            was stable, infinite where none would have been reached.
    """

    saved: float
    unstable: int
    caught: int
    stable: int
    wronged: int
    best_lost: float


def audit(fits: Sequence[Recorded], rule: StopRule) -> Audit:
    """Replays the rule on fits that ran without it."""
    ran = kept = unstable = caught = stable = wronged = 0
    best, reached = -math.inf, -math.inf
    for fit in fits:
        end = max(fit.results)
        judged = [index for index, iteration in enumerate(fit.iterations) if iteration < end]
        stop = stops_at([fit.iterations[i] for i in judged], [fit.psnr[i] for i in judged], rule)
        ran, kept = ran + end, kept + (stop or end)
        if fit.results[end][1]:
            stable, wronged = stable + 1, wronged + (stop is not None)
        else:
            unstable, caught = unstable + 1, caught + (stop is not None)
        for budget, (score, fine) in fit.results.items():
            if fine:
                best = max(best, score)
                reached = max(reached, score) if budget <= (stop or end) else reached
    lost = best - reached if best > -math.inf else 0.0
    return Audit(1 - kept / ran if ran else 0.0, unstable, caught, stable, wronged, lost)
