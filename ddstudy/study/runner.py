"""The loop: plan, lease, submit, receive, record.

One loop serves grids and searches, in this process and on Ray, SQLite and PostgreSQL. It is a generator of
`Progress`; bars and log lines are consumers of it. The driver owns the storage, fits are pure functions on
executors, and a result is recorded the moment it arrives, so stopping at any moment loses at most the fit in flight.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
import optuna
from optuna.trial import TrialState

from ddstudy.execution.executors import Event, Executor, Failed, Finished, Started, Workers
from ddstudy.images.metrics import METRICS
from ddstudy.spec.axes import Fit, Setting
from ddstudy.spec.schema import CASE, fit_of, fit_on, setting_of
from ddstudy.store.writer import StudyWriter
from ddstudy.study.evaluate import Check, Job, Result
from ddstudy.study.forecasting import Forecast, Work, keep_forecast, work_ahead, work_of
from ddstudy.study.over_cases import OverCases
from ddstudy.study.planner import cost, iterations_of, job, plan, speed_of
from ddstudy.study.samplers import SpaceExhaustedError, Unseen, marks, pruner, running_fits, unseen
from ddstudy.study.stability import cv_percent

RETRIES = 2  # of a fit that fails or whose driver dies, before it is given up; the next run begins anew
LOSSES = 5  # of the nodes that a fit runs on, before it is given up: it may be the cause
PACE_SECONDS = 600.0  # of the past, whose pace tells the time left
TRUST_SECONDS = 10.0  # the forecast counts as much as so much observed work
KEEP_SECONDS = 30.0  # between writes of the forecast to the store
POLL_SECONDS = 2.0  # between looks at fits that other drivers hold, when nothing else is left


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
        objective: the first one, of which `best` has the value; with the ensemble where single members have one of
            their own: `psnr 5DD`.
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
    objective: str = ""


@dataclass
class _InFlight:
    fit: Fit
    budgets: tuple[int, ...]
    trial: optuna.Trial | None
    setting: Setting | None
    started: datetime
    failures: int = 0
    losses: int = 0  # of the nodes that it ran on
    reached: int = 0
    alone: bool = False
    worker: str = ""
    device: str = ""
    pack: int = 0  # number of the pack that it is in
    packed: bool = False  # with others
    settings: int = 0  # that it serves, where it is of several slices
    begun: float = 0.0  # on its worker
    fitted: float = 0.0  # seconds since
    recorded: int = 0  # results since
    steps: dict[int, float] = field(default_factory=dict)  # what the study's pruner was told: iteration -> mean PSNR

    @property
    def share(self) -> float:
        """How much of the fit is done."""
        if self.settings:
            return min(1.0, self.recorded / self.settings)
        return self.reached / max(1, *self.budgets)  # a prior without weights has the budget 0


@dataclass
class _Open:
    """A setting of a search on its way through the cases; all settings that its fit serves go with it."""

    fit: Fit
    budgets: tuple[int, ...]
    left: deque[str]  # cases that were not begun; of those that are done in one go, one
    flying: int = 0  # that are being fitted


@dataclass
class _Pack:
    """Fits of one kind that are submitted together."""

    number: int
    kind: object
    room: int
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def has_room(self) -> bool:
        return len(self.jobs) < self.room


class _Run:
    """The state of one run; see `run`."""

    def __init__(
        self,
        study: StudyWriter,
        executor: Executor,
        forecast: Forecast,
        over: OverCases | None = None,
        wanted: Collection[Setting] | None = None,
    ) -> None:
        self.study = study
        self.over = over
        self.asked = over.over if over else study  # whose settings are asked for
        self.wanted = wanted
        self.is_grid = self.asked.spec.search.sampler == "grid" or wanted is not None
        self.open: list[_Open] = []  # settings of a search that are on their way through the cases
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
        self.counted = 0  # of the results, in the work that is behind
        self.judged = 0  # of the settings, in the pruned and the best
        self.pruned = 0
        self.best: tuple[Setting, float] | None = None
        self.todo: dict[Fit, tuple[int, ...]] = {}
        self.work_of_one: dict[Fit, Work] = {}  # iteration
        self.ahead = self.behind = self.average = Work()  # not begun; done since we began, by anyone; per result
        self.history = deque([(self.began, self.behind)])  # what was done by when, of late
        self.left: float | None = None
        self.kept = self.began
        self._count()
        self.plan = plan(
            study.spec,
            study.target,
            set(self.results),
            study.reused,
            over=over.over.spec if over else None,
            wanted=wanted,
        )
        # fits whose drivers died come last, the longest at the very end: they may be the cause; so do those that others
        # have, whose drivers may have died a moment ago
        doubtful = study.leases.orphans() | study.leases.alive()
        order = [fit for fit in self.plan.todo if fit.id not in doubtful]
        for fit in [*order, *(fit for fit in reversed(self.plan.todo) if fit.id in doubtful)]:
            self._put_back(fit, self.plan.todo[fit])
        if self.plan.is_search:
            whole = work_ahead(study.spec, study.target, self.plan)
            self.average = whole.times(1 / max(1, whole.results))
        self.asked.study.pruner = pruner(self.asked.spec)
        self.packs: list[_Pack] = []  # that are being filled
        self.numbers = itertools.count(1)  # of the packs
        self.kinds: dict[Fit, object] = {}

    # choosing

    def fill(self) -> None:
        """Gives every free slot a fit."""
        if any(flight.alone for flight in self.in_flight.values()):
            return
        if self.again:
            if len(self.in_flight) == len(self.again):
                flight, work = self.again.popleft()
                flight.alone, flight.pack = True, next(self.numbers)
                self.executor.submit(flight.fit.id, work)
            return
        while self._taken() < self.executor.slots and self._submit_next():
            if self.is_grid:
                begun = self.packs[-1]
                while begun.has_room and self._next_of_grid(begun.kind):
                    pass
        for pack in self.packs:
            if len(pack.jobs) > 1:
                for ticket in pack.jobs:
                    self.in_flight[ticket].packed = True
                self.executor.submit_together(pack.jobs)
            else:
                self.executor.submit(*next(iter(pack.jobs.items())))
        self.packs.clear()
        self.executor.expect(self._waiting())

    def _taken(self) -> int:
        """Slots in use; in a search each fit counts, also in a pack, so that no setting is asked for too early."""
        if not self.is_grid:
            return len(self.in_flight)
        return len({flight.pack for flight in self.in_flight.values()})

    def _waiting(self) -> int:
        """Fits that could run now if there were slots."""
        if self.is_grid:
            return len(self.todo)
        return max(0, self.plan.settings - len(self.results) - len(self.in_flight))

    def _submit_next(self) -> bool:
        if self.is_grid:
            return self._next_of_grid()
        return self._next_case() or self._next_of_search()

    def _next_of_grid(self, kind: object = None) -> bool:
        """Takes a lease on the next fit, of a kind if one is given, and submits it."""
        taken: set[Fit] = set()  # by others
        while True:
            free = (fit for fit in self.todo if not (fit in self.failures or fit.id in self.in_flight or fit in taken))
            if kind is not None:
                free = (fit for fit in free if self._kind(fit) == kind)
            if (fit := next(free, None)) is None:
                return False
            if not self.study.leases.take(fit.id):
                taken.add(fit)
                continue
            # the lease is ours: what another driver recorded before it gave the fit back is visible now
            self._refresh()
            budgets = self._missing(fit, self._take_out(fit))
            if self._is_given_up(fit, budgets) or not budgets:
                self.study.leases.release(fit.id)
                continue
            self._submit(_InFlight(fit, budgets, None, None, datetime.now()))
            return True

    def _put_back(self, fit: Fit, budgets: tuple[int, ...]) -> None:
        self.todo[fit] = budgets
        self.ahead += self._work(fit, budgets)

    def _take_out(self, fit: Fit) -> tuple[int, ...]:
        budgets = self.todo.pop(fit, ())
        self.ahead -= self._work(fit, budgets)
        return budgets

    def _work(self, fit: Fit, budgets: tuple[int, ...]) -> Work:
        if fit not in self.work_of_one:
            one = work_of(self.study.spec, fit, (1,), self.study.target)
            self.work_of_one[fit] = one.times(1 / max(1, one.iterations))
        whole = self.work_of_one[fit].times(iterations_of(self.study.spec, fit, budgets))
        return replace(whole, results=len(self.study.spec.served(fit, budgets)))

    def _missing(self, fit: Fit, budgets: tuple[int, ...]) -> tuple[int, ...]:
        """The budgets at which not all that a fit serves has a result."""
        return tuple(b for b in budgets if any(each not in self.results for each in self.study.spec.served(fit, (b,))))

    def _next_of_search(self) -> bool:
        self._refresh()
        asked, results = self.asked, self.asked.measured()
        fits = [(f.fit, f.budgets) for f in self.in_flight.values()] if self.over is None else self._opened()
        coming = sum(fit.at(b) not in results for fit, budgets in fits for b in budgets)
        running = asked.running()
        ours = self.open if self.over else [flight for flight in self.in_flight.values() if flight.trial is not None]
        coming += len(running) - len(ours)
        if len(results) + coming >= self.trials:
            return False
        # also busy: fits whose last budget is on its way, fits of other drivers, and fits that fail
        busy = {*(fit.id for fit, _ in fits), *asked.leases.alive(), *(fit.id for fit in self._failing())}
        if next(unseen(asked.space, results, busy | running_fits(asked.space, running)), None) is None:
            return False
        sampler = asked.study.sampler
        assert isinstance(sampler, Unseen)
        sampler.busy = busy
        try:
            trial, setting = asked.ask()
        except SpaceExhaustedError as none:  # another driver took the last ones since we looked
            asked.fail(none.trial, "another driver took the last settings")
            self._refresh()
            return False
        if not asked.leases.take(setting.fit.id):
            asked.fail(trial, "another driver is fitting this")
            return False  # the next event tries again
        self._refresh()
        if self.over is None and self._is_given_up(setting.fit, (setting.budget,), trial):
            asked.leases.release(setting.fit.id)
            return True
        if setting in asked.measured():  # it was enqueued, or another driver was faster
            asked.fail(trial, "its setting has a result already")
            asked.leases.release(setting.fit.id)
            return True
        # budgets that the fit passes on its way are results too, for free
        passed = [b for b in asked.space.budgets(setting.fit) if b <= setting.budget]
        if self.over is not None:
            self.over.asked[setting] = trial
            budgets = tuple(b for b in passed if setting.fit.at(b) not in asked.measured())
            roots = (self.study.spec.root(fit_on(setting.fit, case)) for case in self.over.cases.chosen_by)
            self.open.append(_Open(setting.fit, budgets, deque(dict.fromkeys(str(root[CASE]) for root in roots))))
            return self._next_case()
        budgets = tuple(b for b in passed if setting.fit.at(b) not in self.results)
        self._submit(_InFlight(setting.fit, budgets, trial, setting, datetime.now()))
        return True

    # searches over cases

    def _opened(self) -> list[tuple[Fit, tuple[int, ...]]]:
        return [(each.fit, each.budgets) for each in self.open]

    def _failing(self) -> set[Fit]:
        """Fits of settings that cannot be measured."""
        return {fit_of(fit) for fit in self.failures} if self.over else self.failures

    def _next_case(self) -> bool:
        """Submits the next case of a setting that is on its way; with a pruner, one of each setting at a time."""
        if self.over is None:
            return False
        for each in list(self.open):
            while each.left and not (each.flying and self.over.pruner):
                fit = fit_on(each.fit, each.left.popleft())
                budgets = self._missing(fit, each.budgets)
                if not budgets:  # measured before, for a setting that another run began
                    self._decide(each)
                    if each not in self.open:
                        break
                    continue
                if not self.study.leases.take(fit.id):
                    self._close(each, "another driver is fitting this")
                    break
                if self._is_given_up(fit, budgets):
                    self.study.leases.release(fit.id)
                    self._close(each, "one of its cases cannot be measured", given_up=True)
                    break
                each.flying += 1
                self._submit(_InFlight(fit, budgets, None, None, datetime.now()))
                return True
            if not each.left and not each.flying:
                self._decide(each)
        return False

    def _landed(self, fit: Fit) -> str:
        """Looks at a setting one of whose cases has ended."""
        each = next((one for one in self.open if one.fit == fit_of(fit)), None)
        if each is None:
            return ""
        each.flying -= 1
        if fit in self.failures:
            self._close(each, "one of its cases cannot be measured", given_up=True)
            return ""
        return self._decide(each)

    def _decide(self, each: _Open) -> str:
        """Records a setting whose cases are all there, or ends it where the pruner says so."""
        assert self.over is not None
        settings = [each.fit.at(budget) for budget in each.budgets]
        recorded = [self.over.complete(setting) for setting in settings]
        if all(recorded):
            line = f"{settings[-1].id}: {self._said_over_cases(settings[-1])}"
        elif each.flying or (each.left and not self.over.pruner):
            return ""
        else:
            line = self.over.prune(each.fit, each.budgets) if each.left else ""
            if each.left and not line:
                return ""
        skipped = sum(len(self.study.spec.served(fit_on(each.fit, case), each.budgets)) for case in each.left)
        self.plan = replace(self.plan, settings=self.plan.settings - skipped)
        self._close(each, "not all of its cases have a result")
        self._count()
        return line

    def _close(self, each: _Open, why: str, *, given_up: bool = False) -> None:
        """Takes a setting from those on their way; its trial is closed if it was not recorded."""
        assert self.over is not None
        if each not in self.open:
            return
        self.open.remove(each)
        for budget in each.budgets:
            if (trial := self.over.asked.pop(each.fit.at(budget), None)) is not None:
                self.asked.fail(trial, why, given_up=given_up)
        self.asked.leases.release(each.fit.id)

    def _said_over_cases(self, setting: Setting) -> str:
        """How a setting did over its cases, for the log."""
        outcome = self.asked.measured()[setting]
        value = "" if outcome.value is None else f" {outcome.value:.2f}"
        metric = METRICS[next(iter(self.asked.spec.objectives))]
        how = self.asked.spec.cases.objective
        return (
            f"{outcome.state.name} {how} over {len(self.asked.spec.cases.chosen_by)} cases{value} {metric.unit}".strip()
        )

    def _is_given_up(self, fit: Fit, budgets: tuple[int, ...], trial: optuna.Trial | None = None) -> bool:
        """Whether a fit that we just took is not to be tried: another driver gave it up, or several died with it."""
        deaths = self.study.leases.deaths[fit.id]
        if fit in self.failures:
            if trial is not None:
                self.study.fail(trial, "another driver gave this fit up")
        elif deaths > RETRIES:
            self._give_up(fit, budgets, f"{deaths} drivers died while they fitted this", trial)
        return fit in self.failures

    def _submit(self, flight: _InFlight) -> None:
        """Puts a fit into a pack that is being filled or a new one; a fit that a driver died with runs alone."""
        self.in_flight[flight.fit.id] = flight
        work = self._job(flight.fit, flight.budgets)
        flight.settings = len(flight.budgets) * sum(len(network.cases) for network in work.networks)
        alone = bool(work.networks) or self.study.leases.deaths[flight.fit.id] > 0  # or a suspect
        pack = next((pack for pack in self.packs if pack.has_room and pack.kind == work.kind and not alone), None)
        if pack is None:
            pack = _Pack(next(self.numbers), work.kind, 1 if alone else self._room(work))
            self.packs.append(pack)
        flight.pack = pack.number
        pack.jobs[flight.fit.id] = work

    def _job(self, fit: Fit, budgets: tuple[int, ...]) -> Job:
        return job(self.study.spec, self.study.target, fit, budgets, self.results)

    def _room(self, work: Job) -> int:
        """How many fits of a kind are to run as a pack: as many as fill the device, in even shares for all slots."""
        room = 1 if work.timed else self.executor.room(work)
        if room > 1 and self.is_grid:
            left = 1 + sum(self._kind(fit) == work.kind for fit in self.todo)
            room = min(room, -(-left // max(1, self.executor.slots)))
        return room

    def _kind(self, fit: Fit) -> object:
        if fit not in self.kinds:
            self.kinds[fit] = job(self.study.spec, self.study.target, fit, ()).kind
        return self.kinds[fit]

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
            if not event.case:
                flight.fitted = event.seconds
            self.study.leases.tell(ticket, flight.worker, event.iteration, max(flight.budgets), self.left)
            name = fit_on(flight.fit, event.case).id if event.case else ticket
            self.current = f"{name} at {event.iteration}: 1DD {mean:.2f} dB{spread}"
            return self._judge(flight, event, mean)
        elif isinstance(event, Result):
            return self._record(flight, event)
        elif isinstance(event, Started):
            flight.worker, flight.device, flight.started = event.worker, event.device, datetime.now()
            flight.begun, flight.fitted, flight.recorded = time.monotonic(), 0.0, 0
            self.study.leases.tell(ticket, flight.worker, 0, max(flight.budgets), self.left)
        elif isinstance(event, Failed):
            return self._failed(flight, event)
        elif isinstance(event, Finished):
            if flight.recorded and not flight.packed:  # in a pack it is mostly the fitting of the others
                besides = time.monotonic() - flight.begun - flight.fitted
                self.forecast.learn_besides(max(0.0, besides), flight.recorded)
            self._forget(flight)
            return self._landed(flight.fit)
        return ""

    def _judge(self, flight: _InFlight, check: Check, mean: float) -> str:
        """Asks the study's pruner whether a fit is worth its remaining iterations; if not, ends it."""
        last = max(flight.budgets)
        if self.study.spec.search.pruner is None or flight.trial is None or check.iteration >= last:
            return ""
        flight.trial.report(mean, check.iteration)
        flight.steps.setdefault(check.iteration, mean)  # as in Optuna, the first report of a step counts
        with warnings.catch_warnings():  # of Wilcoxon, about a best trial with fewer checks
            warnings.simplefilter("ignore")
            if not flight.trial.should_prune():
                return ""
        self.executor.cancel(flight.fit.id)
        steps, trial, flight.trial = flight.steps, flight.trial, None
        for setting in (flight.fit.at(b) for b in flight.budgets if b > check.iteration):
            asked = trial if setting == flight.setting else None
            told = marks(self.study) if asked is None else {}
            self.study.record_pruned(setting, check, steps, started=flight.started, trial=asked, marks=told)
        self._count()
        return f"{flight.fit.id}: PRUNED at {check.iteration} by {self.study.spec.search.pruner}, 1DD {mean:.2f} dB"

    def _record(self, flight: _InFlight, event: Result) -> str:
        seconds = float(event.values["seconds"])
        flight.fitted = flight.fitted + seconds if event.case else max(flight.fitted, seconds)
        flight.recorded += 1
        setting = (fit_on(flight.fit, event.case) if event.case else flight.fit).at(event.budget)
        if setting in self.results:
            return ""  # recorded before its fit failed and was done again, or beside a slice that starts from it
        if not self.study.leases.holds(flight.fit.id):
            return f"{setting.id}: not recorded, this driver was away for longer than its lease"
        trial = flight.trial if flight.setting == setting else None
        told = marks(self.study) if trial is None else {}
        done = self.study.record(setting, event, shared=event.shared, started=flight.started, trial=trial, marks=told)
        if done is None:
            self._refresh()
            if setting not in self.results:  # nobody can read it: to measure it again would be refused again
                self.failures.add(flight.fit)
                self.failed.add(setting)
                return f"{setting.id}: FAIL, the store has a result of it that cannot be read"
            return f"{setting.id}: not recorded, another driver was faster"
        self.images_lost = done.images_lost or self.images_lost
        if self.over is not None and self.is_grid and setting[CASE] in self.over.cases.chosen_by:
            self.over.complete(setting_of(setting))
        self._count()
        if flight.setting == setting:
            flight.trial = None
        iterations = int(event.values["iterations_done"])
        if iterations:  # a prior without weights has none
            per_iteration = cost(self.study.spec, flight.fit, self.study.target)
            speed = speed_of(self.study.spec, flight.fit)
            self.forecast.learn(speed, per_iteration, max(seconds, 1e-6) / iterations)
        if self.forecast.where and time.monotonic() - self.kept > KEEP_SECONDS:
            self.kept = time.monotonic()
            keep_forecast(self.study, self.forecast)
        members = self.study.spec.at(setting).fit.members
        score = event.values.get(self.study.spec.score)
        shown = "diverged" if score is None else f"{members}DD {score:.2f} dB"
        cv = f", CV {event.values['cv_percent']:.1f} %" if "cv_percent" in event.values else ""
        rough = " (disturbed by other programs)" if event.values.get("disturbed") else ""
        return f"{setting.id}: {done.state.name} {shown}{cv}, {seconds:.1f} s{rough}"

    def _failed(self, flight: _InFlight, event: Failed) -> str:
        why = event.why
        missing = self._missing(flight.fit, flight.budgets)
        if event.kind == "lost" and missing:
            flight.losses += 1
            if flight.losses == LOSSES:
                return self._end(flight, missing, f"{LOSSES} nodes were lost while they fitted this", event.log)
            self.executor.submit(flight.fit.id, self._job(flight.fit, missing))
            return f"{flight.fit.id}: {why}, beginning again elsewhere"
        elsewhere = flight.device not in ("", "cpu")
        may_move = self.study.spec.executor.fallback == "processor"
        if flight.failures < RETRIES and missing:
            flight.failures, flight.alone = flight.failures + 1, False
            flight.pack, flight.packed = next(self.numbers), False
            work, how = self._job(flight.fit, missing), ""
            if flight.failures == RETRIES and elsewhere and may_move:
                work = replace(work, options=work.options.model_copy(update={"device": "cpu"}))
                how = ", on the processor"
            if event.shared and event.kind == "memory":
                self.again.append((flight, work))
                how += ", with nothing beside it"
            else:
                self.executor.submit(flight.fit.id, work)
            return f"{flight.fit.id}: failed ({why}), trying again{how}"
        why += "; not tried on the processor, since executor.fallback is 'none'" * (elsewhere and not may_move)
        return self._end(flight, missing, why, event.log)

    def _end(self, flight: _InFlight, missing: tuple[int, ...], why: str, log: str) -> str:
        """Gives a fit up that was tried often enough."""
        self._give_up(flight.fit, missing, why, flight.trial, log)
        flight.trial = None
        self._forget(flight)
        self._landed(flight.fit)
        return f"{flight.fit.id}: FAIL after {max(flight.failures + 1, flight.losses)} tries: {why}"

    def _give_up(self, fit: Fit, budgets: tuple[int, ...], why: str, trial: optuna.Trial | None, log: str = "") -> None:
        """Records settings as FAIL; the trial that was asked for is the largest budget's."""
        self.failures.add(fit)
        told = set[Setting]()
        for setting in self.study.spec.served(fit, budgets):
            if setting in self.results:
                continue
            self.failed.add(setting)
            if trial is not None and setting.budget == max(budgets):
                self.study.fail(trial, why, given_up=True, log=log)
            else:
                self.study.record_failure(setting, why, log)
            if self.over is None or not self.is_grid or setting[CASE] not in self.over.cases.chosen_by:
                continue
            if (asked := setting_of(setting)) not in told:
                told.add(asked)
                self.asked.record_failure(asked, f"{setting[CASE]}: {why}", log)

    def _forget(self, flight: _InFlight) -> None:
        if flight.trial is not None:  # not recorded, since the lease was lost
            self.study.fail(flight.trial, "the lease on this fit was lost")
        self.study.leases.release(flight.fit.id)
        del self.in_flight[flight.fit.id]
        if flight.fit not in self.failures:
            self.behind += self._work(flight.fit, flight.budgets)
        lost = self._missing(flight.fit, flight.budgets)
        if lost and self.is_grid and flight.fit not in self.failures:
            self._put_back(flight.fit, lost)  # the driver that took the lease measures these, or we do if it dies

    def abandon(self) -> None:
        """Closes what is in flight, when the run is stopped."""
        for each in list(self.open):
            self._close(each, "its run was stopped")
        for flight in self.in_flight.values():
            if flight.trial is not None:
                self.study.fail(flight.trial, "its run was stopped")
            self.study.leases.release(flight.fit.id)

    # telling

    def _refresh(self) -> None:
        """Learns what other drivers recorded or gave up since."""
        self.results = self.study.measured()
        self._count()
        for trial, setting in self.study.given_up().items():
            if trial not in self.given_up_before:
                self.failures.add(self.study.spec.root(setting.fit))
                self.failed.add(setting)

    def _count(self) -> None:
        direction = next(iter(self.study.spec.objectives.values()))
        sign = 1 if direction == "maximize" else -1
        new = list(itertools.islice(reversed(self.results), len(self.results) - self.counted))
        for setting in reversed(new):
            if self.study.spec.root(setting.fit).id not in self.in_flight:
                self._done_elsewhere(setting)
        self.counted = len(self.results)
        outcomes = self.asked.measured() if self.over else self.results
        for setting in reversed(list(itertools.islice(reversed(outcomes), len(outcomes) - self.judged))):
            result = outcomes[setting]
            self.pruned += result.state == TrialState.PRUNED
            if result.state != TrialState.COMPLETE or not result.stable or result.value is None:
                continue
            if self.best is None or sign * result.value > sign * self.best[1]:
                self.best = (setting, result.value)
        self.judged = len(outcomes)

    def _done_elsewhere(self, setting: Setting) -> None:
        """Takes what another driver did from the work that is ahead."""
        done, fit = self.average, self.study.spec.root(setting.fit)
        budgets = self.todo.get(fit, ())
        if setting.budget in budgets:
            rest = self._missing(fit, budgets)
            done = self._work(fit, budgets) - self._work(fit, rest)
            self.ahead -= done
            self.todo[fit] = rest
            if not rest:
                del self.todo[fit]
        self.behind += done

    def _time_left(self) -> float | None:
        """Seconds for what is ahead at the recent pace, which stopped fits, other drivers and lost workers change."""
        ahead, flying = self.ahead, [(self._work(f.fit, f.budgets), f.share) for f in self.in_flight.values()]
        if not self.is_grid:
            coming = sum((f.settings or len(f.budgets)) - f.recorded for f in self.in_flight.values())
            ahead = self.average.times(max(0, self.plan.settings - len(self.results) - coming))
        if not self.forecast.known or not (ahead.iterations or flying):
            return None
        now, done = time.monotonic(), sum((work.times(share) for work, share in flying), self.behind)
        if now - self.history[-1][0] >= 1:
            self.history.append((now, done))
            while self.history[0][0] < now - PACE_SECONDS:
                self.history.popleft()
        since, before = self.history[0]
        slots = max(1, self.executor.slots)  # of a cluster, all may be gone for a moment
        # until something is done, every slot is taken to work as fast as the forecast says
        spent = max(0.0, self.forecast.seconds(done - before)) + slots * TRUST_SECONDS
        pace = spent / (now - since + TRUST_SECONDS)
        left = [self.forecast.seconds(work) * (1 - share) for work, share in flying]
        together = self.forecast.seconds(ahead) + sum(left)
        return max(together, slots * max(left, default=0.0)) / pace

    def progress(self, message: str = "") -> Progress:
        """Where the run stands."""
        self.left = self._time_left()
        done = len(self.results) if self.wanted is None else sum(each in self.results for each in self.wanted)
        total = max(self.plan.settings, done)
        failed = sum(setting not in self.results for setting in self.failed)  # these are few, results are many
        counts = done, total, self.pruned, failed
        spec, objective = self.asked.spec, next(iter(self.asked.spec.objectives))
        if self.best and "members" in METRICS[objective].inputs:
            objective += f" {spec.at(self.best[0]).fit.members}DD"
        return Progress(*counts, self.best, self.current, self.left, message, self.images_lost, objective)

    @property
    def waiting_for_others(self) -> bool:
        """Whether other drivers have leases on all that is left."""
        if self.is_grid:
            return any(fit not in self.failures for fit in self.todo)
        asked = self.asked
        return len(asked.measured()) < self.trials and bool(asked.running() or asked.leases.alive())

    @property
    def trials(self) -> int:
        """Settings that a search tries, with those that were imported."""
        spec = self.asked.spec
        return min(spec.trials + self.asked.reused, len(spec.search_space))


def run(
    study: StudyWriter,
    executor: Executor,
    forecast: Forecast,
    *,
    over: OverCases | None = None,
    wanted: Collection[Setting] | None = None,
) -> Iterator[Progress]:
    """Runs a study to its end.

    Args:
        study: the study, open for recording; of one with cases, its study of cases.
        executor: where fits run.
        forecast: of this executor; grows with every result.
        over: the study whose cases these are; it is recorded, too.
        wanted: what is to be measured, whatever the study's sampler; by default all of it.

    Yields:
        Where the run stands, after every event. Close the generator to stop; results so far are kept.
    """
    state = _Run(study, executor, forecast, over, wanted)
    try:
        if over is not None:
            for setting in over.settle():
                if not state.is_grid and setting.fit.id not in over.over.leases.alive():
                    over.over.ask_for(setting)
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
            state.asked.close_abandoned()
    finally:
        state.abandon()
