"""Fits in packs: the numbers of each alone, its own end, and what a GPU needs for several at a time.

This file is a program, too, see `interpreter.py`: `python test_together.py FILE` fits packs in the interpreter and
keeps their numbers.
"""

import gc
import queue
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import interpreter
import numpy as np
import pytest
import torch
from drivers import beside
from numpy.typing import NDArray
from points import fit_of
from problems import make_problem

from ddstudy.execution.executors import Event, Failed, Finished, InProcess, Layout, Started, Threads
from ddstudy.images.volumes import Target
from ddstudy.solvers import Config, Method, Problem, Snapshot, choose, fit_together, fused
from ddstudy.solvers.base import snapshots
from ddstudy.solvers.fused.step import Step
from ddstudy.spec.axes import Fit
from ddstudy.spec.schema import StudySpec
from ddstudy.store.database import Store
from ddstudy.study import evaluate as module
from ddstudy.study import forecasting, planner, runner
from ddstudy.study.evaluate import Check, Job, Result, evaluate, evaluate_together
from ddstudy.study.samplers import sampler

MakeSpec = Callable[..., StudySpec]
Numbers = dict[str, NDArray[Any]]
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
KEEP_BEST = Config(keep="best")
STOPS = [[1], [1, 2, 4], [4]]  # of three fits; the second is ended at 2


def problems(k: int, members: int = 2, tiles: int = 2, size: int = 24, blocks: int = 3) -> list[Problem]:
    """Three of one kind: another start, another target, another number of members."""
    one = make_problem(k=k, members=members + 1, tiles=tiles, size=size, blocks=blocks)
    rng = np.random.default_rng(3)
    pixels = rng.permutation(one.measurement.size)[: one.measurement.size - 7]
    other = replace(one, weights=one.weights[::-1], inputs=one.inputs[::-1], pixels=pixels)
    third = replace(other, measurement=rng.random(one.measurement.shape, dtype=np.float32), weights=1.1 * one.weights)
    return [replace(one, weights=one.weights[:members], inputs=one.inputs[:members]), other, third]


def end_second_at_2(pack: Iterator[tuple[int, Snapshot]], ended: list[threading.Event]) -> list[tuple[int, Snapshot]]:
    seen = []
    for index, snapshot in pack:
        seen.append((index, snapshot.fetched()))
        if (index, snapshot.iteration) == (1, 2):
            ended[1].set()
    return seen


def same(one: Snapshot, other: Snapshot) -> bool:
    names = ("iteration", "losses", "ranges", "outputs")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


# engines


@pytest.mark.parametrize("keep", ["last", "best", "average"])
@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_a_pack_has_the_numbers_of_each_fit_alone_and_each_its_own_end(
    engine: str, keep: Literal["last", "best", "average"]
) -> None:
    method, work, config = choose("cpu", engine), problems(k=8), Config(keep=keep)
    ended = [threading.Event() for _ in work]
    seen = end_second_at_2(fit_together(work, config, STOPS, threads=2, method=method, ended=ended), ended)
    assert [(index, snapshot.iteration) for index, snapshot in seen] == [(0, 1), (1, 1), (1, 2), (2, 4)]
    for index, snapshot in seen:
        *_, (_, alone) = fit_together([work[index]], config, [[snapshot.iteration]], method=method)
        assert same(snapshot, alone)
        errors = (snapshot.outputs.astype(float) - work[index].measurement).reshape(len(snapshot.losses), -1) ** 2
        pixels = slice(None) if work[index].pixels is None else work[index].pixels
        np.testing.assert_allclose(snapshot.losses, errors[:, pixels].mean(axis=1), rtol=1e-12)
        assert np.array_equal(snapshot.ranges, np.ptp(snapshot.outputs, axis=(2, 3, 4)))


