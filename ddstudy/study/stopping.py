"""Stopping rules: which iterate of a fit is the answer, and when the fit may end, without the truth.

A network that is fitted to a noisy measurement passes the image on its way to the noise. A rule looks at the checks of
a fit, one every `fit.check_every` iterations, and says of each whether it is the best so far by a *criterion*:

- `wmv`: variance of the latest outputs (ES-WMV), which falls while they settle on the image and rises with the noise;
- `emv`: the same by exponential averages (ES-EMV), which keeps one image instead of a window of them;
- `held_out`: error on samples that no loss sees;
- `discrepancy`: the first check whose loss is down to the noise, sigma^2;
- `budget`: none, so the last check is the answer.

The first three choose the check where their criterion is lowest, and are over when that was `patience` iterations ago.
Where nothing was judged yet, the latest check is the choice. A choice is made of numbers alone, so rules can be
replayed on recorded curves: `replay` and `audit`. It never depends on what comes after, so that of a smaller budget is
that of a fit which is cut there.

Sources: Wang et al., "Early stopping for deep image prior", TMLR 2023 (arXiv 2112.06074): `wmv`, `emv`; Morozov's
principle: `discrepancy`. The originals watch the network's raw output at every iteration; here it is the ensemble's, of
the iterate that `fit.keep` chooses, at checks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Name = Literal["budget", "wmv", "emv", "discrepancy", "held_out"]
NAMES: tuple[Name, ...] = get_args(Name)
WINDOW = 100  # iterations that `wmv` looks back, and before which neither variance is judged
WEIGHT = 0.1  # of an iteration in the averages of `emv`


class WindowedVariance:
    """The criterion of `wmv`: mean over the window of the mean squared distance to the window's mean.

    The window are the checks of the last `WINDOW` iterations; with a check at every iteration, the original's.
    """

    def __init__(self) -> None:
        self._outputs: deque[tuple[int, NDArray[np.float32]]] = deque()

    def observe(self, iteration: int, output: NDArray[np.float32]) -> float:
        """Takes in the output (C, H, W) of a check; NaN until the window is full, and where it has one check only."""
        self._outputs.append((iteration, output.copy()))
        while self._outputs[0][0] <= iteration - WINDOW:
            self._outputs.popleft()
        if iteration < WINDOW or len(self._outputs) < 2:
            return math.nan
        return float(np.var([each for _, each in self._outputs], axis=0, dtype=np.float64).mean())


class MovingVariance:
    """The criterion of `emv`: d = x - EMA; EMA <- EMA + a d; EMV <- (1 - a) (EMV + a mean(d^2)).

    The original has a = `WEIGHT` at every iteration. Over n iterations from check to check it is 1 - (1 - `WEIGHT`)^n,
    so that the averages forget as fast in iterations (a time constant of about 10). Checks that are further apart than
    that hardly average any more: the criterion is then the change since the last check. Its scale depends on n, its
    minimum's place does not. The average starts at the first output. An average of images in [0, 1] stays there, so
    there is no clipping.
    """

    def __init__(self) -> None:
        self._iteration = 0
        self._average: NDArray[np.float64] | None = None
        self._variance = 0.0

    def observe(self, iteration: int, output: NDArray[np.float32]) -> float:
        """Takes in the output (C, H, W) of a check; NaN in the first `WINDOW` iterations, and at the first check."""
        first = self._average is None
        if self._average is None:
            self._average = output.astype(np.float64)
        weight = 1 - (1 - WEIGHT) ** (iteration - self._iteration)
        distance = output - self._average
        self._average += weight * distance
        self._variance = (1 - weight) * (self._variance + weight * float((distance**2).mean()))
        self._iteration = iteration
        return math.nan if iteration < WINDOW or first else self._variance


class _Lowest:
    """The choice among checks by their criteria: the lowest so far, the first of equals; the latest before any."""

    def __init__(self, patience: int) -> None:
        self._patience, self._lowest = patience, math.inf
        self.chosen, self.over = 0, False

    @property
    def is_judged(self) -> bool:
        """Whether any check had a criterion."""
        return self._lowest < math.inf

    def take(self, iteration: int, criterion: float) -> bool:
        """Takes in a check, whose criterion is NaN where it is not judged; True: it is the new choice."""
        if self.over:
            return False
        is_chosen = not self.is_judged or criterion < self._lowest
        if is_chosen:
            self.chosen = iteration
        self._lowest = min(self._lowest, criterion)  # which NaN does not lower
        self.over = self.is_judged and iteration - self.chosen >= self._patience
        return is_chosen


class Watch:
    """What is recorded of a fit's outputs at its checks, for the rules that look at them: `wmv` and `emv`."""

    def __init__(self) -> None:
        self._windowed, self._moving = WindowedVariance(), MovingVariance()

    def observe(self, iteration: int, output: NDArray[np.float32]) -> dict[str, float]:
        """Takes in the ensemble's output (C, H, W), the mean of its members', at a check; criterion by rule."""
        return {
            "wmv": self._windowed.observe(iteration, output),
            "emv": self._moving.observe(iteration, output),
        }


