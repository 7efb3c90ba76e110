"""The forecast: what a study takes, from what was measured so far, and how it comes along."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np

from ddstudy.errors import WorkError
from ddstudy.execution.executors import Executor, Failed, Finished, Started
from ddstudy.images.volumes import Target, Targets
from ddstudy.spec.axes import Fit, budgets_by_fit
from ddstudy.spec.schema import StudySpec
from ddstudy.store.leases import AtWork, Leases
from ddstudy.store.study import StudyView
from ddstudy.store.writer import StudyWriter
from ddstudy.study.evaluate import Check, Result
from ddstudy.study.planner import Plan, cost, iterations_of, job, speed_of

CALIBRATION_SECONDS = 5.0
CALIBRATION_CHECKS = 4  # iterations: members are spread over threads, and one alone would leave the last of them idle
RECORD_SECONDS = 0.01  # that a result and its images take, about, on a local disk
_FORECAST = "ddstudy:forecast"  # attribute of a study


@dataclass(frozen=True)
class Work:
    """Work to do, or done; whole numbers, so sums are exact.

    Attributes:
        fits: operations and iterations of all members of the fits of each speed, see `planner.speed_of`.
        results: of them.
    """

    fits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    results: int = 0

    @property
    def iterations(self) -> int:
        """Of all fits."""
        return sum(iterations for _, iterations in self.fits.values())

    def __add__(self, other: Work) -> Work:
        fits = dict(self.fits)
        for speed, (operations, iterations) in other.fits.items():
            known = fits.get(speed, (0, 0))
            fits[speed] = known[0] + operations, known[1] + iterations
        return Work(fits, self.results + other.results)

    def __sub__(self, other: Work) -> Work:
        return self + other.times(-1)

    def times(self, factor: float) -> Work:
        """A share of it."""
        fits = {speed: (round(factor * one), round(factor * other)) for speed, (one, other) in self.fits.items()}
        return Work(fits, round(factor * self.results))


@dataclass
class Forecast:
    """What fits take, from what was measured so far.

    An iteration takes overhead + slope * operations seconds of fitting, which are another pair for each speed. Whatever
    a fit takes besides, for noise, starting weights, metrics, images and the store, is counted per result.

    Attributes:
        where: the devices that it is of.
        sums: of the least squares of each speed: x x, x y, y y, x and y over everything learnt.
        besides: seconds besides fitting, and of how many results.
    """

    where: str = ""
    sums: dict[str, list[float]] = field(default_factory=dict)
    besides: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def learn(self, speed: str, cost: float, seconds: float) -> None:
        """Adds one measured cost of an iteration of all members."""
        # least squares of relative errors, so that a fit of a minute does not drown one of a second; sums are all it
        # takes, and a study has many fits
        x, y = 1 / seconds, cost / seconds
        self.sums[speed] = _added(self.sums.get(speed, [0.0] * 5), (x * x, x * y, y * y, x, y))

    def learn_besides(self, seconds: float, results: int) -> None:
        """Adds what a fit with so many results took beside its fitting."""
        self.besides = [self.besides[0] + seconds, self.besides[1] + results]

    def _line(self, speed: str) -> tuple[float, float]:
        # of a speed of which nothing is known yet, that of all others
        xx, xy, yy, sx, sy = self.sums.get(speed) or functools.reduce(_added, self.sums.values(), [0.0] * 5)
        determinant = xx * yy - xy * xy
        if determinant > 1e-9 * xx * yy:
            line = (sx * yy - sy * xy) / determinant, (sy * xx - sx * xy) / determinant
            if min(line) >= 0:  # else too few or too noisy for a line that makes sense
                return line
        return 0.0, sy / yy if yy else 0.0  # the line through the origin

    @property
    def known(self) -> bool:
        """Whether anything was learnt."""
        return bool(self.sums)

    def fitting(self, work: Work) -> float:
        """Expected seconds of fitting."""
        seconds = 0.0
        for speed, (operations, iterations) in work.fits.items():
            overhead, slope = self._line(speed)
            seconds += overhead * iterations + slope * operations
        return seconds

    def seconds(self, work: Work) -> float:
        """Expected seconds with all that fits take besides."""
        return self.fitting(work) + work.results * self.besides[0] / max(1, self.besides[1])


def _added(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [sum(both) for both in zip(one, other, strict=True)]


def calibrate(
    spec: StudySpec, target: Target | Targets, fits: list[Fit], executor: Executor, leases: Leases | None = None
) -> Forecast:
    """Some iterations of the cheapest, the middle and the dearest fit, where the study itself will run.

    Of a study whose fits have several speeds, the cheapest and the dearest of each. It takes `CALIBRATION_SECONDS`,
    besides compilation and the iterations that are under way at the end.

    Args:
        spec: the study.
        target: its image.
        fits: that are to do.
        executor: where.
        leases: ours, of a study that is stored: a fit that is tried here may end the driver, too.

    Returns:
        A forecast that knows nothing if there was no time for a single iteration.

    Raises:
        WorkError: no fit works.
    """
    order = sorted((fit for fit in fits if cost(spec, fit, target)), key=lambda fit: cost(spec, fit, target))
    if not order:
        return Forecast()  # priors without weights have no iterations
    speeds: dict[str, list[Fit]] = {}
    for fit in order:
        speeds.setdefault(speed_of(spec, fit), []).append(fit)
    ends = [each[place] for place in (0, -1) for each in speeds.values()]  # when time is up, one of each was tried
    chosen = {fit.id: fit for fit in (ends if len(speeds) > 1 else [order[0], order[len(order) // 2], order[-1]])}
    if leases is not None:
        elsewhere = leases.orphans() | leases.alive()
        chosen = {name: fit for name, fit in chosen.items() if name not in elsewhere}
    last = 25 * CALIBRATION_CHECKS  # which none reaches: its metrics would take time
    for name, fit in chosen.items():
        trial = job(spec, target, fit, (1, last))
        options = trial.options.model_copy(update={"check_every": CALIBRATION_CHECKS})
        executor.submit(name, replace(trial, options=options, rule=None))
    started, checks, failures, forecast = dict[str, float](), dict[str, list[Check]](), list[str](), Forecast()
    besides: list[float] = []
    cases: dict[str, str] = {}  # of a job of several slices, the first one's checks tell the pace
    end = time.monotonic() + CALIBRATION_SECONDS
    for ticket, event in executor.events():
        now = time.monotonic()
        if isinstance(event, Started):
            started[ticket] = now
            if leases is not None:
                leases.take(ticket)
        elif isinstance(event, Finished | Failed) and leases is not None:
            leases.release(ticket)
        if isinstance(event, Check) and event.case == cases.setdefault(ticket, event.case):
            if ticket not in checks:
                end += now - started[ticket]  # kernels may have been compiled
            checks.setdefault(ticket, []).append(event)
        elif isinstance(event, Result) and event.budget == 1:
            besides.append(now - started[ticket] - float(event.values["seconds"]))
        elif isinstance(event, Failed):
            failures.append(f"{ticket}: {event.why}")
        seen = checks.get(ticket, [])
        enough = len(seen) > 1 and (
            seen[-1].seconds > CALIBRATION_SECONDS / 10 or seen[-1].iteration + CALIBRATION_CHECKS >= last
        )
        if ticket and not isinstance(event, Finished | Failed) and (enough or (now > end and checks)):
            executor.cancel(ticket)
    for name, (first, *others) in checks.items():
        seconds, iterations = first.seconds, first.iteration
        if others:  # the first iteration may be unlike the rest
            seconds, iterations = others[-1].seconds - seconds, others[-1].iteration - iterations
        per_iteration = max(seconds, 1e-6) / iterations
        forecast.learn(speed_of(spec, chosen[name]), cost(spec, chosen[name], target), per_iteration)
    if besides:
        # the others may have loaded libraries and kernels; nothing was recorded
        forecast.learn_besides(min(besides) + RECORD_SECONDS, 1)
    if chosen and len(failures) == len(chosen):
        raise WorkError(f"no fit works here: {failures[0]}")
    return forecast


def kept_forecast(study: StudyWriter, where: str) -> Forecast | None:
    """What earlier runs of a study learnt on devices like ours."""
    # edited by hand, or by a later version
    with contextlib.suppress(ValueError, TypeError, AttributeError, LookupError):
        told = json.loads(study.study.user_attrs.get(_FORECAST, "{}"))
        if isinstance(told["sums"], list):  # of a version that knew one speed
            told["sums"] = {"": told["sums"]}
        kept = Forecast(**told)
        numbers = np.asarray([[*sums, *kept.besides] for sums in kept.sums.values()], dtype=float)
        if kept.where == where and numbers.ndim == 2 and numbers.shape[1] == 7 and np.isfinite(numbers).all():
            return kept
    return None


def keep_forecast(study: StudyWriter, forecast: Forecast) -> None:
    """Stores what was learnt for the runs that go on with a study."""
    study.leases.patiently(lambda: study.study.set_user_attr(_FORECAST, json.dumps(vars(forecast))))


def work_of(spec: StudySpec, fit: Fit, budgets: tuple[int, ...], target: Target | Targets) -> Work:
    """The work of a fit; of slices that are fitted with their neighbours, of all of them."""
    iterations = iterations_of(spec, fit, budgets)
    results = len(spec.served(fit, budgets))
    return Work({speed_of(spec, fit): (int(cost(spec, fit, target)) * iterations, iterations)}, results)


def work_ahead(spec: StudySpec, target: Target | Targets, the_plan: Plan) -> Work:
    """The work of a plan without any early stop; for a search, of average settings."""
    if not the_plan.is_search:
        return sum((work_of(spec, fit, budgets, target) for fit, budgets in the_plan.todo.items()), Work())
    # a search asks for whole fits, whose budgets are all results; with time an objective, for fits up to any budget
    asked = [
        work_of(spec, fit, budgets[:count], target)
        for fit, budgets in budgets_by_fit(spec.search_space).items()
        for count in (range(1, len(budgets) + 1) if "seconds" in spec.objectives else [len(budgets)])
    ]
    total = sum(asked, Work())
    return total.times(max(0, the_plan.settings - the_plan.done) / total.results)


def forecast_seconds(
    spec: StudySpec, target: Target | Targets, the_plan: Plan, forecast: Forecast, slots: int
) -> float:
    """Seconds that a plan takes without any early stop."""
    longest = max((forecast.seconds(work_of(spec, fit, b, target)) for fit, b in the_plan.todo.items()), default=0.0)
    return max(longest, forecast.seconds(work_ahead(spec, target, the_plan)) / max(1, slots))


@dataclass(frozen=True)
class Outlook:
    """How a study comes along, as anyone can see from its store.

    Attributes:
        per_minute: settings that got their result, over the last ten minutes.
        eta_seconds: time that is left; None while nothing is known, or nobody works on it.
    """

    per_minute: float
    eta_seconds: float | None


def outlook(view: StudyView, at_work: Sequence[AtWork], now: datetime) -> Outlook:
    """The pace of the last ten minutes, and when the drivers that are at work expect to end."""
    since = now - timedelta(minutes=10)
    results = view.trials[view.trials["state"] != "FAIL"]
    late = results[results["finished"] >= since]
    seconds = max((now - max(since, late["started"].min())).total_seconds(), 1e-3) if len(late) else 1.0
    per_minute = 60 * len(late) / seconds
    # each driver has told when it expects the end; of several, the one that saw most of the work done has the earliest
    ends = [each.ends for each in at_work if each.ends is not None]
    return Outlook(per_minute, max(0.0, min(ends) - time.time()) if ends else None)