def test_a_pack_shares_out_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits together took is forecast for each once, not for each of them."""
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))

    class Still:
        def advance(self, iterations: int, ended: object) -> None: ...
        def states(self, indices: list[int]) -> Any:
            return {index: (np.zeros(1), np.zeros(1), np.zeros) for index in indices}

        def drop(self, indices: object) -> None: ...
        def __enter__(self) -> "Still":
            return self

        def __exit__(self, *_: object) -> None: ...

    work = problems(k=8, members=1)  # and two members, and two
    seen = snapshots(Still(), work, [[1], [1, 2], [1, 2]], [threading.Event() for _ in work])  # type: ignore[arg-type]
    seconds = [(index, snapshot.seconds) for index, snapshot in seen]
    assert seconds == [(0, 0.2), (1, 0.4), (2, 0.4), (1, 0.9), (2, 0.9)]


def test_what_does_not_fit_together_is_refused() -> None:
    one = make_problem(k=8)
    for other in (make_problem(k=16), make_problem(k=8, tiles=2)):
        with pytest.raises(ValueError, match="fitted together"):
            fit_together([one, other], Config(), [[1], [1]])


def test_jobs_that_are_optimised_differently_are_not_of_one_kind(make_jobs: Callable[..., list[Job]]) -> None:
    kinds = {make_jobs(fit=fit)[0].kind for fit in ({}, {"learning_rate": 0.02}, {"keep": "last"}, {"members": 3})}
    assert len(kinds) == 3


# kernels in the interpreter


def packs_in_the_interpreter(file: str) -> None:
    from ddstudy.solvers.fused.kernels_cuda import TritonKernels

    kernels, numbers = TritonKernels("cpu"), {}
    work = [replace(p, weights=p.weights[:1], inputs=p.inputs[:1]) for p in problems(k=2, tiles=1, size=4, blocks=1)]
    ended = [threading.Event() for _ in work]
    pack = snapshots(fused.ensemble(work, Config(), kernels, threads=1), work, [[1], [1, 2, 3], [3]], ended)
    _, first = next(pack)
    numbers |= keep("0 1", first)
    late = replace(first, iteration=1)  # whose outputs nobody asked for yet
    found = (t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor)
    numbers["bytes"] = np.array(sum({storage.data_ptr(): storage.nbytes() for storage in found}.values()))
    numbers["model"] = np.array(fused.memory(work[0].prior, 1, len(work), 1, kernels))
    numbers["work arrays"] = np.array(Step(work[0].prior, work[0].measurement, len(work), kernels).nbytes)
    for index, snapshot in end_second_at_2(pack, ended):
        numbers |= keep(f"{index} {snapshot.iteration}", snapshot)
    try:
        late.fetch()
    except RuntimeError as error:
        numbers["too late"] = np.array(str(error))
    for index, (problem, stops) in enumerate(zip(work, [[1], [1, 2], [3]], strict=True)):
        alone = snapshots(
            fused.ensemble([problem], Config(), kernels, threads=1), [problem], [stops], [threading.Event()]
        )
        for _, snapshot in alone:
            numbers |= keep(f"alone {index} {snapshot.iteration}", snapshot)
    np.savez(file, **numbers)  # type: ignore[arg-type]


def keep(name: str, snapshot: Snapshot) -> Numbers:
    return {f"{name} {what}": getattr(snapshot, what) for what in ("losses", "ranges", "outputs")}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    pytest.importorskip("triton", reason="Triton is not available for this platform")
    return interpreter.numbers_of(__file__, tmp_path_factory.mktemp("interpreted"))


@pytest.mark.slow
@pytest.mark.triton
def test_members_of_one_launch_have_the_numbers_of_their_fit_alone(interpreted: Numbers) -> None:
    """Also where others leave the launch: those that stay take all that Adam and the best iterate know with them."""
    packed = [key for key in interpreted if key[0].isdigit()]
    assert len(packed) == 3 * 4
    for key in packed:
        assert np.array_equal(interpreted[key], interpreted[f"alone {key}"]), key


@pytest.mark.slow
@pytest.mark.triton
def test_outputs_are_not_those_of_a_later_iteration(interpreted: Numbers) -> None:
    assert "gone on" in str(interpreted["too late"])


@pytest.mark.slow
@pytest.mark.triton
def test_the_memory_that_a_pack_is_said_to_need_is_what_it_takes(interpreted: Numbers) -> None:
    assert interpreted["work arrays"] < interpreted["bytes"] < interpreted["model"] < 1.6 * interpreted["bytes"]


# jobs


@pytest.fixture
def make_jobs(make_spec: MakeSpec, tiny_target: Target) -> Callable[..., list[Job]]:
    def make(budgets: tuple[int, ...] = (5, 10), tiling: Any = "2x2", **tables: Any) -> list[Job]:
        spec = make_spec(**tables)
        fits = [fit_of(4, 4, 2, noise, tiling) for noise in ("uniform", "blur3", "simplex")]
        return [planner.job(spec, tiny_target, fit, budgets) for fit in fits]

    return make


def plain(event: Check | Result | None) -> Any:
    """Without what depends on the machine."""
    if isinstance(event, Check):
        return event.iteration, event.psnr_members
    if isinstance(event, Result):
        values = {
            key: value for key, value in event.values.items() if not key.startswith(("seconds", "waited", "disturbed"))
        }
        return event.budget, values, event.output.tobytes(), event.stopped, event.curve["psnr_members"]
    return event


def by_job(events: Iterator[tuple[int, Any]]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for index, event in events:
        found.setdefault(index, []).append(plain(event))
    return found


def test_jobs_of_a_pack_have_their_own_events_and_ends(make_jobs: Callable[..., list[Job]]) -> None:
    """One is stopped by its rule, one is cancelled, one goes to its end."""
    jobs = make_jobs()
    jobs[1] = replace(jobs[1], rule=make_jobs(stability={"cv_percent": 1e-9, "warmup": 0})[0].rule)
    assert len({job.kind for job in jobs}) == 1
    stops = [threading.Event() for _ in jobs]
    seen: list[tuple[int, Any]] = []
    for index, event in evaluate_together(jobs, device="cpu", threads=2, stops=stops):
        seen.append((index, event))
        if index == 2 and isinstance(event, Check) and event.iteration == 4:
            stops[2].set()
    found = by_job(iter(seen))
    for index in (0, 1):
        assert found[index] == [*map(plain, evaluate(jobs[index], device="cpu", threads=1)), None]
    assert [event and event[0] for event in found[2]] == [2, 4, None]
    where = [i for i, (index, event) in enumerate(seen) if index == 2 and event is None]
    assert where[0] < len(seen) - 3  # whoever waits for its end hears of it while the others go on


def test_metrics_of_a_fit_on_another_device_are_computed_while_it_goes_on(
    make_jobs: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same events in the same order; of a fit that is timed, nothing goes on beside it."""
    one_more = threading.Event()  # the fit was looked at after its first budget
    real, fits = module._Tracker._quality, module.fit_together

    def blocked(*arguments: Any) -> Any:
        assert one_more.wait(20)
        return real(*arguments)

    def elsewhere(*arguments: Any, device: str, **options: Any) -> Iterator[tuple[int, Snapshot]]:
        for index, snapshot in fits(*arguments, device="cpu", **options):
            if snapshot.iteration == 8:
                one_more.set()
            yield index, snapshot

    job = make_jobs()[0]
    monkeypatch.setattr(module, "device_name", lambda _: "here or there")
    expected = [plain(event) for event in evaluate(job, device="cpu", threads=1)]
    monkeypatch.setattr(module, "fit_together", elsewhere)
    monkeypatch.setattr(module._Tracker, "_quality", blocked)
    monkeypatch.setattr(module, "choose", lambda *_: choose("cpu"))
    assert [plain(event) for event in evaluate(job, device="mps", threads=1)] == expected
    one_more.clear()
    monkeypatch.setattr(one_more, "wait", lambda _: one_more.is_set())
    with pytest.raises(AssertionError, match="assert"):  # would wait for ever
        list(evaluate(replace(job, timed=True), device="mps", threads=1))