class Rule:
    """A stopping rule at work on one fit.

    Args:
        name: of the rule, `fit.stop`.
        patience: iterations without a new minimum after which `wmv`, `emv` and `held_out` are over, >= 1.
        sigma: for `discrepancy`, standard deviation of the noise in the samples that the loss sees, in their unit: of
            the real and of the imaginary part each where they are complex. Noise that was clipped has less.
    """

    def __init__(self, name: Name, patience: int, sigma: float) -> None:
        self._name, self._sigma = name, sigma
        self._lowest = _Lowest(0 if name == "discrepancy" else patience)

    def observe(self, iteration: int, watched: Mapping[str, float]) -> bool:
        """Takes in a check; True: it is the new answer, until another is.

        Args:
            iteration: updates done, ascending from check to check, evenly spaced.
            watched: `loss`, the mean of the members' mean squared errors; `held_out`, that of the ensemble on the
                held-out samples; `wmv` and `emv` of `Watch`. A rule needs its own only.
        """
        return self._lowest.take(iteration, _criterion(self._name, watched, self._sigma))

    @property
    def is_undecided(self) -> bool:
        """Nothing was judged yet, so that the answer is wherever the fit stands."""
        return not self._lowest.is_judged

    @property
    def over(self) -> bool:
        """The fit may end: no later check will be the answer."""
        return self._lowest.over


def _criterion(name: Name, watched: Mapping[str, float], sigma: float) -> float:
    if name == "budget":
        return math.nan
    if name == "discrepancy":
        return _if_reached(watched["loss"], sigma)
    return watched[name]


def _if_reached(loss: float, sigma: float) -> float:
    """The criterion of `discrepancy`: a loss that is down to the noise; the first such check ends the fit."""
    return loss if loss <= sigma**2 else math.nan


def takes_patience(name: Name) -> bool:
    """Whether a rule waits for a new minimum."""
    return name in ("wmv", "emv", "held_out")


@dataclass(frozen=True)
class Curve:
    """What was recorded of a fit at its checks, for replays; lists of one length, NaN where a number is not known.

    Attributes:
        iterations: ascending, evenly spaced.
        loss: mean of the members' losses; empty where it was not recorded, as the following.
        held_out: mean squared error on held-out samples.
        score: of the ensemble, dB, by the truth or by what judges in its place.
        wmv: criterion of the rule.
        emv: criterion of the rule.
        sigma: of the noise, see `Rule`; 0 where it is not known.
    """

    iterations: Sequence[int]
    loss: Sequence[float] = ()
    held_out: Sequence[float] = ()
    score: Sequence[float] = ()
    wmv: Sequence[float] = ()
    emv: Sequence[float] = ()
    sigma: float = 0.0

    def criterion(self, name: Name) -> list[float] | None:
        """Of a rule at every check; None where it cannot be told."""
        if name == "budget":
            return [math.nan] * len(self.iterations)
        if name == "discrepancy":
            return [_if_reached(loss, self.sigma) for loss in self.loss] if self.loss and self.sigma > 0 else None
        found = list({"wmv": self.wmv, "emv": self.emv, "held_out": self.held_out}[name])
        return None if all(map(math.isnan, found)) else found


@dataclass(frozen=True)
class Choice:
    """What a rule makes of a fit.

    Attributes:
        iteration: of the answer; 0 where there was no check.
        ended_at: where the rule ended the fit; None: nowhere up to the budget.
    """

    iteration: int
    ended_at: int | None


def replay(name: Name, curve: Curve, patience: int, budget: int | None = None) -> Choice | None:
    """What a rule would have made of a fit.

    Args:
        name: of the rule.
        curve: of a fit that ran on for long enough.
        patience: see `Rule`.
        budget: iterations that it would have had; None: all.

    Returns:
        What `Rule` chooses; None where the curve lacks what the rule looks at.
    """
    criteria = curve.criterion(name)
    if criteria is None:
        return None
    lowest = _Lowest(0 if name == "discrepancy" else patience)
    for iteration, criterion in zip(curve.iterations, criteria, strict=True):
        if budget is not None and iteration > budget:
            break
        lowest.take(iteration, criterion)
        if lowest.over:
            return Choice(lowest.chosen, iteration)
    return Choice(lowest.chosen, None)


@dataclass(frozen=True)
class Audit:
    """What a rule would have made of recorded fits.

    Attributes:
        rule: its name.
        patience: that it had.
        fits: that it could be replayed on.
        scored: of these, with a score at every check; the gaps are over them.
        mean_gap: dB between the oracle's answer, the check of the best score up to the budget, and the rule's; NaN
            where there is no score.
        worst_gap: the largest of them.
        saved: mean share of the budget's iterations that would not have been run.
        never: fits that it did not end before their budget was used up.
    """

    rule: Name
    patience: int
    fits: int
    scored: int
    mean_gap: float
    worst_gap: float
    saved: float
    never: int


def audit(curves: Sequence[Curve], name: Name, patience: int, budget: int | None = None) -> Audit:
    """Replays a rule on fits that ran without it.

    Args:
        curves: of the fits; those that lack what the rule looks at are passed over.
        name: of the rule.
        patience: see `Rule`.
        budget: iterations of a fit; None: all that it ran.
    """
    gaps, saved, never = [], [], 0
    for curve in curves:
        choice = replay(name, curve, patience, budget)
        checks = [at for at, iteration in enumerate(curve.iterations) if budget is None or iteration <= budget]
        if choice is None or not checks:
            continue
        end = curve.iterations[checks[-1]]
        saved.append(1 - (choice.ended_at or end) / end)
        never += saved[-1] == 0
        scores = {curve.iterations[at]: curve.score[at] for at in checks if curve.score}
        if scores and not any(map(math.isnan, scores.values())):
            gaps.append(max(scores.values()) - scores[choice.iteration])
    mean_gap, worst_gap = (float(np.mean(gaps)), max(gaps)) if gaps else (math.nan, math.nan)
    return Audit(
        name, patience, len(saved), len(gaps), mean_gap, worst_gap, float(np.mean(saved)) if saved else 0.0, never
    )
