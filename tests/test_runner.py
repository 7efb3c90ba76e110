import contextlib
import heapq
import itertools
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drivers import beside
from optuna.trial import TrialState
from points import fit_of, setting_of

from ddstudy.api import announce
from ddstudy.errors import UserError
from ddstudy.execution.executors import Event, Failed, Finished, InProcess, Started
from ddstudy.images.volumes import Target
from ddstudy.spec.axes import Fit, Setting
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store
from ddstudy.store.leases import AtWork
from ddstudy.store.records import Outcome
from ddstudy.store.writer import StudyWriter
from ddstudy.study import forecasting, planner, runner
from ddstudy.study.evaluate import Check, Job, Result
from ddstudy.study.runner import Progress
from ddstudy.study.samplers import sampler
from ddstudy.tasks.cases import Case

MakeSpec = Callable[..., StudySpec]


class Recording(InProcess):
    """The real executor, which also tells what it was given, and can fail or be interrupted on demand."""

    def __init__(self, failures: int = 0, stop_after: int | None = None) -> None:
        super().__init__(threads=2)
        self.jobs: list[tuple[Fit, tuple[int, ...]]] = []
        self.device = "cpu"  # where it says that fits fail
        self.failures = failures
        self.stop_after = stop_after

    def submit_together(self, jobs: Mapping[str, Job]) -> None:
        self.jobs += [(job.fit, job.budgets) for job in jobs.values()]
        super().submit_together(jobs)

    def events(self) -> Iterator[tuple[str, Event]]:
        while self._waiting:
            if self.failures:
                self.failures -= 1
                for ticket in self._waiting.popleft():
                    yield ticket, Started("here", self.device)
                    yield ticket, Failed("MemoryError: of the test")
                continue
            for ticket, event in super().events():
                if isinstance(event, Result) and self.stop_after is not None:
                    self.stop_after -= 1
                    if self.stop_after < 0:
                        raise KeyboardInterrupt
                yield ticket, event


def forecast() -> forecasting.Forecast:
    known = forecasting.Forecast()
    known.learn("deep_decoder auto", 1e6, 0.001)
    return known


@pytest.fixture
def go(sqlite_url: str, tmp_path: Path, tiny_target: Target) -> Callable[..., tuple[list[Progress], StudyWriter]]:
    """Runs a study by itself; where drivers meet in a database, tests are on both kinds, as those of the store."""

    def start(spec: StudySpec, executor: InProcess | None = None) -> tuple[list[Progress], list[Any]]:
        with Store(sqlite_url, tmp_path / "images", lease_seconds=2) as store:
            driven = store.drive(spec, tiny_target, sampler(spec))
            steps = list(runner.run(driven, executor or InProcess(2), forecast()))
            return steps, list(driven.trials())

    return start  # type: ignore[return-value]


def settings_of(trials: list[Any], *states: str) -> Counter[tuple[Any, ...]]:
    wanted = states or ("COMPLETE", "PRUNED")
    return Counter(tuple(sorted(t.params.items())) for t in trials if t.state.name in wanted)


def results_of(trials: list[Any]) -> dict[tuple[Any, ...], float]:
    return {tuple(sorted(t.params.items())): t.user_attrs["psnr"] for t in trials if t.state.name == "COMPLETE"}


def test_grid_measures_every_setting_once_with_one_fit_for_all_budgets(go: Any, make_spec: MakeSpec) -> None:
    executor = Recording()
    steps, trials = go(make_spec(), executor)
    assert settings_of(trials) == Counter(dict.fromkeys(settings_of(trials), 1))
    assert len(trials) == 4
    assert [budgets for _, budgets in executor.jobs] == [(5, 10)] * 2
    assert [fit["k"] for fit, _ in executor.jobs] == [4, 2]  # the longest first
    last = steps[-1]
    assert (last.done, last.total, last.failed) == (4, 4, 0)
    assert last.best is not None
    assert last.best[1] == max(results_of(trials).values())
    assert sum(bool(step.message) for step in steps) == 4
    assert all(trial.datetime_complete > trial.datetime_start for trial in trials)


