"""The loop: plan, claim, submit, receive, record.

One loop serves grids and searches, in this process and on Ray, SQLite and PostgreSQL. It is a generator of
`Progress`; bars and log lines are consumers of it. The driver owns the storage, fits are pure functions on
executors, and a result is recorded the moment it arrives, so stopping at any moment loses at most the fit in flight.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState

from ddstudy.driven import Driven
from ddstudy.errors import UserError, WorkError
from ddstudy.evaluate import Check, Job, Measurement, job_geometry
from ddstudy.executors import Event, Executor, Failed, Finished, Started, Workers
from ddstudy.fit.fused import memory
from ddstudy.leases import AtWork
from ddstudy.metrics import measurable
from ddstudy.samplers import Unseen, pruner, running_fits, unseen
from ddstudy.settings import AXES, Fit, Setting, budgets_by_fit, rows_and_columns
from ddstudy.spec import StudySpec
from ddstudy.stability import cv_percent
from ddstudy.target import Target
from ddstudy.view import StudyView

RETRIES = 2  # of a fit that fails or whose driver dies, before it is given up; the next run begins anew
POLL_SECONDS = 2.0  # between looks at fits that other drivers hold, when nothing else is left


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        settings: all settings of the study, or how many a search will try.
        fits: fits that serve them; for a search the most it can need.
        done: settings that have a result already.
        todo: fits of a grid that are still to do, with their budgets; the longest first. Empty for a search.
    """

    settings: int
    fits: int
    done: int
    todo: Mapping[Fit, tuple[int, ...]]


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        done: settings with a result, of `total`.
        total: settings that the study will have.
        pruned: of the done ones, unstable and PRUNED.
        failed: settings that this run or one beside it has given up.
        best: setting and value of the first objective, best so far among stable trials.
        current: what is being fitted, for people.
        eta_seconds: time that is left, None while nothing is known.
        message: a line worth keeping in a log, empty between such lines.
        images_lost: why images of trials could not be kept, empty if they were.
    """

    done: int
    total: int
    pruned: int
    failed: int
    best: tuple[Setting, float] | None
    current: str
    eta_seconds: float | None
    message: str = ""
    images_lost: str = ""


def plan(spec: StudySpec, target: Target, done: set[Setting], reused: int = 0) -> Plan:
    """Plans a study.

    Args:
        spec: the study.
        target: its image.
        done: settings that have a result.
        reused: of these, imported from other studies; a search tries its own number beside them.

    Raises:
        UserError: an objective cannot be measured on a target of this size.
    """
    height, width = target.image.shape[-2:]
    unknown = [m for m in spec.objectives if not measurable(m, height, width)]
    if unknown:
        raise UserError(
            f"objective {unknown[0]}: cannot be measured on a target of {height}x{width}",
            "Use a larger target (11 pixels for SSIM and MS-SSIM, 41 for VIF), or another objective.",
        )
    space = spec.space.search_space
    settings = list(space)
    if spec.search.sampler != "grid":
        trials = min(spec.trials + reused, len(settings))
        return Plan(trials, min(trials - reused, len(budgets_by_fit(settings))), len(done), {})
    settings = settings[: spec.trials]
    done = done & set(settings)
    wanted = budgets_by_fit(settings)
    missing = budgets_by_fit(setting for setting in settings if setting not in done)
    order = sorted(missing, key=lambda fit: -operations(fit, target) * max(missing[fit]))
    return Plan(spec.trials, len(wanted), len(done), {fit: missing[fit] for fit in order})


def operations(fit: Fit, target: Target) -> float:
    """Cost of one iteration of one member in floating-point operations, roughly; forecasts scale with it.

    Three products of k x k per low-resolution pixel, and about 60 operations per channel and high-resolution pixel
    for upsampling, ReLU, normalisation and their gradients.
    """
    shape = job_geometry(fit, target)
    rows, columns = rows_and_columns(fit.tiling)
    pixels = [rows * columns * height * width for height, width in shape.sizes]
    return float(sum(6 * shape.k**2 * low + 60 * shape.k * high for low, high in itertools.pairwise(pixels)))


def bytes_of_largest_fit(spec: StudySpec, target: Target) -> int:
    """Memory of the largest fit of a study on the processor, all members in threads of their own."""
    shapes = [
        (job_geometry(fit, target), rows_and_columns(fit.tiling)) for fit in budgets_by_fit(spec.space.search_space)
    ]
    shape, (rows, columns) = max(
        shapes, key=lambda it: it[0].k * sum(h * w for h, w in it[0].sizes) * it[1][0] * it[1][1]
    )
    return memory(shape, rows * columns, spec.fit.members, spec.fit.members)


@dataclass
class Forecast:
    """Seconds per iteration from what was measured so far: overhead + slope * operations."""

    _sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(5))
    _line: tuple[float, float] = (0.0, 0.0)

    def learn(self, cost: float, seconds: float) -> None:
        """Adds one measured cost of an iteration of all members."""
        # least squares of relative errors, so that a fit of a minute does not drown one of a second; sums are all it
        # takes, and a study has many fits
        x, y = 1 / seconds, cost / seconds
        self._sums += (x * x, x * y, y * y, x, y)
        xx, xy, yy, sx, sy = map(float, self._sums)
        determinant = xx * yy - xy * xy
        overhead, slope = 0.0, sy / yy  # the line through the origin
        if determinant > 1e-9 * xx * yy:
            line = (sx * yy - sy * xy) / determinant, (sy * xx - sx * xy) / determinant
            if min(line) >= 0:  # else too few or too noisy for a line that makes sense
                overhead, slope = line
        self._line = (overhead, slope)

    def seconds(self, cost: float, iterations: float = 1) -> float:
        """Expected seconds of so many iterations of all members that together have a cost, by default of one."""
        overhead, slope = self._line
        return overhead * iterations + slope * cost


def calibrate(spec: StudySpec, target: Target, fits: list[Fit], executor: Executor) -> Forecast:
    """A few iterations of the cheapest, the middle and the dearest fit, where the study itself will run."""
    order = sorted(fits, key=lambda fit: operations(fit, target))
    forecast = Forecast()
    chosen = {order[0]: 12, order[len(order) // 2]: 6, order[-1]: 2}
    measured: dict[str, list[float]] = {}
    for fit, iterations in chosen.items():
        work = job(spec, target, fit, (1, 1 + iterations))
        executor.submit(fit.id, replace(work, stability=work.stability.model_copy(update={"prune": False})))
    failures = []
    for ticket, event in executor.events():
        if isinstance(event, Measurement):
            measured.setdefault(ticket, []).append(float(event.values["seconds"]))
        if isinstance(event, Failed):
            failures.append(f"{ticket}: {event.why}")
    for fit, iterations in chosen.items():
        if len(measured.get(fit.id, ())) == 2:
            first, last = measured[fit.id]
            forecast.learn(operations(fit, target), max(last - first, 1e-6) / iterations)
    if not any(len(seconds) == 2 for seconds in measured.values()):
        raise WorkError(f"no fit works here: {failures[0]}")
    return forecast


def forecast_seconds(spec: StudySpec, target: Target, the_plan: Plan, forecast: Forecast, slots: int) -> float:
    """Seconds of fitting that a plan needs without any early stop; for a search, of average settings."""
    if the_plan.todo:
        total = sum(forecast.seconds(operations(fit, target)) * max(b) for fit, b in the_plan.todo.items())
    else:
        grid = budgets_by_fit(spec.space.search_space)
        cost = {fit: forecast.seconds(operations(fit, target)) for fit in grid}
        mean = np.mean([cost[fit] * budget for fit, budgets in grid.items() for budget in budgets])
        total = float(mean) * max(0, the_plan.settings - the_plan.done)
    return total / slots


def job(spec: StudySpec, target: Target, fit: Fit, budgets: tuple[int, ...]) -> Job:
    """The job of one fit."""
    return Job(fit, budgets, target, spec.fit, spec.noise, spec.stability)


@dataclass(frozen=True)
class Outlook:
    """How a study comes along, as anyone can see from its store.

    Attributes:
        per_minute: settings that got their result, of late.
        eta_seconds: time that is left at this pace; None while nothing is known, or nobody works on it.
    """

    per_minute: float
    eta_seconds: float | None


def outlook(view: StudyView, at_work: Sequence[AtWork], now: datetime) -> Outlook:
    """The pace of the last ten minutes, and what it makes of the rest.

    A grid does its longest fits first, so its pace is one of work, not of settings: a setting's work is that of the
    iterations between the budget before it and its own.
    """
    since = now - timedelta(minutes=10)
    results = view.trials[view.trials["state"] != "FAIL"]
    late = results[results["finished"] >= since]
    if late.empty:
        return Outlook(0.0, None)
    seconds = max((now - max(since, late["started"].min())).total_seconds(), 1e-3)
    per_minute = 60 * len(late) / seconds
    done = {Setting(*row) for row in results[list(AXES)].itertuples(index=False)}
    left = view.spec.trials - len(done)
    if not at_work or left <= 0:
        return Outlook(per_minute, None)
    if view.spec.search.sampler != "grid" or "target shape" not in view.facts:
        return Outlook(per_minute, 60 * left / per_minute)
    shape = tuple(map(int, view.facts["target shape"].split("x")))
    target = Target(np.empty(shape, np.float32), view.facts["target"], None)
    work, reached = {}, {each.fit: each.iteration for each in at_work}
    for fit, budgets in budgets_by_fit(itertools.islice(view.spec.space.search_space, view.spec.trials)).items():
        for before, budget in itertools.pairwise((0, *budgets)):
            begun = min(max(reached.get(fit.id, 0) - before, 0), budget - before)
            cost = operations(fit, target)
            work[_setting(fit, budget)] = (cost * (budget - before), cost * (budget - before - begun))
    fresh = (Setting(*row) for row in late[list(AXES)].itertuples(index=False))
    pace = sum(work[setting][0] for setting in fresh if setting in work) / seconds
    rest = sum(remaining for setting, (_, remaining) in work.items() if setting not in done)
    return Outlook(per_minute, rest / pace if pace else None)


@dataclass
class _InFlight:
    fit: Fit
    budgets: tuple[int, ...]
    trial: optuna.Trial | None
    setting: Setting | None
    started: datetime
    failures: int = 0
    reached: int = 0
    alone: bool = False
    worker: str = ""

    @property
    def share(self) -> float:
        """How much of the fit is done."""
        return self.reached / max(self.budgets)


class _Run:
    """The state of one run; see `run`."""

    def __init__(self, study: Driven, executor: Executor, forecast: Forecast) -> None:
        self.study = study
        self.executor = executor
        self.forecast = forecast
        self.in_flight: dict[str, _InFlight] = {}
        self.again: deque[tuple[_InFlight, Job]] = deque()  # what is tried again once nothing runs beside it
        self.failures: set[Fit] = set()
        self.failed: set[Setting] = set()
        self.images_lost = ""
        self.current = ""
        self.began = time.monotonic()
        self.results = study.measured()
        self.given_up_before = set(study.given_up())  # by earlier runs: this one tries again
        self.counted = 0  # of the results, in the pruned and the best
        self.pruned = 0
        self.best: tuple[Setting, float] | None = None
        self._count()
        self.plan = plan(study.spec, study.target, set(self.results), study.reused)
        self.todo: dict[Fit, tuple[int, ...]] = {}
        self.operations = self.iterations = 0  # of all that is to do
        for fit, budgets in self.plan.todo.items():
            self._put_back(fit, budgets)
        self.work_done = 0.0
        self.pruner = pruner(study.spec)

    # choosing

    def fill(self) -> None:
        """Gives every free slot a fit."""
        if any(flight.alone for flight in self.in_flight.values()):
            return
        if self.again:
            if len(self.in_flight) == len(self.again):
                flight, work = self.again.popleft()
                flight.alone = True
                self.executor.submit(flight.fit.id, work)
            return
        while len(self.in_flight) < self.executor.slots and self._submit_next():
            pass
        self.executor.expect(self._waiting())

    def _waiting(self) -> int:
        """Fits that could run now if there were slots."""
        if self.study.spec.search.sampler == "grid":
            return len(self.todo)
        return max(0, self.plan.settings - len(self.results) - len(self.in_flight))

    def _submit_next(self) -> bool:
        return self._next_of_search() if self.study.spec.search.sampler != "grid" else self._next_of_grid()

    def _next_of_grid(self) -> bool:
        taken: set[Fit] = set()  # by others
        while True:
            free = (fit for fit in self.todo if not (fit in self.failures or fit.id in self.in_flight or fit in taken))
            if (fit := next(free, None)) is None:
                return False
            if not self.study.claims.take(fit.id):
                taken.add(fit)
                continue
            # the claim is ours: what another driver recorded before it gave the fit back is visible now
            self._refresh()
            budgets = tuple(b for b in self._take_out(fit) if _setting(fit, b) not in self.results)
            if self._is_given_up(fit, budgets) or not budgets:
                self.study.claims.release(fit.id)
                continue
            self._submit(_InFlight(fit, budgets, None, None, datetime.now()))
            return True

    def _put_back(self, fit: Fit, budgets: tuple[int, ...]) -> None:
        self.todo[fit] = budgets
        cost, iterations = self._work(fit, budgets)
        self.operations += cost
        self.iterations += iterations

    def _take_out(self, fit: Fit) -> tuple[int, ...]:
        budgets = self.todo.pop(fit)
        cost, iterations = self._work(fit, budgets)
        self.operations -= cost
        self.iterations -= iterations
        return budgets

    def _work(self, fit: Fit, budgets: tuple[int, ...]) -> tuple[int, int]:
        """Operations and iterations of a fit; whole numbers, so that sums stay exact."""
        return int(operations(fit, self.study.target)) * max(budgets), max(budgets)

    def _next_of_search(self) -> bool:
        self._refresh()
        ours = [flight for flight in self.in_flight.values() if flight.trial is not None]
        coming = sum(_setting(f.fit, b) not in self.results for f in self.in_flight.values() for b in f.budgets)
        running = self.study.running()
        coming += len(running) - len(ours)
        if len(self.results) + coming >= self.plan.settings:
            return False
        # also busy: fits whose last budget is on its way, fits of other drivers, and fits that fail
        busy = {*self.in_flight, *self.study.claims.alive(), *(fit.id for fit in self.failures)}
        if next(unseen(self.study.space, self.results, busy | running_fits(running)), None) is None:
            return False
        sampler = self.study.study.sampler
        assert isinstance(sampler, Unseen)
        sampler.busy = busy
        trial, setting = self.study.ask()
        if not self.study.claims.take(setting.fit.id):
            self.study.fail(trial, "another driver is fitting this")
            return False  # the next event tries again
        self._refresh()
        if self._is_given_up(setting.fit, (setting.iterations,), trial):
            self.study.claims.release(setting.fit.id)
            return True
        # budgets that the fit passes on its way are results too, for free
        passed = [b for b in self.study.space.iterations if b <= setting.iterations]
        budgets = tuple(b for b in passed if _setting(setting.fit, b) not in self.results)
        self._submit(_InFlight(setting.fit, budgets, trial, setting, datetime.now()))
        return True

    def _is_given_up(self, fit: Fit, budgets: tuple[int, ...], trial: optuna.Trial | None = None) -> bool:
        """Whether a fit that was just claimed is not to be tried: another driver gave it up, or drivers die of it."""
        deaths = self.study.claims.deaths[fit.id]
        if fit in self.failures:
            if trial is not None:
                self.study.fail(trial, "another driver gave this fit up")
        elif deaths > RETRIES:
            self._give_up(fit, budgets, f"{deaths} drivers died while they fitted this", trial)
        return fit in self.failures

    def _submit(self, flight: _InFlight) -> None:
        self.in_flight[flight.fit.id] = flight
        self.executor.submit(flight.fit.id, job(self.study.spec, self.study.target, flight.fit, flight.budgets))

    # receiving

    def receive(self, ticket: str, event: Event) -> str:
        """Handles one event; a line for the log or nothing."""
        if isinstance(event, Workers):
            return event.note
        flight = self.in_flight[ticket]
        if isinstance(event, Check):
            spread = f", CV {cv_percent(event.psnr_members):.1f} %" if len(event.psnr_members) > 1 else ""
            mean = float(np.mean(event.psnr_members))
            flight.reached = event.iteration
            self.study.claims.tell(ticket, flight.worker, event.iteration, max(flight.budgets))
            self.current = f"{ticket} at {event.iteration}: {mean:.2f} dB{spread}"
            return self._judge(flight, event, mean)
        elif isinstance(event, Measurement):
            return self._record(flight, event)
        elif isinstance(event, Started):
            flight.worker, flight.started = event.worker, datetime.now()
            self.study.claims.tell(ticket, flight.worker, 0, max(flight.budgets))
        elif isinstance(event, Failed):
            return self._failed(flight, event)
        elif isinstance(event, Finished):
            self._forget(flight)
        return ""

    def _judge(self, flight: _InFlight, check: Check, mean: float) -> str:
        """Asks the study's pruner whether a fit is worth its remaining iterations; if not, ends it."""
        last = max(flight.budgets)
        if self.pruner is None or flight.trial is None or check.iteration >= last:
            return ""
        flight.trial.report(mean, check.iteration)
        frozen = self.study.study._storage.get_trial(flight.trial._trial_id)
        with warnings.catch_warnings():  # of Wilcoxon, about a best trial with fewer checks
            warnings.simplefilter("ignore")
            # not through `study.pruner`: with Hyperband there, a sampler would see the trials of one bracket only
            if not self.pruner.prune(self.study.study, frozen):
                return ""
        self.executor.cancel(flight.fit.id)
        steps, trial, flight.trial = frozen.intermediate_values, flight.trial, None
        for setting in (_setting(flight.fit, b) for b in flight.budgets if b > check.iteration):
            asked = trial if setting == flight.setting else None
            marks = self._marks() if asked is None else {}
            self.study.record_pruned(setting, check, steps, started=flight.started, trial=asked, marks=marks)
        self._count()
        return f"{flight.fit.id}: PRUNED at {check.iteration} by {self.study.spec.search.pruner}, {mean:.2f} dB"

    def _marks(self) -> dict[str, object]:
        if not self.study.spec.search.sampler.startswith("nsga"):
            return {}  # others need none, and all trials are many
        sampler = self.study.study.sampler
        return sampler.marks(self.study.trials()) if isinstance(sampler, Unseen) else {}

    def _record(self, flight: _InFlight, event: Measurement) -> str:
        setting = _setting(flight.fit, event.budget)
        if setting in self.results:
            return ""  # a fit that failed on its way and was done again
        if not self.study.claims.holds(flight.fit.id):
            return f"{setting.id}: not recorded, this driver was away for longer than its lease"
        trial = flight.trial if flight.setting == setting else None
        marks = self._marks() if trial is None else {}
        done = self.study.record(setting, event, shared=event.shared, started=flight.started, trial=trial, marks=marks)
        if done is None:
            self._refresh()
            if setting not in self.results:  # nobody can read it: to measure it again would be refused again
                self.failures.add(flight.fit)
                self.failed.add(setting)
                return f"{setting.id}: FAIL, the store has a result of it that cannot be read"
            return f"{setting.id}: not recorded, another driver was faster"
        self.images_lost = done.images_lost or self.images_lost
        self._count()
        if flight.setting == setting:
            flight.trial = None
        cost = operations(flight.fit, self.study.target)
        iterations, seconds = int(event.values["iterations_done"]), float(event.values["seconds"])
        self.forecast.learn(cost, max(seconds, 1e-6) / iterations)
        shown = f"{event.values['psnr']:.2f} dB" if "psnr" in event.values else "diverged"
        cv = f", CV {event.values['cv_percent']:.1f} %" if "cv_percent" in event.values else ""
        return f"{setting.id}: {done.state.name} {shown}{cv}, {seconds:.1f} s"

    def _failed(self, flight: _InFlight, event: Failed) -> str:
        why = event.why
        missing = tuple(budget for budget in flight.budgets if _setting(flight.fit, budget) not in self.results)
        if event.lost and missing:
            self.executor.submit(flight.fit.id, job(self.study.spec, self.study.target, flight.fit, missing))
            return f"{flight.fit.id}: {why}, beginning again elsewhere"
        unsound = _why_not_on_processor(self.study.spec)
        if flight.failures < RETRIES and missing:
            flight.failures, flight.alone = flight.failures + 1, False
            work, how = job(self.study.spec, self.study.target, flight.fit, missing), ""
            if flight.failures == RETRIES and not unsound:
                work = replace(work, options=work.options.model_copy(update={"device": "cpu"}))
                how = ", on the processor"
            if event.shared and "memory" in why.lower():
                self.again.append((flight, work))
                how += ", with nothing beside it"
            else:
                self.executor.submit(flight.fit.id, work)
            return f"{flight.fit.id}: failed ({why}), trying again{how}"
        why += f"; not tried on the processor, since {unsound}" * bool(unsound)
        self._give_up(flight.fit, missing, why, flight.trial, event.log)
        flight.trial = None
        self._forget(flight)
        return f"{flight.fit.id}: FAIL after {RETRIES + 1} tries: {why}"

    def _give_up(self, fit: Fit, budgets: tuple[int, ...], why: str, trial: optuna.Trial | None, log: str = "") -> None:
        """Records settings as FAIL; the trial that was asked for is the largest budget's."""
        self.failures.add(fit)
        for budget in budgets:
            setting = _setting(fit, budget)
            self.failed.add(setting)
            if trial is not None and budget == max(budgets):
                self.study.fail(trial, why, given_up=True, log=log)
            else:
                self.study.record_failure(setting, why, log)

    def _forget(self, flight: _InFlight) -> None:
        if flight.trial is not None:  # not recorded, since the claim was lost
            self.study.fail(flight.trial, "the claim on this fit was lost")
        self.study.claims.release(flight.fit.id)
        del self.in_flight[flight.fit.id]
        self.work_done += self._predicted(flight.fit, flight.budgets)
        lost = tuple(budget for budget in flight.budgets if _setting(flight.fit, budget) not in self.results)
        if lost and flight.setting is None and flight.fit not in self.failures:
            self._put_back(flight.fit, lost)  # whoever took the claim will measure these, or die and leave them to us

    def abandon(self) -> None:
        """Closes what is in flight, when the run is stopped."""
        for flight in self.in_flight.values():
            if flight.trial is not None:
                self.study.fail(flight.trial, "its run was stopped")
            self.study.claims.release(flight.fit.id)

    # telling

    def _refresh(self) -> None:
        """Learns what other drivers recorded or gave up since."""
        self.results = self.study.measured()
        self._count()
        for trial, setting in self.study.given_up().items():
            if trial not in self.given_up_before:
                self.failures.add(setting.fit)
                self.failed.add(setting)

    def _count(self) -> None:
        direction = next(iter(self.study.spec.objectives.values()))
        sign = 1 if direction == "maximize" else -1
        new = list(itertools.islice(reversed(self.results), len(self.results) - self.counted))
        for setting in reversed(new):
            result = self.results[setting]
            self.pruned += result.state == TrialState.PRUNED
            if result.state != TrialState.COMPLETE or not result.stable or result.value is None:
                continue
            if self.best is None or sign * result.value > sign * self.best[1]:
                self.best = (setting, result.value)
        self.counted = len(self.results)

    def _predicted(self, fit: Fit, budgets: tuple[int, ...]) -> float:
        return self.forecast.seconds(*self._work(fit, budgets))

    def progress(self, message: str = "") -> Progress:
        """Where the run stands."""
        remaining = self.forecast.seconds(self.operations, self.iterations)
        flying = [(self._predicted(f.fit, f.budgets), f.share) for f in self.in_flight.values()]
        remaining += sum(whole * (1 - share) for whole, share in flying)
        spent = self.work_done + sum(whole * share for whole, share in flying)
        elapsed, eta = time.monotonic() - self.began, None
        if self.todo or self.in_flight:
            # what metrics, storage and early stops did to the forecast so far, they will do to the rest
            slots = max(1, self.executor.slots)  # of a cluster, all may be gone for a moment
            ratio = elapsed * slots / spent if spent else 1.0
            eta = remaining * ratio / slots
        if self.study.spec.search.sampler != "grid":
            done = len(self.results) - self.plan.done
            eta = elapsed / done * (self.plan.settings - len(self.results)) if done else None
        total = max(self.plan.settings, len(self.results))
        failed = sum(setting not in self.results for setting in self.failed)  # these are few, results are many
        return Progress(
            len(self.results), total, self.pruned, failed, self.best, self.current, eta, message, self.images_lost
        )

    @property
    def waiting_for_others(self) -> bool:
        """Whether all that is left is claimed by other drivers."""
        if self.study.spec.search.sampler == "grid":
            return any(fit not in self.failures for fit in self.todo)
        return len(self.results) < self.plan.settings and bool(self.study.running() or self.study.claims.alive())


