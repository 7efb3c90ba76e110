import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ddstudy import runner
from ddstudy.errors import UserError
from ddstudy.evaluate import Check, Job, Measurement
from ddstudy.executors import Event, Executor, Failed, Finished, InProcess, Ray, resolve_device, usable_cores
from ddstudy.samplers import sampler
from ddstudy.settings import Fit
from ddstudy.spec import StudySpec
from ddstudy.store import Store
from ddstudy.target import Target

MakeSpec = Callable[..., StudySpec]


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # what Ray will do from its next version on; it warns
    executor = Ray("local")
    yield executor
    executor.close()


@pytest.fixture(params=["in process", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request: pytest.FixtureRequest) -> Executor:
    return InProcess(2) if request.param == "in process" else request.getfixturevalue("ray")


@pytest.fixture
def make_job(make_spec: MakeSpec, tiny_target: Target) -> Callable[..., Job]:
    def make(k: int = 2, **fit: Any) -> Job:
        spec = make_spec(fit=fit)
        return Job(Fit(k, 4, 2, "uniform", "1x1"), (5, 10), tiny_target, spec.fit, spec.noise, spec.stability)

    return make


def collect(executor: Executor) -> dict[str, list[Event]]:
    events: dict[str, list[Event]] = {}
    for ticket, event in executor.events():
        events.setdefault(ticket, []).append(event)
    return events


def test_jobs_give_their_events_in_order_and_end(executor: Executor, make_job: Callable[..., Job]) -> None:
    for k in (2, 3, 4):
        executor.submit(f"k{k}", make_job(k))
    for events in (everything := collect(executor)).values():
        assert [event.iteration for event in events if isinstance(event, Check)] == [2, 4, 5, 6, 8, 10]
        assert [event.budget for event in events if isinstance(event, Measurement)] == [5, 10]
        assert isinstance(events[-1], Finished)
    assert set(everything) == {"k2", "k3", "k4"}
    assert collect(executor) == {}


def test_jobs_may_be_added_while_others_run(executor: Executor, make_job: Callable[..., Job]) -> None:
    executor.submit("first", make_job())
    seen = []
    for ticket, event in executor.events():
        if isinstance(event, Finished):
            seen.append(ticket)
            if ticket == "first":
                executor.submit("second", make_job(3))
    assert seen == ["first", "second"]


def test_failure_is_an_event_not_an_end(executor: Executor, make_job: Callable[..., Job]) -> None:
    broken = make_job()
    object.__setattr__(broken, "budgets", ("ten",))
    executor.submit("broken", broken)
    executor.submit("sound", make_job())
    events = collect(executor)
    assert isinstance(events["broken"][-1], Failed)
    assert "\n" not in events["broken"][-1].why
    assert isinstance(events["sound"][-1], Finished)


@pytest.mark.slow
def test_ray_gives_the_same_study_as_this_process(
    ray: Ray, tmp_path: Any, make_spec: MakeSpec, tiny_target: Target
) -> None:
    results = []
    for name, executor in (("here", InProcess(2)), ("ray", ray)):
        spec = make_spec(name=name, space={"l": [2, 3], "noise": ["uniform", "simplex"], "tiling": ["1x1", "3x3"]})
        with Store(f"sqlite:///{tmp_path / 'one.db'}") as store:
            driven = store.drive(spec, tiny_target, sampler(spec))
            fits = list(runner.plan(spec, tiny_target, set()).todo)
            list(runner.run(driven, executor, runner.calibrate(spec, tiny_target, fits, executor)))
            trials = store.view(name).trials
        assert trials["shared"].eq(executor.shared).all()
        results.append(trials.set_index(["fit_id", "iterations"])["psnr"].sort_index())
    assert len(results[0]) == 32
    assert np.array_equal(results[0], results[1])
    assert results[0].index.equals(results[1].index)


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="there is no cuda:63") as caught:
        resolve_device("cuda:63")
    assert "Valid here: auto, cpu" in str(caught.value)
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_no_cluster_at_an_address() -> None:
    with pytest.raises(UserError, match="no Ray cluster at"):
        Ray("nonsense://1")
