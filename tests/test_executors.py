import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ddstudy.errors import UserError
from ddstudy.execution.executors import (
    Event,
    Executor,
    Failed,
    Finished,
    InProcess,
    Layout,
    Started,
    Threads,
    Workers,
    layout,
    resolve_device,
    usable_cores,
    usable_memory,
    work_events,
)
from ddstudy.spec.schema import StudySpec
from ddstudy.study.evaluate import Check, Job, Result

MakeSpec = Callable[..., StudySpec]


@pytest.fixture(params=["in process", "threads"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Each kind that this machine alone makes; tests with it also run on a cluster, in `test_ray.py`."""
    made = InProcess(2) if request.param == "in process" else Threads(Layout(workers=2, threads=1))
    yield made
    made.close()


def collect(executor: Executor) -> dict[str, list[Event]]:
    events: dict[str, list[Event]] = {}
    for ticket, event in executor.events():
        if not isinstance(event, Workers):
            events.setdefault(ticket, []).append(event)
    return events


def test_jobs_give_their_events_in_order_and_end(executor: Executor, make_job: Callable[..., Job]) -> None:
    for k in (2, 3, 4):
        executor.submit(f"k{k}", make_job(k, check_every=2))
    for events in (everything := collect(executor)).values():
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finished), events[-1]
        assert [event.iteration for event in events if isinstance(event, Check)] == [2, 4, 5, 6, 8, 10]
        assert [event.budget for event in events if isinstance(event, Result)] == [5, 10]
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
    assert "Traceback" in events["broken"][-1].log
    assert isinstance(events["sound"][-1], Finished)


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="there is no cuda:63") as caught:
        resolve_device("cuda:63")
    assert "Valid here: auto, cpu" in str(caught.value)
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def cores(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))
    monkeypatch.setattr("ddstudy.execution.executors._control_group", lambda _: "")


@pytest.mark.parametrize(
    ("count", "wishes", "expected"),
    [
        (1, {}, (1, 1)),
        (2, {}, (1, 2)),
        (4, {}, (1, 4)),
        (8, {}, (1, 5)),  # a thread per member; the rest would not fill a second fit
        (16, {}, (3, 5)),
        (16, {"exclusive": True}, (1, 5)),  # seconds are an objective
        (16, {"bytes_per_fit": lambda: 1e18}, (1, 5)),  # memory for one at most
        (16, {"workers": 8}, (8, 2)),
        (16, {"threads": 2}, (8, 2)),
        (16, {"workers": 2, "threads": 3}, (2, 3)),
        (16, {"device": "cuda"}, (1, 5)),
    ],
)
def test_layout_fills_the_cores(
    monkeypatch: pytest.MonkeyPatch, count: int, wishes: dict[str, Any], expected: tuple[int, int], make_spec: MakeSpec
) -> None:
    cores(monkeypatch, count)
    given = {"device": "cpu", "exclusive": False, "bytes_per_fit": lambda: 1.0} | wishes
    assert layout(make_spec(fit={"members": 5}).fit, **given) == Layout(*expected)


def test_several_workers_are_refused_where_seconds_count(make_spec: MakeSpec) -> None:
    with pytest.raises(UserError) as refused:
        layout(make_spec().fit, "cpu", exclusive=True, bytes_per_fit=lambda: 1, workers=2)
    assert "cannot be timed" in str(refused.value)


def test_a_control_groups_quota_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, 16)
    files = {"cpu.max": "350000 100000\n", "memory.max": "1000000\n", "memory.current": "400000\n"}
    monkeypatch.setattr("ddstudy.execution.executors._control_group", lambda file: files.get(file, ""))
    assert usable_cores() == 4
    assert usable_memory() == 600_000
    files["memory.stat"] = "anon 100000\ninactive_file 200000\nactive_file 50000\n"  # files that were read
    assert usable_memory() == 850_000
    files |= {"cpu.max": "max 100000\n", "memory.max": "max\n"}
    assert usable_cores() == 16
    assert usable_memory() > 600_000


def test_a_fit_that_there_is_no_memory_for_is_refused_in_words(
    executor: Executor, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system would end the whole run for it, with one fit at a time as with several."""
    monkeypatch.setattr("ddstudy.execution.executors.usable_memory", lambda **_: 1e7)
    executor.submit("large", make_job(512))
    executor.submit("small", make_job())
    events = collect(executor)
    assert isinstance(events["small"][-1], Finished), events
    assert isinstance(failed := events["large"][-1], Failed)
    assert re.fullmatch(r"the fit needs 0\.\d\d GB of memory, 0.01 GB are free", failed.why)
    assert failed.kind == "memory"


@pytest.mark.parametrize(
    ("work", "short"),
    [
        (lambda: torch.empty(2**60), True),
        (lambda: np.empty(2**50), True),
        (lambda: torch.zeros(2) @ torch.zeros(3), False),
        (lambda: int("out of memory"), False),
    ],
    ids=["torch", "numpy", "another error of torch", "words only"],
)
def test_whether_memory_was_short_is_known_by_the_error(work: Callable[[], object], short: bool) -> None:
    def fit() -> Iterator[Check | Result]:
        work()
        yield from ()

    [failed] = work_events(fit())
    assert isinstance(failed, Failed)
    assert failed.kind == ("memory" if short else "error"), failed


def test_threads_end_soon_when_they_are_closed(make_job: Callable[..., Job]) -> None:
    executor = Threads(Layout(workers=1, threads=1))
    executor.submit("long", replace(make_job(check_every=1000), budgets=(100_000_000,)))
    events = executor.events()
    assert isinstance(next(events)[1], Started)
    assert isinstance(next(events)[1], Check)
    executor.close()  # waits for the thread, which would need hours


def test_a_cancelled_job_ends_early_and_the_next_one_runs(executor: Executor, make_job: Callable[..., Job]) -> None:
    executor.submit("long", replace(make_job(check_every=2), budgets=(100_000,)))
    ends, cancelled = [], False
    for ticket, event in executor.events():
        if isinstance(event, Check) and not cancelled:
            cancelled = True
            executor.cancel(ticket)
        if isinstance(event, Finished):
            ends.append(ticket)
            if ticket == "long":
                executor.submit("next", make_job(3))
        assert not isinstance(event, Failed), event
        assert ticket == "next" or not isinstance(event, Result)
    assert ends == ["long", "next"]