def test_what_a_fit_had_reached_is_a_result_also_where_it_fails_before_its_metrics_are_there(
    make_jobs: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, real, fits = threading.Event(), module._Tracker._quality, module.fit_together

    def late(*arguments: Any) -> Any:
        assert failed.wait(20)
        return real(*arguments)

    def breaks(*arguments: Any, device: str, **options: Any) -> Iterator[tuple[int, Snapshot]]:
        for index, snapshot in fits(*arguments, device="cpu", **options):
            if snapshot.iteration == 8:
                failed.set()
                raise RuntimeError("of the test")
            yield index, snapshot

    monkeypatch.setattr(module, "fit_together", breaks)
    monkeypatch.setattr(module._Tracker, "_quality", late)
    monkeypatch.setattr(module, "choose", lambda *_: choose("cpu"))
    events = evaluate(make_jobs()[0], device="mps", threads=1)
    seen = [next(events) for _ in range(5)]
    assert [plain(event)[0] for event in seen] == [2, 4, 5, 5, 6]
    with pytest.raises(RuntimeError, match="of the test"):
        next(events)


# studies


class Packing(InProcess):
    """The real executor with room for some fits at a time, as a GPU has; tells what it was given."""

    def __init__(self, room: int, slots: int = 1, fail: bool = False) -> None:
        super().__init__(threads=2)
        self.size, self.slots, self.fail = room, slots, fail  # type: ignore[misc]
        self.packs: list[list[str]] = []

    def room(self, job: Job) -> int:
        return self.size

    def submit_together(self, jobs: Any) -> None:
        self.packs.append(list(jobs))
        super().submit_together(jobs)

    def events(self) -> Iterator[tuple[str, Event]]:
        for ticket, event in super().events():
            if self.fail and isinstance(event, Result) and len(self.packs[0]) > 1:
                self.fail = False
                raise KeyboardInterrupt
            yield ticket, event


SPACE = {"k": [2, 4], "noise": ["uniform", "blur3", "simplex"]}


def study(spec: StudySpec, target: Target, executor: Any, name: str = "") -> list[Any]:
    """Its trials, in a store of a name or a new one."""
    with Store(f"sqlite:///{name or uuid.uuid4()}.db") as store:
        driven = store.drive(spec, target, sampler(spec))
        list(runner.run(driven, executor, forecasting.Forecast()))
        return list(driven.trials())


def numbers_of(trials: list[Any]) -> dict[Any, Any]:
    keys = ("psnr", "ssim", "cv_percent", "psnr_member_1")
    return {tuple(sorted(t.params.items())): [t.user_attrs[key] for key in keys] for t in trials if t.values}


def test_a_grid_is_packed_by_kind_and_killed_and_resumed_as_it_is_without(
    make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec(space=SPACE)
    alone = study(spec, tiny_target, InProcess(2))
    assert not any(trial.user_attrs["shared"] for trial in alone)
    with pytest.raises(KeyboardInterrupt):
        study(spec, tiny_target, Packing(room=8, fail=True), "packed")
    executor = Packing(room=8)
    packed = study(spec, tiny_target, executor, "packed")
    assert [len(pack) for pack in executor.packs] == [3, 3]
    assert all(len({ticket.partition("-")[0] for ticket in pack}) == 1 for pack in executor.packs)
    assert len(packed) == len(alone) == 12
    assert numbers_of(packed) == numbers_of(alone)
    assert all(trial.user_attrs["shared"] for trial in packed)


def test_fits_of_a_pack_are_leased_one_by_one_and_done_alone_after_their_driver_died(
    make_spec: MakeSpec, tiny_target: Target
) -> None:
    """One of them may be what it died of; what was recorded is kept."""
    spec = make_spec(space=SPACE | {"k": [4]})
    with Store("sqlite:///one.db", lease_seconds=1.5) as store:
        dead = store.drive(spec, tiny_target, sampler(spec))
        killed = Packing(room=8)
        steps = runner.run(dead, killed, forecasting.Forecast())
        next(step for step in steps if step.done == 1)
        assert len(killed.packs[0]) == 3
        assert dead.leases.alive() == set(killed.packs[0])
        dead.leases._ended.set()
        dead.leases._renewer.join()
        dead.leases.release = lambda fit_id: None  # type: ignore[method-assign]
        store.driver = "another"
        living, executor = beside(store, dead), Packing(room=8)
        list(runner.run(living, executor, forecasting.Forecast()))
        assert [len(pack) for pack in executor.packs] == [1, 1, 1]
        trials = living.trials()
        living.leases.end()
        steps.close()  # type: ignore[attr-defined]
    assert len(numbers_of(trials)) == len(trials) == 6
    assert numbers_of(trials) == numbers_of(study(spec, tiny_target, InProcess(2)))


def test_packs_leave_something_for_every_slot_and_never_time(make_spec: MakeSpec, tiny_target: Target) -> None:
    def sizes(executor: Packing, **tables: Any) -> list[int]:
        study(make_spec(space=SPACE | {"k": [4]}, **tables), tiny_target, executor)
        return [len(pack) for pack in executor.packs]

    assert sizes(Packing(room=8, slots=2)) == [2, 1]
    assert sizes(Packing(room=2)) == [2, 1]
    assert sizes(Packing(room=8), objectives={"psnr": "maximize", "seconds": "minimize"}) == [1, 1, 1]
    # a search asks for no more at once than there are slots
    assert sizes(Packing(room=8), search={"sampler": "random", "trials": 6}) == [1, 1, 1]
    assert sizes(Packing(room=8, slots=3), search={"sampler": "random", "trials": 6}) == [3]


def test_what_fails_in_a_pack_is_tried_alone(
    make_spec: MakeSpec, tiny_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = module.problem, []

    def no_simplex(fit: Fit, *rest: Any) -> Problem:
        if fit["noise"] == "simplex" and len(broken) < 2:
            broken.append(fit)
            raise RuntimeError("of the test")
        return real(fit, *rest)

    monkeypatch.setattr(module, "problem", no_simplex)
    executor = Packing(room=8)
    trials = study(make_spec(space=SPACE | {"k": [4]}), tiny_target, executor)
    assert [len(pack) for pack in executor.packs] == [3, 1, 1, 1, 1]
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert len(trials) == 6


@pytest.mark.parametrize("make", [lambda: InProcess(2), lambda: Threads(Layout(workers=2, threads=1))])
def test_executors_run_packs(make: Callable[[], Any], make_jobs: Callable[..., list[Job]]) -> None:
    executor = make()
    jobs = dict(zip(["one", "two", "three"], make_jobs(tiling="1x1"), strict=True))
    executor.submit_together(jobs)
    executor.submit("alone", replace(jobs["one"], fit=fit_of(3, 4, 2, "uniform", "1x1")))
    ends, begun = {}, set()
    for ticket, event in executor.events():
        if isinstance(event, Started):
            begun.add(ticket)
        if isinstance(event, Check) and ticket == "two":
            executor.cancel("two")
        if isinstance(event, Result):
            assert event.shared == (ticket != "alone" or executor.slots > 1)
        assert not isinstance(event, Failed)
        if isinstance(event, Finished):
            ends[ticket] = event
    assert ends.keys() == begun == {"one", "two", "three", "alone"}
    executor.close()


# several fits at a time on a GPU


def test_what_breaks_a_capture_waits_for_it_and_nothing_else_does() -> None:
    """The lock of a device: one for all kernels there, none for another device, and its holder may take it again."""
    pytest.importorskip("triton", reason="Triton is not available for this platform")
    from ddstudy.solvers.fused import kernels_cuda

    def on(device: str) -> Any:
        made = object.__new__(kernels_cuda.TritonKernels)  # a GPU that is not here
        made.device = torch.device(device)
        return made

    order: queue.SimpleQueue[str] = queue.SimpleQueue()
    capturing = threading.Event()

    def capture() -> None:
        with on("cuda:0").device_lock(), on("cuda:0").device_lock():
            capturing.set()
            other.result(20)  # another device's need not wait
            order.put("captured")

    def allocate(device: str) -> None:
        capturing.wait(20)
        with on(device).device_lock():
            order.put(f"allocated on {device}")

    with ThreadPoolExecutor(3) as pool:
        other = pool.submit(allocate, "cuda:1")
        waiting = pool.submit(allocate, "cuda:0")
        pool.submit(capture).result(20)
        waiting.result(20)
    assert [order.get() for _ in range(3)] == ["allocated on cuda:1", "captured", "allocated on cuda:0"]


@NEEDS_GPU
def test_fits_in_threads_and_in_packs_have_the_numbers_of_each_alone_on_a_gpu() -> None:
    """Captures, allocations and looks of one beside the launches of another."""
    method = choose("cuda")
    work = problems(k=24, tiles=2, size=40)
    stops = list(range(1, 60, 3))

    def ends(chosen: list[Problem]) -> list[tuple[int, Snapshot]]:
        pack = fit_together(
            chosen, KEEP_BEST, [stops[: 8 + 4 * i] for i in range(len(chosen))], device="cuda", method=method
        )
        return [(index, snapshot.fetched()) for index, snapshot in pack]

    alone = [ends([problem]) for problem in work]
    with ThreadPoolExecutor(4) as pool:
        packs = [pool.submit(ends, work) for _ in range(2)]
        singles = [pool.submit(ends, [problem]) for problem in work for _ in range(3)]
        for i, single in enumerate(singles):
            expected = alone[i // 3]
            assert all(same(one, other) for (_, one), (_, other) in zip(single.result(), expected, strict=True))
        for pack in packs:
            seen = pack.result()
            assert len(seen) == 8 + 12 + 16
            for index, snapshot in seen:
                (expected,) = (s for _, s in ends_at(work[index], snapshot.iteration, method))
                np.testing.assert_array_equal(snapshot.losses, expected.losses)


@NEEDS_GPU
def test_a_study_on_a_gpu_is_packed_and_runs_in_threads_with_the_same_numbers(
    make_spec: MakeSpec, tiny_target: Target
) -> None:
    spec = make_spec(space=SPACE, fit={"device": "cuda"})
    alone = study(spec, tiny_target, Packing(room=1))
    packing = InProcess(1)
    assert packing.room(planner.job(spec, tiny_target, fit_of(4, 4, 2, "uniform", "1x1"), (5,))) == 40  # 80 members
    for executor in (packing, Threads(Layout(workers=2, threads=1))):
        trials = study(spec, tiny_target, executor)
        executor.close()
        assert numbers_of(trials) == numbers_of(alone)
        assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
        assert all(trial.user_attrs["device"] != module.device_name("cpu") for trial in trials)


def ends_at(problem: Problem, iteration: int, method: Method) -> Iterator[tuple[int, Snapshot]]:
    return fit_together([problem], KEEP_BEST, [[iteration]], device="cuda", method=method)


if __name__ == "__main__":
    warnings.simplefilter("error")
    interpreter.quicken()
    packs_in_the_interpreter(sys.argv[1])