def run(study: Driven, executor: Executor, forecast: Forecast) -> Iterator[Progress]:
    """Runs a study to its end.

    Args:
        study: the study, driven by us.
        executor: where fits run.
        forecast: of this executor; grows with every result.

    Yields:
        Where the run stands, after every event. Close the generator to stop; results so far are kept.
    """
    state = _Run(study, executor, forecast)
    try:
        while True:
            state.fill()
            yield state.progress()
            for ticket, event in executor.events():
                message = state.receive(ticket, event)
                state.fill()
                yield state.progress(message)
            if not state.waiting_for_others:
                return
            time.sleep(POLL_SECONDS)  # other drivers finish their fits, or die and their leases end
            study.close_abandoned()
    finally:
        state.abandon()


def _why_not_on_processor(spec: StudySpec) -> str:
    """Why what a GPU cannot do must not be done on the processor in this study; empty if it may."""
    if spec.fit.device not in ("auto", "cpu"):
        return f"fit.device is {spec.fit.device}"
    if "seconds" in spec.objectives and spec.fit.device == "auto":
        return "seconds are an objective"
    if spec.fit.precision == "bfloat16" and spec.fit.device == "auto":
        return "fit.precision is bfloat16"
    return ""


def _setting(fit: Fit, budget: int) -> Setting:
    return Setting(fit.k, fit.s, fit.l, budget, fit.noise, fit.tiling)
