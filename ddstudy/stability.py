"""Stability of an ensemble: the coefficient of variation, the thesis' filter, and the rule that stops a fit early.

Pure functions of numbers. A spike of Adam's loss passes within some hundred iterations, a member that stays behind
does not: the stop rule therefore looks at the median of each member's PSNR over a window of checks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ddstudy.spec import StabilitySpec


def cv_percent(psnr: ArrayLike) -> float:
    """Coefficient of variation of the members' PSNR in percent, 100 sd / mean, population sd (Eq. 4.1)."""
    values = np.asarray(psnr, dtype=np.float64)
    return float(100 * values.std() / values.mean())


def violations(cv: float, psnr: float, vif: float | None, limits: StabilitySpec) -> dict[str, float]:
    """How far a result is beyond each limit of the filter of sec. 4.3; stable means that none is above 0.

    Args:
        cv: coefficient of variation, percent.
        psnr: of the ensemble output, dB.
        vif: of the ensemble output; None where the slice is too small for it.
        limits: the thresholds.

    Returns:
        `cv_percent`, `psnr` and, where it is known, `vif`: value minus limit, positive where it is broken.
    """
    beyond = {"cv_percent": cv - limits.cv_percent, "psnr": limits.min_psnr - psnr}
    if vif is not None:
        beyond["vif"] = vif - limits.max_vif
    return beyond


def reason(cv: float, psnr: float, vif: float | None, limits: StabilitySpec) -> str:
    """Why a result is unstable, in words; empty if it is stable."""
    beyond = violations(cv, psnr, vif, limits)
    words = {
        "cv_percent": f"CV {cv:.1f} % > {limits.cv_percent:g} %",
        "psnr": f"PSNR {psnr:.1f} dB < {limits.min_psnr:g} dB",
        "vif": f"VIF {vif or 0:.2f} > {limits.max_vif:g}",
    }
    return ", ".join(words[name] for name, excess in beyond.items() if excess > 0)


def should_stop(iterations: Sequence[int], psnr: Sequence[Sequence[float]], limits: StabilitySpec) -> bool:
    """Whether a fit has been unstable for long enough to be stopped.

    True when, at each of the last `patience` checks, all from `warmup` on, the CV of the members' windowed medians
    is above the limit. The median runs over the last `window` checks, so a spike shorter than half of it is not seen.

    Args:
        iterations: of the checks, ascending.
        psnr: of every member at each check, dB.
        limits: threshold, warm-up, window, patience.
    """
    judged = [index for index, iteration in enumerate(iterations) if iteration >= limits.warmup][-limits.patience :]
    if len(judged) < limits.patience:
        return False
    curves = np.asarray(psnr, dtype=np.float64)
    medians = (np.median(curves[max(0, index + 1 - limits.window) : index + 1], axis=0) for index in judged)
    return all(cv_percent(members) > limits.cv_percent for members in medians)