def test_telling_the_progress_looks_at_no_result(
    sqlite_url: str, make_spec: MakeSpec, tiny_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    real = Setting.__hash__

    def counted(setting: Setting) -> int:
        nonlocal looks
        looks += 1
        return real(setting)

    spec = make_spec(space={"k": list(range(1, 101))})
    with Store(sqlite_url) as store:
        driven = store.drive(spec, tiny_target, sampler(spec))
        for setting in spec.search_space:
            driven._outcomes.add(setting, Outcome(TrialState.COMPLETE, True, 1.0))
        state = runner._Run(driven, InProcess(2), forecast())
        state.failed.add(next(iter(spec.search_space)))
        monkeypatch.setattr(Setting, "__hash__", counted)
        told = state.progress()
        monkeypatch.undo()
    assert (told.done, told.failed) == (spec.trials, 0)
    assert 0 < looks < 5


def test_progress_is_told_while_a_cluster_has_no_worker(
    sqlite_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec, executor = make_spec(), InProcess(2)
    executor.slots = 0  # type: ignore[misc]
    with Store(sqlite_url) as store:
        state = runner._Run(store.drive(spec, tiny_target, sampler(spec)), executor, forecast())
        assert (state.progress().eta_seconds or 0) > 0


def test_finished_study_does_nothing_more(go: Any, make_spec: MakeSpec) -> None:
    go(make_spec())
    executor = Recording()
    steps, trials = go(make_spec(), executor)
    assert executor.jobs == []
    assert len(trials) == 4
    assert steps[-1].done == 4


def test_interrupted_grid_goes_on_where_it_was(go: Any, make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(make_spec(), Recording(stop_after=1))
    executor = Recording()
    _, trials = go(make_spec(), executor)
    assert executor.jobs == [(fit_of(4, 4, 2, "uniform", "1x1"), (10,)), (fit_of(2, 4, 2, "uniform", "1x1"), (5, 10))]
    assert set(settings_of(trials).values()) == {1}
    assert len(trials) == 4
    undisturbed = go(make_spec(name="undisturbed"))[1]
    assert results_of(trials) == results_of(undisturbed)


def test_interrupted_search_leaves_nothing_running(go: Any, make_spec: MakeSpec) -> None:
    spec = make_spec(search={"sampler": "tpe", "trials": 4})
    with pytest.raises(KeyboardInterrupt):
        go(spec, Recording(stop_after=0))
    _, trials = go(spec)
    states = Counter(trial.state.name for trial in trials)
    assert states == {"COMPLETE": 4, "FAIL": 1}
    assert set(settings_of(trials).values()) == {1}
    (failed,) = [trial for trial in trials if trial.state.name == "FAIL"]
    assert failed.user_attrs["reason"] == "its run was stopped"


@pytest.mark.parametrize("name", ["tpe", "random", "nsga2"])
def test_search_records_budgets_on_the_way_and_never_repeats(go: Any, make_spec: MakeSpec, name: str) -> None:
    spec = make_spec(space={"l": [2, 3], "iterations": [3, 5, 10]}, search={"sampler": name, "trials": 9})
    executor = Recording()
    _, trials = go(spec, executor)
    assert 9 <= len(settings_of(trials)) <= 11  # a fit that passes several budgets may end beyond
    assert set(settings_of(trials).values()) == {1}
    measured = [f.at(b) for f, budgets in executor.jobs for b in budgets]
    assert len(measured) == len(set(measured)) == len(trials)


def test_search_ends_when_nothing_is_left(go: Any, make_spec: MakeSpec) -> None:
    _, trials = go(make_spec(search={"sampler": "random", "trials": 500}))
    assert len(settings_of(trials)) == 4


def test_search_with_more_settings_than_there_are_leaves_nothing_running(go: Any, make_spec: MakeSpec) -> None:
    spec = make_spec(search={"sampler": "random", "trials": 3})
    go(spec)
    _, trials = go(spec.model_copy(update={"search": spec.search.model_copy(update={"trials": 99})}))
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": 4}


def test_pareto_search(go: Any, make_spec: MakeSpec) -> None:
    objectives = {"psnr": "maximize", "seconds": "minimize"}
    _, trials = go(make_spec(search={"sampler": "tpe", "trials": 4}, objectives=objectives))
    assert len(settings_of(trials)) == 4
    assert all(t.values == [t.user_attrs["psnr"], t.user_attrs["seconds"]] for t in trials)


def test_search_with_several_slots_asks_for_each_fit_once(go: Any, make_spec: MakeSpec) -> None:
    executor = Recording()
    executor.slots = 3
    spec = make_spec(space={"k": [2, 3, 4], "l": [2, 3]}, search={"sampler": "random", "trials": 12})
    _, trials = go(spec, executor)
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": 12}
    assert set(settings_of(trials).values()) == {1}


def test_failure_after_a_first_result_repeats_only_the_rest(go: Any, make_spec: MakeSpec) -> None:
    class Late(Recording):
        def events(self) -> Iterator[tuple[str, Event]]:
            while self._waiting:
                for ticket, event in InProcess.events(self):
                    yield ticket, event
                    if isinstance(event, Result) and self.failures:
                        self.failures -= 1
                        yield ticket, Failed("RayError: of the test")
                        break

    executor = Late(failures=1)
    _, trials = go(make_spec(space={"k": [4]}), executor)
    assert [budgets for _, budgets in executor.jobs] == [(5, 10), (10,)]
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": 2}


def test_best_is_stable_also_without_pruning(go: Any, make_spec: MakeSpec) -> None:
    steps, trials = go(make_spec(stability={"prune": False, "min_psnr": 99.0}))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert steps[-1].best is None


def test_search_waits_for_a_dead_drivers_trial_and_does_it(
    store_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec(search={"sampler": "random", "trials": 4})
    with Store(store_url, lease_seconds=1) as store:
        dead = store.drive(spec, tiny_target, sampler(spec))
        _, setting = dead.ask()
        dead.leases.take(setting.fit.id)
        dead.leases._ended.set()
        dead.leases._renewer.join()
        store.driver = "another"
        living = beside(store, dead)
        list(runner.run(living, InProcess(2), forecast()))
        states = Counter(trial.state.name for trial in living.trials())
        living.leases.end()
    assert states == {"COMPLETE": 4, "FAIL": 1}


def test_result_of_a_trial_that_was_closed_meanwhile_is_kept(
    store_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec(search={"sampler": "random", "trials": 1}, space={"k": [2], "iterations": [5]})
    with Store(store_url) as store:
        driven = store.drive(spec, tiny_target, sampler(spec))
        steps = runner.run(driven, InProcess(2), forecast())
        next(steps)
        driven._fail(driven.trials()[0]._trial_id, "thought dead")
        list(steps)
        assert Counter(trial.state.name for trial in driven.trials()) == {"FAIL": 1, "COMPLETE": 1}


def test_failures_are_retried(go: Any, make_spec: MakeSpec) -> None:
    steps, trials = go(make_spec(), Recording(failures=runner.RETRIES))
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": 4}
    assert sum("trying again" in step.message for step in steps) == runner.RETRIES
    assert steps[-1].failed == 0


@pytest.mark.parametrize("search", [{}, {"sampler": "random", "trials": 4}])
def test_failures_that_stay_are_reported_and_tried_again_by_the_next_run(
    go: Any, make_spec: MakeSpec, search: dict[str, Any]
) -> None:
    spec = make_spec(space={"iterations": [5]}, search=search) if not search else make_spec(search=search)
    steps, trials = go(spec, Recording(failures=runner.RETRIES + 1))
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    assert failed
    assert all(trial.user_attrs["reason"] == "MemoryError: of the test" for trial in failed)
    assert steps[-1].failed == len(failed)
    _, trials = go(spec)
    assert len(settings_of(trials)) == len(spec.search_space)
    assert set(settings_of(trials).values()) == {1}


@pytest.mark.parametrize(("losses", "given_up"), [(runner.LOSSES - 1, False), (runner.LOSSES, True)])
def test_a_fit_whose_nodes_are_lost_every_time_is_given_up(
    go: Any, make_spec: MakeSpec, losses: int, given_up: bool
) -> None:
    """It was begun again for ever."""

    class Deadly(Recording):
        left = losses

        def events(self) -> Iterator[tuple[str, Event]]:
            while self._waiting:
                (ticket,) = self._waiting[0]
                if ticket.startswith("k4") and self.left:
                    self.left -= 1
                    self._waiting.popleft()
                    yield ticket, Failed("its node was lost", kind="lost")
                    continue
                yield from super().events()

    executor = Deadly()
    steps, trials = go(make_spec(space={"iterations": [5]}), executor)
    assert [fit["k"] for fit, _ in executor.jobs].count(4) == losses + (not given_up)
    assert (steps[-1].done, steps[-1].failed) == ((1, 1) if given_up else (2, 0))
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    assert [trial.user_attrs["reason"] for trial in failed] == ["5 nodes were lost while they fitted this"] * given_up


@pytest.mark.parametrize("k", [[2], [2, 4]], ids=["one setting, which no sampler is asked for", "several"])
def test_a_search_ends_when_another_driver_takes_the_last_settings(
    store_url: str, make_spec: MakeSpec, tiny_target: Target, k: list[int]
) -> None:
    """Between the look and the ask: it was a traceback and left a trial RUNNING."""
    spec = make_spec(space={"k": k, "iterations": [5]}, search={"sampler": "random", "trials": len(k)})
    with Store(store_url, lease_seconds=2) as store:
        first = store.drive(spec, tiny_target, sampler(spec))
        store.driver = "another"
        other = beside(store, first)
        ask = first.ask

        def late() -> Any:
            list(runner.run(other, InProcess(2), forecast()))
            return ask()

        first.ask = late  # type: ignore[method-assign]
        last = list(runner.run(first, InProcess(2), forecast()))[-1]
        other.leases.end()
        states = Counter(trial.state.name for trial in first.trials())
    assert (last.done, last.failed) == (len(k), 0)
    assert states == {"COMPLETE": len(k), "FAIL": 1}


def test_two_drivers_share_a_postgres_study(postgres_url: str, make_spec: MakeSpec, tiny_target: Target) -> None:
    spec = make_spec(space={"k": [2, 3, 4], "l": [2, 3]})
    with Store(postgres_url) as one, Store(postgres_url) as two:
        drivers = [store.drive(spec, tiny_target, sampler(spec)) for store in (one, two)]
        runs = [runner.run(driven, InProcess(2), forecast()) for driven in drivers]
        shares = [0, 0]
        active = [0, 1]
        while active:  # turn by turn
            for index in list(active):
                step = next(runs[index], None)
                if step is None:
                    active.remove(index)
                elif step.message:
                    shares[index] += 1
        trials = drivers[0].trials()
    assert sum(shares) == 12
    assert min(shares) > 0
    assert set(settings_of(trials).values()) == {1}
    assert len(trials) == 12


def test_what_another_driver_finished_meanwhile_is_not_done_again(
    postgres_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec(space={"k": [2, 3, 4]}, stability={"cv_percent": 1e-9})
    with Store(postgres_url) as one, Store(postgres_url) as two:
        first, second = (store.drive(spec, tiny_target, sampler(spec)) for store in (one, two))
        late = Recording()
        steps = runner.run(second, late, forecast())
        next(steps)  # has planned everything and holds the first fit
        with contextlib.closing(runner.run(first, InProcess(2), forecast())) as others:  # type: ignore[type-var]
            next(step for step in others if step.done == 4)
        last = list(steps)[-1]
        assert [fit["k"] for fit, _ in late.jobs] == [4]
        assert (last.done, last.pruned, last.total) == (6, 6, 6)
        assert set(settings_of(first.trials()).values()) == {1}


class Clockwork:
    """A cluster in time of its own: fits take what `seconds` says, and as long again for what is not fitting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slots: int, seconds: Callable[[Fit, int], float]) -> None:
        self.now, self.slots, self._seconds, self._order = 0.0, slots, seconds, itertools.count()
        self._ahead: list[tuple[float, int, str, Event]] = []
        monkeypatch.setattr(runner, "time", self)

    def monotonic(self) -> float:
        return self.now

    def room(self, job: Job) -> int:
        return 1

    def time(self) -> float:
        return self.now

    def submit(self, ticket: str, job: Job) -> None:
        curve: Any = {"iterations": [], "psnr_members": []}
        events: list[tuple[float, Event]] = [(0.0, Started("here"))]
        for budget in range(100, max(job.budgets) + 1, 100):
            fitted = self._seconds(job.fit, budget)
            events.append((2 * fitted, Check(budget, fitted, (30.0, 30.0))))
            if budget not in job.budgets:
                continue
            values = {"psnr": 30.0, "seconds": fitted, "iterations_done": budget, "cv_percent": 1.0, "device": "d"}
            result = Result(budget, values, np.zeros((1, 27, 22), np.float32), curve, False)
            events.append((2 * fitted, result))
        for after, event in [*events, (2 * fitted, Finished())]:
            heapq.heappush(self._ahead, (self.now + after, next(self._order), ticket, event))

    def expect(self, jobs: int) -> None:
        pass

    def events(self) -> Iterator[tuple[str, Event]]:
        while self._ahead:
            self.now, _, ticket, event = heapq.heappop(self._ahead)
            yield ticket, event


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("search", [{}, {"sampler": "random", "trials": 40}], ids=["grid", "search"])
def test_forecast_and_time_left_count_all_that_takes_time_and_status_agrees(
    monkeypatch: pytest.MonkeyPatch, make_spec: MakeSpec, tiny_target: Target, slots: int, search: dict[str, Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    """They counted fitting only, which may be half of a run, and each command did so by a rule of its own."""

    def seconds(fit: Fit, budget: int) -> float:
        return budget * (0.002 + 2e-6 * planner.operations(fit, Case.of(tiny_target)) / 1000)

    spec = make_spec(
        space={"k": [2, 4, 6, 8], "l": [2, 3], "s": [2, 4, 8], "iterations": [500, 1000]},
        images=False,
        search=search,
    )
    known = forecasting.Forecast()
    for fit in (fit_of(2, 8, 2, "uniform", "1x1"), fit_of(8, 2, 3, "uniform", "1x1")):
        known.learn(planner.speed_of(spec, fit), planner.operations(fit, Case.of(tiny_target)), seconds(fit, 1))
        known.learn_besides(seconds(fit, 1000), 2)
    clock = Clockwork(monkeypatch, slots, seconds)
    with Store(f"sqlite:///{tmp_path}/a.db") as store:
        driven = store.drive(spec, tiny_target, sampler(spec))
        plan = planner.plan(spec, tiny_target, set())
        announced = forecasting.forecast_seconds(spec, tiny_target, plan, known, slots)
        monkeypatch.setattr("ddstudy.store.leases.time.time", lambda: clock.now)
        told, shown = [], []
        for progress in runner.run(driven, clock, known):  # type: ignore[arg-type]
            if progress.eta_seconds is not None:
                told.append((clock.now, progress.eta_seconds))
            if driven.leases._doing and len(told) % 40 == 0:
                work = [AtWork("", "", **json.loads(doing)) for doing in driven.leases._doing.values()]
                left = forecasting.outlook(store.view(spec.name), work, datetime.now()).eta_seconds
                shown.append((clock.now, left))
    assert announced == pytest.approx(clock.now, rel=0.2)
    assert all(abs(at + left - clock.now) < 0.2 * clock.now for at, left in told)
    assert shown
    assert all(abs(at + left - clock.now) < 0.2 * clock.now for at, left in shown)
    assert progress.eta_seconds is None


def test_what_was_learnt_is_kept_for_the_runs_that_go_on(
    store_url: str, make_spec: MakeSpec, tiny_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasting, "CALIBRATION_SECONDS", 5.0)  # as outside of tests
    spec, lines = make_spec(), list[str]()
    for tries in (1, 1, 2):
        with Store(store_url) as store:
            driven, executor = store.drive(spec, tiny_target, sampler(spec)), Recording()
            executor.slots = tries  # another way to run it is another forecast
            known = announce(lines.append, spec, tiny_target, planner.plan(spec, tiny_target, set()), executor, driven)
            assert known is not None
            assert known.known
        assert sum(line.startswith("Trying some iterations for a forecast: 5 s at most") for line in lines) == tries
    with Store(store_url) as store:  # edited by hand
        driven = store.drive(spec, tiny_target, sampler(spec))
        for damaged in (
            *("{", "[]", '{"where": "here", "sums": [1], "besides": null}', '{"else": 1}'),
            *('{"where": "here", "sums": {"dip": [1]}}', '{"where": "here", "sums": {"dip": 1}}', '{"where": "here"}'),
        ):
            driven.study.set_user_attr("ddstudy:forecast", damaged)
            assert forecasting.kept_forecast(driven, "here") is None


def test_what_an_earlier_version_learnt_is_one_speed_for_all(
    store_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec()
    old = {"where": "here", "sums": [1e6, 1e13, 1e20, 1e3, 1e10], "besides": [3.0, 30]}  # 1e7 operations in 1 ms
    with Store(store_url) as store:
        driven = store.drive(spec, tiny_target, sampler(spec))
        driven.study.set_user_attr("ddstudy:forecast", json.dumps(old))
        known = forecasting.kept_forecast(driven, "here")
        assert known is not None
        work = forecasting.Work({"deep_decoder auto": (10**8, 10)}, 2)
        assert known.seconds(work) == pytest.approx(10 * 0.001 + 2 * 0.1)
        known.learn("siren auto", 1e6, 1.0)
        forecasting.keep_forecast(driven, known)
        again = forecasting.kept_forecast(driven, "here")
        assert again == known
        assert again.fitting(forecasting.Work({"siren auto": (10**6, 1)})) == pytest.approx(1.0)


def test_a_calibration_is_over_after_some_seconds(
    monkeypatch: pytest.MonkeyPatch, make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec, executor = make_spec(space={"k": [2, 3, 4]}), Recording()
    clock = itertools.count(0, 2)  # two seconds a look
    monkeypatch.setattr(runner.time, "monotonic", lambda: float(next(clock)))
    known = forecasting.calibrate(spec, tiny_target, list(planner.plan(spec, tiny_target, set()).todo), executor)
    assert known.known
    assert next(clock) < 40  # of which 33 checks of three fits would take more
    assert not executor._waiting


def test_lost_lease_is_not_recorded_but_taken_again(store_url: str, make_spec: MakeSpec, tiny_target: Target) -> None:
    spec = make_spec(space={"k": [2]})
    with Store(store_url) as store:
        driven = store.drive(spec, tiny_target, sampler(spec))
        steps = runner.run(driven, InProcess(2), forecast())
        next(steps)  # the lease is taken and the fit waits
        store.driver = "another"
        other = beside(store, driven)
        other.leases.expire_others()  # this one slept too long
        other.leases.take(fit_of(2, 4, 2, "uniform", "1x1").id)
        other.leases.end()
        messages = [step.message for step in steps]
        assert sum("not recorded" in message for message in messages) == 2
        assert len(driven.trials()) == len(driven.measured()) == 2  # taken again and fitted again


def test_plan_counts_trials_and_fits(make_spec: MakeSpec, tiny_target: Target) -> None:
    spec = make_spec()
    done = {
        setting_of(2, 4, 2, 5, "uniform", "1x1"),
        setting_of(4, 4, 2, 5, "uniform", "1x1"),
        setting_of(4, 4, 2, 10, "uniform", "1x1"),
    }
    plan = planner.plan(spec, tiny_target, done)
    assert (plan.settings, plan.fits, plan.done) == (4, 2, 3)
    assert dict(plan.todo) == {fit_of(2, 4, 2, "uniform", "1x1"): (10,)}
    assert planner.plan(make_spec(search={"trials": 3}), tiny_target, set()).settings == 3
    with pytest.raises(UserError, match=r"objective vif: cannot be measured on a target of 27x22"):
        planner.plan(make_spec(objectives={"vif": "maximize"}), tiny_target, set())


def test_forecast_is_learnt(make_spec: MakeSpec, tiny_target: Target) -> None:
    def iteration(known: forecasting.Forecast, cost: float) -> float:
        return known.seconds(forecasting.Work({"one": (int(cost), 1)}))

    known = forecasting.Forecast()
    assert not known.known
    for cost in (1e6, 5e6, 2e7):
        known.learn("one", cost, 0.002 + 3e-10 * cost)
    assert iteration(known, 1e7) == pytest.approx(0.005)
    same = forecasting.Forecast()
    for seconds in (0.004, 0.005, 0.005):  # of one cost: nothing tells overhead and slope apart
        same.learn("one", 1e7, seconds)
    assert iteration(same, 1e7) == pytest.approx(0.005, rel=0.1)
    assert iteration(same, 2e7) == pytest.approx(2 * iteration(same, 1e7))
    noisy = forecasting.Forecast()
    noisy.learn("one", 1e6, 0.005)
    noisy.learn("one", 2e6, 0.001)  # no sensible line goes through these
    assert iteration(noisy, 5e5) > 0
    spec = make_spec()
    fits = list(planner.plan(spec, tiny_target, set()).todo)
    measured = forecasting.calibrate(spec, tiny_target, fits, InProcess(2))
    assert measured.seconds(forecasting.Work(results=1)) > 0  # metrics, at least
    plan = planner.plan(spec, tiny_target, set())
    one = forecasting.forecast_seconds(spec, tiny_target, plan, measured, 1)
    assert 0 < one < 60
    assert one / 2 <= forecasting.forecast_seconds(spec, tiny_target, plan, measured, 2) < one
    # no slot can do half of a fit
    assert forecasting.forecast_seconds(spec, tiny_target, plan, measured, 99) > one / 4


def test_each_prior_has_a_speed_of_its_own(
    make_spec: MakeSpec, tiny_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against one line for kernels and torch's convolutions."""
    monkeypatch.setattr(forecasting, "CALIBRATION_SECONDS", 1.0)  # for six fits
    trained = [{"kind": ["deep_decoder", "dip"], "k": [4, 16], "l": [2]}, {"kind": "siren", "k": [8], "l": [1]}]
    space = {"k": None, "l": None, "iterations": [1000], "prior": [*trained, {"kind": "tv", "strength": [0.1]}]}
    spec = make_spec(space=space, task={"kind": "denoise", "sigma": 0.1})
    plan = planner.plan(spec, tiny_target, set())
    measured = forecasting.calibrate(spec, tiny_target, list(plan.todo), InProcess(1))
    assert set(measured.sums) == {"deep_decoder auto", "dip auto", "siren auto"}
    known = forecasting.Forecast()
    for fit in plan.todo:
        if "prior.strength" not in fit:
            per_iteration = {"deep_decoder": 0.001, "dip": 0.1, "siren": 0.01}[fit["prior.kind"]]
            known.learn(planner.speed_of(spec, fit), planner.cost(spec, fit, tiny_target), per_iteration)
    assert forecasting.forecast_seconds(spec, tiny_target, plan, known, 1) == pytest.approx(2 * 1 + 2 * 100 + 10)
    of_dip = {speed: sums for speed, sums in known.sums.items() if speed.startswith("dip")}
    alone = forecasting.Forecast(sums=of_dip)  # of others it is all there is to go by
    assert alone.fitting(forecasting.work_ahead(spec, tiny_target, plan)) > 0
    wishes = {"engine": "reference"}, {"optimiser": "lbfgs", "learning_rate": 1.0}
    speeds = {planner.speed_of(make_spec(fit=wish), fit_of(2, 4, 2, "uniform", "1x1")) for wish in ({}, *wishes)}
    assert len(speeds) == 3


def test_cost_grows_with_channels_blocks_and_smaller_scale(tiny_target: Target) -> None:
    def cost(k: int, s: int, l: int) -> float:
        return planner.operations(fit_of(k, s, l, "uniform", "1x1"), Case.of(tiny_target))

    assert cost(8, 8, 2) < cost(16, 8, 2)
    assert cost(8, 8, 2) < cost(8, 8, 3)
    assert cost(8, 8, 2) < cost(8, 4, 2)


def test_waiting_for_a_dead_drivers_lease(store_url: str, make_spec: MakeSpec, tiny_target: Target) -> None:
    spec = make_spec(space={"k": [2]})
    with Store(store_url, lease_seconds=1.5) as store:
        dead = store.drive(spec, tiny_target, sampler(spec))
        dead.leases.take(fit_of(2, 4, 2, "uniform", "1x1").id)
        dead.leases._ended.set()
        dead.leases._renewer.join()
        began = time.monotonic()
        living = beside(store, dead)
        store.driver = "another"
        list(runner.run(living, InProcess(2), forecast()))
        assert time.monotonic() - began > 1
        assert len(living.measured()) == 2
        living.leases.end()


def test_started_is_when_the_fit_began(go: Any, make_spec: MakeSpec) -> None:
    before = datetime.now()
    _, trials = go(make_spec())
    assert all(before <= trial.datetime_start <= datetime.now() for trial in trials)


@pytest.mark.parametrize(
    ("failed", "alone"),
    [
        (Failed("of the test", shared=True, kind="memory"), True),
        (Failed("an illegal memory access", shared=True), False),  # it was, for the word in its message
    ],
    ids=["short of memory", "of another kind"],
)
def test_what_ran_out_of_memory_beside_others_is_tried_alone(
    go: Any, make_spec: MakeSpec, failed: Failed, alone: bool
) -> None:
    order: list[str] = []

    class Watched(Recording):
        slots = 2

        def submit(self, ticket: str, job: Job) -> None:
            order.append(f"{ticket} beside {len(self._waiting) + len(self.running)}")
            super().submit(ticket, job)

        running: tuple[str, ...] = ()

        def events(self) -> Iterator[tuple[str, Event]]:
            (ticket,) = self._waiting.popleft()
            yield ticket, failed
            while self._waiting:
                self.running = tuple(self._waiting[0])
                waiting, self._waiting = self._waiting, type(self._waiting)()
                self._waiting.append(waiting.popleft())
                for event in InProcess.events(self):
                    if type(event[1]).__name__ == "Finished":
                        self.running = ()
                        self._waiting.extend(waiting)
                        waiting.clear()
                    yield event

    steps, trials = go(make_spec(), Watched())
    again = [line for line in order if line.startswith("k4-")]
    assert again == ["k4-s4-l2-uniform-1x1 beside 0", f"k4-s4-l2-uniform-1x1 beside {0 if alone else 1}"]
    assert any("with nothing beside it" in step.message for step in steps) == alone
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": 4}


@pytest.mark.parametrize(
    ("tables", "device", "devices", "said"),
    [
        ({}, "cuda", ["auto"] * 3, "; not tried on the processor, since executor.fallback is 'none'"),
        ({"executor": {"fallback": "processor"}}, "cuda", ["auto", "auto", "cpu"], ""),
        ({"fit": {"device": "cuda:1"}, "executor": {"fallback": "processor"}}, "cuda:1", ["cuda:1"] * 2 + ["cpu"], ""),
        ({}, "cpu", ["auto"] * 3, ""),  # of a GPU there is nothing to say
    ],
)
def test_what_a_gpu_could_not_do_moves_to_the_processor_where_the_study_allows_it(
    go: Any, make_spec: MakeSpec, tables: dict[str, Any], device: str, devices: list[str], said: str
) -> None:
    tried: list[str] = []

    class NoDevice(Recording):
        def room(self, job: Job) -> int:
            return 1

        def submit_together(self, jobs: Mapping[str, Job]) -> None:
            tried.extend(job.options.device for job in jobs.values())
            self._waiting.append(dict(jobs))

    spec = make_spec(space={"k": [2], "iterations": [5]}, **tables)
    executor = NoDevice(failures=3)
    executor.device = device
    steps, trials = go(spec, executor)
    assert tried == devices
    assert steps[-1].failed == 1
    (trial,) = trials
    assert trial.user_attrs["reason"] == f"MemoryError: of the test{said}"
    assert trial.user_attrs["given_up"] is True


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"objectives": {"seconds": "minimize"}}, "where seconds are an objective"),
        ({"fit": {"precision": "bfloat16"}}, "where fit.precision is bfloat16"),
    ],
)
def test_a_fallback_that_would_spoil_results_is_refused(make_spec: MakeSpec, tables: Any, said: str) -> None:
    make_spec(**tables)  # valid without one, or studies in stores would no longer open
    with pytest.raises(UserError, match=said):
        make_spec(**tables, executor={"fallback": "processor"})


def test_a_fit_that_drivers_die_of_is_given_up_and_left_alone_by_others(
    store_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec(space={"k": [2, 3, 4]})
    with Store(store_url) as store:
        first = store.drive(spec, tiny_target, sampler(spec))
        store.driver = "another"
        other = beside(store, first)
        executor = Recording()
        steps = runner.run(other, executor, forecast())
        next(steps)  # began before the other gave up, and has the first fit, k = 4
        with store.storage.engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO ddstudy_claims (study_id, fit, driver, expires, deaths) "
                f"VALUES ({first.study._study_id}, 'k3-s4-l2-uniform-1x1', 'dead', 0, {runner.RETRIES})"
            )
        began = runner.run(first, Recording(), forecast())
        next(step for step in began if step.failed)  # did k = 2 and gave up k = 3, which comes last for its deaths
        failed = [trial for trial in first.trials() if trial.state.name == "FAIL"]
        assert len(failed) == 2
        assert {trial.user_attrs["reason"] for trial in failed} == {"3 drivers died while they fitted this"}
        began.close()
        last = list(steps)[-1]
        assert [fit["k"] for fit, _ in executor.jobs] == [4]
        assert (last.done, last.failed) == (4, 2)
        other.leases.end()


def test_parents_of_a_genetic_search_come_from_the_budgets_on_the_way_too(go: Any, make_spec: MakeSpec) -> None:
    space = {"k": [2, 3, 4], "l": [2, 3], "s": [4, 8], "iterations": [2, 3, 4]}
    _, trials = go(make_spec(space=space, search={"sampler": "nsga2", "trials": 30}))
    generations = [trial.system_attrs["NSGAIISampler:generation"] for trial in trials]
    assert sorted(set(generations)) == [0, 1]
    assert all(20 <= generations.count(0) <= 22 for _ in trials)  # a population, and what its last fit passes


class Steered(InProcess):
    """Fits whose PSNR at the checks follows from k, all but a little: equal differences slow Wilcoxon's test down."""

    def __init__(self) -> None:
        super().__init__(threads=2)

    def events(self) -> Iterator[tuple[str, Event]]:
        for ticket, event in super().events():
            if isinstance(event, Check):
                k = int(ticket.partition("-")[0][1:])
                psnr = 10.0 * k + event.iteration * zlib.crc32(ticket.encode()) / 2**38
                event = replace(event, psnr_members=(psnr, psnr))
            yield ticket, event


@pytest.mark.parametrize("name", ["median", "hyperband", "wilcoxon"])
def test_pruners_stop_fits_that_promise_little(go: Any, make_spec: MakeSpec, name: str) -> None:
    spec = make_spec(
        space={"k": [2, 3, 4, 5], "s": [2, 4, 8], "l": [2], "iterations": [20, 30]},
        search={"sampler": "random", "trials": 20, "pruner": name},
        fit={"check_every": 2},
    )
    steps, trials = go(spec, Steered())
    stopped = [trial for trial in trials if trial.user_attrs.get("pruner") == name]
    assert stopped
    assert all(trial.state.name == "PRUNED" for trial in stopped)
    assert all(trial.user_attrs["reason"].startswith("stopped at ") for trial in stopped)
    assert all(f"by the {name} pruner" in trial.user_attrs["reason"] for trial in stopped)
    assert all(trial.user_attrs["iterations_done"] < trial.params["iterations"] for trial in stopped)
    assert np.mean([trial.params["k"] for trial in stopped]) < 4
    assert set(settings_of(trials).values()) == {1}  # nothing is measured twice, stopped or not
    assert any(f"by {name}" in step.message for step in steps)


def test_without_a_pruner_nothing_is_stopped(go: Any, make_spec: MakeSpec) -> None:
    _, trials = go(make_spec(space={"k": [2, 3, 4, 5]}, search={"sampler": "random", "trials": 8}), Steered())
    assert {trial.state.name for trial in trials} == {"COMPLETE"}


def reuse(url: str, spec: StudySpec, target: Target, name: str, device: str = "here") -> tuple[int, list[Any]]:
    with Store(url) as store:
        source = store.source(name, spec, target)
        driven = store.drive(spec, target, sampler(spec))
        count = driven.reuse(source, device=device, marks={})
        return count, list(driven.trials())


def test_results_of_another_study_are_imported_with_where_they_come_from(
    go: Any, sqlite_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    _, measured = go(make_spec())
    spec = make_spec(name="other", space={"k": [4, 8]}, search={"sampler": "tpe", "trials": 2})
    count, trials = reuse(sqlite_url, spec, tiny_target, "tiny")
    assert count == 2  # k = 2 is not in this space
    assert {trial.user_attrs["reused_from"] for trial in trials} == {
        f"tiny#{trial.number}" for trial in measured if trial.params["k"] == 4
    }
    assert results_of(trials) == {key: value for key, value in results_of(measured).items() if dict(key)["k"] == 4}
    assert reuse(sqlite_url, spec, tiny_target, "tiny")[0] == 0  # all are here
    executor = Recording()
    steps, trials = go(spec, executor)
    assert {fit["k"] for fit, _ in executor.jobs} == {8}
    assert steps[-1].total == 4  # two that it was to try, beside the imported two
    chain = make_spec(name="chain", space={"k": [4]})
    _, trials = reuse(sqlite_url, chain, tiny_target, "other")
    assert all(trial.user_attrs["reused_from"].startswith("tiny#") for trial in trials)


def test_imported_results_are_judged_by_the_limits_of_the_study(
    go: Any, sqlite_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    go(make_spec())
    strict = make_spec(name="strict", stability={"min_psnr": 99.0})
    count, trials = reuse(sqlite_url, strict, tiny_target, "tiny")
    assert count == 4
    assert {trial.state.name for trial in trials} == {"PRUNED"}
    assert all("PSNR" in trial.user_attrs["reason"] for trial in trials)


def test_seconds_are_reused_on_the_same_device_only(
    go: Any, sqlite_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    _, trials = go(make_spec())
    spec = make_spec(
        name="timed", objectives={"psnr": "maximize", "seconds": "minimize"}, search={"sampler": "tpe", "trials": 1}
    )
    assert reuse(sqlite_url, spec, tiny_target, "tiny", device="another")[0] == 0
    assert reuse(sqlite_url, spec, tiny_target, "tiny", device=trials[0].user_attrs["device"])[0] == 4


def test_other_fits_and_targets_are_not_reused(
    go: Any, sqlite_url: str, make_spec: MakeSpec, tiny_target: Target
) -> None:
    go(make_spec())
    with pytest.raises(UserError, match=r"--reuse tiny: .*fit.seed: 0 there, 1 here"):
        reuse(sqlite_url, make_spec(name="seeded", fit={"seed": 1}), tiny_target, "tiny")
    with pytest.raises(UserError, match=r"target: .* other pixels"):
        reuse(sqlite_url, make_spec(name="bright"), replace(tiny_target, image=1 - tiny_target.image), "tiny")
    with pytest.raises(UserError, match="no study 'none'"):
        reuse(sqlite_url, make_spec(name="new"), tiny_target, "none")


def test_lists_of_a_study_may_grow(go: Any, make_spec: MakeSpec) -> None:
    go(make_spec(space={"k": [2, 4], "iterations": [10]}))
    grown = make_spec(space={"k": [2, 3, 4, 8], "iterations": [5, 10], "noise": ["uniform", "blur3"]})
    executor = Recording()
    _, trials = go(grown, executor)
    assert len(trials) == len(settings_of(trials)) == 16
    assert (fit_of(2, 4, 2, "uniform", "1x1"), (5,)) in executor.jobs  # only what is missing
    assert len({str(trial.distributions) for trial in trials}) == 1  # importances see one space
    for smaller in ({"k": [2, 4]}, {"noise": ["blur3", "uniform"]}):
        space = {**grown.space.model_dump(mode="json"), **smaller}
        with pytest.raises(UserError, match=r"(?s)space\.\w+: stored .*lists may grow"):
            go(make_spec(space=space))


def test_lists_do_not_grow_under_another_driver(postgres_url: str, make_spec: MakeSpec, tiny_target: Target) -> None:
    spec = make_spec()
    with Store(postgres_url) as one, Store(postgres_url) as two:
        running = runner.run(one.drive(spec, tiny_target, sampler(spec)), InProcess(2), forecast())
        while not next(running).done:
            pass
        with pytest.raises(UserError, match="while another driver runs it"):
            two.drive(make_spec(space={"k": [2, 3, 4]}), tiny_target, sampler(spec))
        running.close()  # type: ignore[attr-defined]
